"""Renewal of a daemon's certificate, under a clock of the test's own and with an authority that answers, fails, or never answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from replication import tls_identity
from replication.clock import Clock
from replication.control_plane import EnrolmentAnswer, RenewalRequest
from replication.errors import PeerUnavailable, SettingsError
from replication.possession import is_proved, prove
from replication.renewal import CHECK, Renewal
from replication.service.health import HealthBoard, HealthState
from replication.tls_identity import Role, TlsIdentity, new_private_key
from tests.harness.tls import LabAuthority

AGENT = "6f0c3b4e-5a67-4c8a-9d5e-0d4f5a6b7c8d"
DAY_NS = 86400 * 10**9


class Killed(BaseException):
    """The process dies here."""


@dataclass
class Place:
    """An agent's identity, an authority, and everything that the renewal did."""

    identity: TlsIdentity
    authority: LabAuthority
    now_ns: int
    board: HealthBoard = field(default_factory=HealthBoard)
    requests: list[RenewalRequest] = field(default_factory=list)
    adopted: list[int] = field(default_factory=list)
    answers: list[Callable[[RenewalRequest], EnrolmentAnswer]] = field(default_factory=list)

    def renewal(self) -> Renewal:
        clock = Clock(unix_ns=lambda: self.now_ns)
        return Renewal(
            self.identity, ["https://127.0.0.1:1"], "fingerprint-1", self.issue, self.adopt, clock, self.board
        )

    async def issue(self, request: RenewalRequest) -> EnrolmentAnswer:
        self.requests.append(request)
        return self.answers.pop(0)(request) if self.answers else self.answer(request)

    async def adopt(self) -> None:
        self.identity.client_context(Role.CONFIG_SERVER)
        self.adopted.append(self.serial)

    @property
    def serial(self) -> int:
        return self.identity.certificate().serial_number

    def answer(
        self, request: RenewalRequest, *, role: str = "agent", authority: LabAuthority | None = None
    ) -> EnrolmentAnswer:
        key = x509.load_pem_x509_csr(request.signing_request_pem.encode()).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        issuing = authority or self.authority
        certificate = issuing.certify(key, [f"urn:blockferry:{role}:{AGENT}"])
        return EnrolmentAnswer(
            identifier=AGENT,
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            authorities_pem=issuing.certificate_pem.decode(),
        )

    def after_its_moment(self) -> None:
        self.now_ns = int(self.identity.certificate().not_valid_after_utc.timestamp()) * 10**9 - DAY_NS


@pytest.fixture
def place(tmp_path: Path) -> Place:
    authority = LabAuthority()
    return Place(authority.issue(Role.AGENT, AGENT, tmp_path / "identity"), authority, time.time_ns())


async def test_nothing_is_asked_before_the_moment_has_come(place: Place) -> None:
    before = place.serial
    pause_s = await place.renewal().turn()
    assert (place.requests, place.serial, place.adopted) == ([], before, [])
    assert pause_s > 0


async def test_a_certificate_is_replaced_by_one_for_a_fresh_key_and_adopted(place: Place) -> None:
    before, key_before = place.serial, place.identity.key_path.read_bytes()
    place.after_its_moment()
    renewal = place.renewal()
    await renewal.turn()
    assert place.serial != before
    assert place.adopted == [place.serial]
    assert place.identity.key_path.read_bytes() != key_before
    assert not place.identity.next_key_path.exists()
    assert place.identity.key_path.stat().st_mode & 0o077 == 0
    assert place.requests[0].machine_fingerprint == "fingerprint-1"
    assert [(check.name, check.state) for check in place.board.checks] == [(CHECK, HealthState.OK)]


