"""Renewal and recovery of certificates at the configuration server: who gets one, who does not, and that a repeated question is one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, select

from config_server.authority import BACKDATED_S, Authority, ServerNames
from config_server.certificates import serial_text
from config_server.config import HistorySettings
from config_server.events import COMMAND_LINE
from config_server.reconciler.housekeeping import forget_what_is_over
from config_server.server_identity import OwnCertificate
from config_server.tables import CertificateRow, EventRow
from replication.control_plane import RecoveryRequest, RenewalRequest
from replication.possession import prove
from replication.service.health import HealthBoard
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, private_key_pem, signing_request
from tests.harness.certificate_site import certificate_site, later
from tests.harness.config_site import Lab, Reply, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient

DAY_NS = 86400 * 10**9


@dataclass
class Site:
    lab: Lab
    now: list[int]

    def request(self, name: str, key: ec.EllipticCurvePrivateKey | None = None) -> RenewalRequest:
        return RenewalRequest(
            signing_request_pem=signing_request(key or new_private_key(), name).decode(),
            machine_fingerprint=f"fingerprint-of-{name}",
        )

    async def renew(self, name: str, request: RenewalRequest, route: str = "agent") -> Reply:
        return await self.lab.request(
            "POST", f"/api/v1/{route}/certificate", request, identity=self.lab.identities[name]
        )

    def recovery(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        role: str = "agent",
        signed_by: ec.EllipticCurvePrivateKey | None = None,
        fingerprint: str | None = None,
    ) -> RecoveryRequest:
        identity = self.lab.identities[name]
        request, certificate = signing_request(key, name).decode(), identity.certificate()
        return RecoveryRequest(
            role="agent" if role == "agent" else "process-server",
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            signing_request_pem=request,
            machine_fingerprint=fingerprint or f"fingerprint-of-{name}",
            proof=prove(signed_by or identity.key(), certificate.serial_number, request),
        )

    async def recover(self, request: RecoveryRequest) -> Reply:
        return await self.lab.request("POST", "/api/v1/certificates/recoveries", request)

    async def certificates(self) -> list[CertificateRow]:
        async with self.lab.running.site.database.read() as session:
            return list(await session.scalars(select(CertificateRow).order_by(CertificateRow.issued_ns)))

    async def events(self, kind: str) -> list[str]:
        async with self.lab.running.site.database.read() as session:
            return list(await session.scalars(select(EventRow.message).where(EventRow.kind == kind)))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        yield Site(lab, now)


def certificate_in(reply: Reply) -> x509.Certificate:
    assert reply.status == 201, reply.body
    return x509.load_pem_x509_certificate(reply.json["certificate_pem"].encode())


async def test_a_renewed_certificate_is_for_the_fresh_key_and_the_present_one_stays_valid(site: Site) -> None:
    key = new_private_key()
    site.now[0] += 10**9
    certificate = certificate_in(await site.renew("web-1", site.request("web-1", key)))
    assert certificate.public_key() == key.public_key()
    rows = await site.certificates()
    assert [row.revoked_ns for row in rows] == [None, None]
    assert rows[0].used_ns is not None
    assert rows[1].used_ns is None, "nobody has shown it yet"
    assert len(await site.events("certificate-renewed")) == 1
    assert (await site.lab.request("GET", "/api/v1/agent/desired", identity=site.lab.identities["web-1"])).status == 200


async def test_a_question_that_is_repeated_since_its_answer_was_lost_gets_the_same_certificate(site: Site) -> None:
    request = site.request("web-1")
    first, second = [certificate_in(await site.renew("web-1", request)) for _ in range(2)]
    assert first.serial_number == second.serial_number
    assert len(await site.certificates()) == 2


async def test_renewal_wants_a_fresh_key_and_the_machine_that_enrolled(site: Site) -> None:
    same = site.request("web-1", site.lab.identities["web-1"].key())
    assert (await site.renew("web-1", same)).status == 400
    copy = site.request("web-1").model_copy(update={"machine_fingerprint": "fingerprint-of-a-clone"})
    assert (await site.renew("web-1", copy)).status == 403
    senseless = site.request("web-1").model_copy(update={"signing_request_pem": "x"})
    assert (await site.renew("web-1", senseless)).status == 400
    assert len(await site.certificates()) == 1


async def test_a_process_server_s_renewed_certificate_lists_the_address_that_agents_are_told(site: Site) -> None:
    await site.lab.enrol(Role.PROCESS_SERVER, "ps", service_url="https://ps.example:9443")
    certificate = certificate_in(await site.renew("ps", site.request("ps"), "process-server"))
    assert ServerNames.parse(["ps.example"]).missing_in(certificate) == []
    assert len(list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)) == 2


async def test_the_holder_of_an_ended_certificate_s_key_gets_a_new_one(site: Site) -> None:
    site.now[0] += 400 * DAY_NS
    key = new_private_key()
    request = site.recovery("web-1", key)
    first = certificate_in(await site.recover(request))
    assert first.public_key() == key.public_key()
    assert certificate_in(await site.recover(request)).serial_number == first.serial_number
    assert "was not valid" in (await site.events("certificate-recovered"))[0]


async def test_who_proves_nothing_recovers_nothing(site: Site) -> None:
    key = new_private_key()
    refused: dict[str, RecoveryRequest] = {
        "possession of its key is not proved": site.recovery("web-1", key, signed_by=new_private_key()),
        "as one of an process-server": site.recovery("web-1", key, role="process-server"),
        "comes from another machine": site.recovery("web-1", key, fingerprint="fingerprint-of-a-clone"),
    }
    swapped = site.recovery("web-1", key).model_copy(
        update={"signing_request_pem": signing_request(new_private_key(), "thief").decode()}
    )
    refused["is not proved"] = swapped
    stranger = Authority.create(site.now[0])
    own = new_private_key()
    foreign = stranger.issue(own.public_key(), site.lab.identities["web-1"].name(), now_ns=site.now[0])
    text = signing_request(key, "x").decode()
    refused["not issued by this site"] = RecoveryRequest(
        role="agent",
        certificate_pem=foreign.pem,
        signing_request_pem=text,
        machine_fingerprint="fingerprint-of-web-1",
        proof=prove(own, foreign.certificate.serial_number, text),
    )
    for says, request in refused.items():
        reply = await site.recover(request)
        assert (reply.status, says in reply.json["detail"]) == (403, True), reply.json
    assert len(await site.certificates()) == 1


async def test_a_revoked_a_forgotten_a_superseded_and_a_long_ended_certificate_recover_nothing(site: Site) -> None:
    async def refused(says: str) -> None:
        reply = await site.recover(site.recovery("web-1", new_private_key()))
        assert (reply.status, says in reply.json["detail"]) == (403, True), reply.json

    site.now[0] += 10**9
    newer = site.request("web-1")
    certificate_in(await site.renew("web-1", newer))
    site.now[0] += 400 * DAY_NS
    await refused("its holder has a newer one")
    async with site.lab.running.site.database.write() as session:
        await session.execute(delete(CertificateRow).where(CertificateRow.used_ns.is_(None)))
    site.now[0] += 180 * DAY_NS
    await refused("ended more than 180 days ago")
    site.now[0] -= 180 * DAY_NS
    await site.lab.running.site.certificates.revoke(serial=None, holder="web-1", reason="", actor=COMMAND_LINE)
    identity = site.lab.identities["web-1"]
    serial = serial_text(identity.certificate().serial_number)
    await refused(f"the certificate {serial} of agent {identity.name().identifier}: it is revoked")
    assert serial in (await site.lab.running.site.audit.read(after=None, limit=1, actor=None))[-1].detail
    async with site.lab.running.site.database.write() as session:
        await session.execute(delete(CertificateRow))
    await refused("not known here")


async def test_a_newer_certificate_whose_answer_was_lost_does_not_stand_in_the_way_of_its_own_key(site: Site) -> None:
    key = new_private_key()
    site.now[0] += 10**9
    lost = certificate_in(await site.renew("web-1", site.request("web-1", key)))
    site.now[0] += 400 * DAY_NS
    again = certificate_in(await site.recover(site.recovery("web-1", key)))
    assert again.serial_number != lost.serial_number, "it has ended, too"
    assert again.public_key() == key.public_key()


async def test_a_certificate_that_was_issued_while_the_clock_was_ahead_is_replaced_and_is_not_the_newest(
    site: Site,
) -> None:
    site.now[0] += 200 * DAY_NS
    await site.lab.enrol(Role.AGENT, "web-2")
    site.now[0] -= 200 * DAY_NS
    key = new_private_key()
    first = certificate_in(await site.recover(site.recovery("web-2", key)))
    identity = site.lab.identities["web-2"]
    identity.store(
        key_pem=private_key_pem(key),
        certificate_pem=first.public_bytes(serialization.Encoding.PEM),
        authorities_pem=identity.authorities_path.read_bytes(),
    )
    site.now[0] += 400 * DAY_NS
    certificate_in(await site.recover(site.recovery("web-2", new_private_key())))


async def test_certificates_that_ended_long_ago_are_forgotten_once_their_holder_uses_a_newer_one(site: Site) -> None:
    async def forget() -> int:
        async with site.lab.running.site.database.write() as session:
            return await forget_what_is_over(session, HistorySettings(), site.now[0])

    site.now[0] += 430 * DAY_NS
    await forget()
    assert len(await site.certificates()) == 1, "its holder has no other one"
    certificate_in(await site.recover(site.recovery("web-1", new_private_key())))
    await forget()
    assert len(await site.certificates()) == 2, "the new one may not have arrived"
    async with site.lab.running.site.database.write() as session:
        newest = (await session.scalars(select(CertificateRow).order_by(CertificateRow.issued_ns.desc()))).first()
        assert newest is not None
        newest.used_ns = site.now[0]
    await forget()
    assert [row.used_ns for row in await site.certificates()] == [site.now[0]]


async def test_recoveries_are_limited(site: Site) -> None:
    request = site.recovery("web-1", new_private_key(), signed_by=new_private_key())
    statuses = [(await site.recover(request)).status for _ in range(12)]
    assert statuses[:10] == [403] * 10
    assert 503 in statuses[10:]


async def test_a_certificate_that_the_database_does_not_know_is_known_from_its_first_use_on(site: Site) -> None:
    async with site.lab.running.site.database.write() as session:
        await session.execute(delete(CertificateRow))  # restored from an older backup
    identity = site.lab.identities["web-1"]
    assert (await site.lab.request("GET", "/api/v1/agent/desired", identity=identity)).status == 200
    [row] = await site.certificates()
    assert row.serial == format(identity.certificate().serial_number, "x")
    assert (await site.lab.administer("POST", "/api/v1/certificates/revocations", {"serial": row.serial})).status == 200
    assert (await site.lab.request("GET", "/api/v1/agent/desired", identity=identity)).status == 403


async def test_revocation_names_one_certificate_or_a_holder_that_is_there(site: Site) -> None:
    for body, status in (
        ({}, 400),
        ({"serial": "1", "holder": "x"}, 400),
        ({"serial": "1"}, 404),
        ({"holder": "x"}, 404),
    ):
        assert (await site.lab.administer("POST", "/api/v1/certificates/revocations", body)).status == status
    listed = (await site.lab.administer("GET", "/api/v1/certificates?holder=web-1")).json["items"]
    assert [(entry["hostname"], entry["role"]) for entry in listed] == [("web-1", "agent")]
    body = {"serial": listed[0]["serial"].upper(), "reason": "stolen"}
    assert (await site.lab.administer("POST", "/api/v1/certificates/revocations", body)).status == 200
    assert "stolen" in (await site.events("certificate-revoked"))[0]
    assert (await site.lab.administer("GET", "/api/v1/certificates")).json["items"] == []
    [entry] = (await site.lab.administer("GET", "/api/v1/certificates?all=true")).json["items"]
    assert entry["revoked_at"] is not None


async def test_an_agent_whose_certificate_has_ended_recovers_by_itself(tmp_path: Path) -> None:
    async with certificate_site(tmp_path) as site:
        before = site.agent_identity.certificate().serial_number
        await site.renewal(later(days=400)).turn()
        assert site.agent_identity.certificate().serial_number != before
        await site.control.desired(-1, 0.0)


async def test_with_a_renewal_comes_the_trust_store_as_it_is_now(tmp_path: Path) -> None:
    async with certificate_site(tmp_path) as site:
        trust_store = site.lab.running.site.trust_store
        coming = Authority.create(time.time_ns()).certificate.public_bytes(serialization.Encoding.PEM)
        with (trust_store.directory / "trusted.pem").open("ab") as trusted:
            trusted.write(coming)
        assert len(x509.load_pem_x509_certificates(site.agent_identity.authorities_path.read_bytes())) == 1
        await site.renewal(later(days=300)).turn()
        known = site.agent_identity.authorities_path.read_bytes()
        assert known == trust_store.trusted_pem().encode()
        assert len(x509.load_pem_x509_certificates(known)) == 2
        await site.control.desired(-1, 0.0)


async def test_this_server_renews_its_own_certificate_and_listens_with_it_at_once(site: Site) -> None:
    running, settings = site.lab.running, site.lab.settings
    identity = TlsIdentity(settings.identity_directory)
    before = identity.certificate()
    clock: Callable[[], int] = lambda: site.now[0]  # noqa: E731
    own = OwnCertificate(
        settings, running.site.authority, running.site.trust_store, clock, running.server, HealthBoard()
    )
    pause_s = await own.turn()
    assert (identity.certificate(), 0 < pause_s <= 3600) == (before, True)
    site.now[0] += 290 * DAY_NS
    contexts = running.server.listener._tls
    await own.turn()
    assert identity.certificate() != before
    assert running.server.listener._tls is not contexts


def test_no_certificate_outlives_the_authority_and_short_ones_are_hardly_backdated() -> None:
    now_ns = time.time_ns()
    authority = Authority.create(now_ns)
    name = PeerName(Role.AGENT, "6f0c3b4e-5a67-4c8a-9d5e-0d4f5a6b7c8d")
    end = authority.certificate.not_valid_after_utc
    late_ns = int(end.timestamp() * 1e9) - DAY_NS
    late = authority.issue(new_private_key().public_key(), name, now_ns=late_ns).certificate
    assert abs((late.not_valid_after_utc - end).total_seconds()) <= 1
    short = authority.issue(new_private_key().public_key(), name, now_ns=now_ns, lifetime_s=60.0).certificate
    assert now_ns / 1e9 - short.not_valid_before_utc.timestamp() < 8 < BACKDATED_S