async def test_an_answer_that_never_came_leaves_the_old_certificate_and_the_same_key_asks_again(place: Place) -> None:
    def lost(_request: RenewalRequest) -> EnrolmentAnswer:
        raise PeerUnavailable("cannot reach the configuration server")

    before = place.serial
    place.after_its_moment()
    place.answers = [lost]
    pause_s = await place.renewal().turn()
    assert (place.serial, place.adopted) == (before, [])
    place.identity.client_context(Role.CONFIG_SERVER)
    [check] = place.board.checks
    assert (check.state, "ends in 1.0 days" in check.reason) == (HealthState.DEGRADED, True)
    assert 0 < pause_s <= 3600
    await place.renewal().turn()  # another process, even
    keys = {
        x509.load_pem_x509_csr(r.signing_request_pem.encode())
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        for r in place.requests
    }
    assert (len(place.requests), len(keys)) == (2, 1)


async def test_a_crash_between_certificate_and_key_is_finished_at_the_next_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_identity: TlsIdentity) -> None:
        raise Killed

    place.after_its_moment()
    with monkeypatch.context() as patched:
        patched.setattr(TlsIdentity, "settle", die)
        with pytest.raises(Killed):
            await place.renewal().turn()
    place.identity.client_context(Role.CONFIG_SERVER)  # the certificate's key counts, whatever its file is called
    assert place.identity.next_key_path.exists()
    place.identity.settle()
    assert not place.identity.next_key_path.exists()
    assert place.identity.key().public_key() == place.identity.certificate().public_key()
    place.identity.settle()  # idempotent


async def test_a_renewed_key_whose_name_cannot_be_synced_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could leave the new certificate beside the old key's name, and nobody would have been warned."""

    def failing(_directory: Path) -> None:
        raise OSError(5, "Input/output error")

    place.after_its_moment()
    with monkeypatch.context() as patched:
        patched.setattr(tls_identity, "sync_directory", failing)
        await place.renewal().turn()
    [check] = place.board.checks
    assert "Input/output error" in check.reason


@pytest.mark.parametrize("wrong", ["another key", "another role", "unknown authorities"])
async def test_an_answer_that_was_not_asked_for_is_not_taken(place: Place, wrong: str) -> None:
    def answer(request: RenewalRequest) -> EnrolmentAnswer:
        if wrong == "another role":
            return place.answer(request, role="process-server")
        if wrong == "unknown authorities":
            return place.answer(request, authority=LabAuthority("another"))
        stranger = place.authority.certify(new_private_key().public_key(), [f"urn:blockferry:agent:{AGENT}"])
        pem = stranger.public_bytes(serialization.Encoding.PEM).decode()
        return place.answer(request).model_copy(update={"certificate_pem": pem})

    before = place.serial
    place.after_its_moment()
    place.answers = [answer]
    await place.renewal().turn()
    assert (place.serial, place.adopted) == (before, [])
    assert place.board.worst is HealthState.DEGRADED


async def test_a_certificate_that_an_operator_put_there_is_adopted_by_the_running_daemon(place: Place) -> None:
    renewal = place.renewal()
    place.authority.issue(Role.AGENT, AGENT, place.identity.directory)
    await renewal.turn()
    assert place.adopted == [place.serial]


async def test_after_the_end_the_connection_is_not_used(place: Place) -> None:
    place.now_ns = int(place.identity.certificate().not_valid_after_utc.timestamp()) * 10**9 + DAY_NS
    await place.renewal().turn()
    assert place.requests == []
    [check] = place.board.checks
    assert "ended 1.0 days ago: cannot reach https://127.0.0.1:1" in check.reason


def test_a_proof_is_good_for_its_own_request_and_certificate_only(place: Place) -> None:
    key = place.identity.key()
    proof = prove(key, 7, "request")
    assert is_proved(key.public_key(), 7, "request", proof)
    assert not is_proved(key.public_key(), 8, "request", proof)
    assert not is_proved(key.public_key(), 7, "another", proof)
    assert not is_proved(new_private_key().public_key(), 7, "request", proof)
    assert not is_proved(key.public_key(), 7, "request", "abcd")


def test_a_certificate_without_any_key_is_no_identity(place: Place) -> None:
    place.identity.key_path.unlink()
    with pytest.raises(SettingsError):
        place.identity.key()
