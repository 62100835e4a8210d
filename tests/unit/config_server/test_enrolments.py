"""Enrolment end to end in one process: the client of ``replication.enrolment`` against the real server over TLS."""

from __future__ import annotations

import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from config_server.authority import ServerNames
from config_server.events import COMMAND_LINE
from config_server.tables import CertificateRow, EventRow, MachineRow
from replication.control_plane import EnrolmentRequest
from replication.enrolment import enrol
from replication.errors import Conflict, InvalidInput, Overloaded, PeerUnavailable, Refused
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, signing_request
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.tls import LabAuthority


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient()) as running:
        yield running


async def test_agent_enrols_and_is_known_by_its_certificate(lab: Lab) -> None:
    name = await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    assert identity.name() == name
    assert name.role is Role.AGENT
    assert stat.S_IMODE(identity.key_path.stat().st_mode) == 0o600
    reply = await lab.request("GET", "/api/v1/agent/desired", identity=identity)
    assert reply.status == 200
    assert reply.json == {"revision": 0, "item": None}


async def test_process_server_certificate_lists_the_address_agents_are_told(lab: Lab) -> None:
    await lab.enrol(Role.PROCESS_SERVER, "ps-1", service_url="https://127.0.0.1:9443")
    certificate = lab.identities["ps-1"].certificate()
    assert ServerNames.parse(["127.0.0.1", "ps-1"]).missing_in(certificate) == []
    lab.identities["ps-1"].server_context(require_client=True)


async def test_passphrase_is_not_sent_to_a_server_with_another_fingerprint(lab: Lab, tmp_path: Path) -> None:
    passphrase = await lab.passphrase()
    with pytest.raises(Refused, match="nothing was sent"):
        await enrol(lab.url, "00" * 32, passphrase, Role.AGENT, "web-1", "fingerprint-1", tmp_path / "id")
    async with lab.running.site.database.read() as session:
        assert (await session.scalars(select(MachineRow))).all() == []
    assert not TlsIdentity(tmp_path / "id").exists()


async def test_wrong_passphrase_is_refused_and_leaves_no_machine(lab: Lab) -> None:
    right = await lab.passphrase()
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    for text in (wrong, "nonsense", "AAAAAAAA-BBBBB-CCCCC-DDDDD-EEEEE-FFFFF"):
        with pytest.raises(Refused, match="wrong or has expired"):
            await lab.enrol(Role.AGENT, "web-1", passphrase=text)
    async with lab.running.site.database.read() as session:
        assert (await session.scalars(select(MachineRow))).all() == []


async def test_passphrase_is_read_without_regard_to_case_and_spaces(lab: Lab) -> None:
    text = await lab.passphrase()
    await lab.enrol(Role.AGENT, "web-1", passphrase=f" {text.lower()} ")


async def test_revoked_passphrase_is_refused(lab: Lab) -> None:
    passphrases = lab.running.site.passphrases
    made = await passphrases.create(60.0, COMMAND_LINE)
    await passphrases.revoke(made.identifier, COMMAND_LINE)
    with pytest.raises(Refused, match="wrong or has expired"):
        await lab.enrol(Role.AGENT, "web-1", passphrase=made.text)


async def test_expired_passphrase_is_refused(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0]) as lab:
        made = await lab.running.site.passphrases.create(60.0, COMMAND_LINE)
        now[0] += 61 * 10**9
        with pytest.raises(Refused, match="wrong or has expired"):
            await lab.enrol(Role.AGENT, "web-1", passphrase=made.text)


async def test_existing_machine_is_not_taken_over(lab: Lab, tmp_path: Path) -> None:
    name = await lab.enrol(Role.AGENT, "web-1")
    with pytest.raises(Conflict, match="enrolled already") as refusal:
        await enrol(
            lab.url,
            lab.fingerprint,
            await lab.passphrase(),
            Role.AGENT,
            "web-1",
            "fingerprint-of-web-1",
            tmp_path / "other",
        )
    assert "allow-reenrolment" in str(refusal.value.hint)
    async with lab.running.site.database.read() as session:
        assert [row.id for row in await session.scalars(select(MachineRow))] == [name.identifier]


async def test_enrolment_cut_off_before_its_answer_is_repeated_with_the_same_key(lab: Lab) -> None:
    first = await lab.enrol(Role.AGENT, "web-1")
    lab.identities["web-1"].certificate_path.unlink()  # as if the answer had been lost
    assert await lab.enrol(Role.AGENT, "web-1") == first


async def test_process_server_that_lost_its_identity_enrols_anew_when_allowed_and_keeps_its_items(
    lab: Lab, tmp_path: Path
) -> None:
    first = await lab.enrol(Role.PROCESS_SERVER, "appliance")

    async def enrol_anew() -> PeerName:
        return await enrol(
            lab.url,
            lab.fingerprint,
            await lab.passphrase(),
            Role.PROCESS_SERVER,
            "appliance",
            "fingerprint-of-appliance",
            tmp_path / "new",
            "https://127.0.0.1:9443",
        )

    with pytest.raises(Conflict, match="enrolled already"):
        await enrol_anew()
    assert (await lab.administer("POST", "/api/v1/servers/appliance/reenrolment")).status == 204
    assert await enrol_anew() == first, "its items are assigned to this identifier"


async def test_reenrolment_of_two_with_one_name_is_allowed_by_identifier_only(lab: Lab) -> None:
    await lab.enrol(Role.PROCESS_SERVER, "appliance")
    async with lab.running.site.database.write() as session:
        session.add(
            MachineRow(
                id="c0ffee00-0000-4000-8000-000000000000",
                hostname="appliance",
                machine_fingerprint="fingerprint-of-the-machine",
                enrolled_ns=1,
                connected=False,
                desired_revision=0,
            )
        )
    reply = await lab.administer("POST", "/api/v1/servers/appliance/reenrolment")
    assert (reply.status, "identifier" in reply.json["hint"]) == (409, True)
    path = "/api/v1/servers/c0ffee00-0000-4000-8000-000000000000/reenrolment"
    assert (await lab.administer("POST", path)).status == 204


async def test_allowed_reenrolment_keeps_the_machine_and_revokes_its_older_certificates(
    lab: Lab, tmp_path: Path
) -> None:
    first = await lab.enrol(Role.AGENT, "web-1")
    site = lab.running.site
    async with site.database.write() as session:
        machine = await session.get_one(MachineRow, first.identifier)
        machine.reenrolment_until_ns = site.enrolments.reenrolment_deadline_ns()
    second = await enrol(
        lab.url, lab.fingerprint, await lab.passphrase(), Role.AGENT, "web-1", "fingerprint-of-web-1", tmp_path / "new"
    )
    assert second == first
    old = await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-1"])
    assert (old.status, "revoked" in old.json["detail"]) == (403, True)
    assert (await lab.request("GET", "/api/v1/agent/desired", identity=TlsIdentity(tmp_path / "new"))).status == 200
    with pytest.raises(Conflict):
        await enrol(
            lab.url,
            lab.fingerprint,
            await lab.passphrase(),
            Role.AGENT,
            "web-1",
            "fingerprint-of-web-1",
            tmp_path / "3rd",
        )


async def test_guessing_is_limited(lab: Lab) -> None:
    request = EnrolmentRequest(
        role="agent",
        passphrase="wrong",
        signing_request_pem="",
        hostname="web-1",
        machine_fingerprint="fingerprint",
    )
    statuses = [(await lab.request("POST", "/api/v1/enrolments", request)).status for _ in range(12)]
    assert statuses[:10] == [403] * 10
    assert 503 in statuses[10:]
    with pytest.raises(Overloaded) as refusal:
        await lab.enrol(Role.AGENT, "web-1")
    assert refusal.value.retry_after_s is not None
    assert refusal.value.retry_after_s > 0


async def test_signing_request_of_another_kind_is_refused(lab: Lab) -> None:
    for pem in ("", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        request = EnrolmentRequest(
            role="agent",
            passphrase=await lab.passphrase(),
            signing_request_pem=pem,
            hostname="web-1",
            machine_fingerprint="fingerprint",
        )
        assert (await lab.request("POST", "/api/v1/enrolments", request)).status == 400


async def test_process_server_without_an_address_is_refused(lab: Lab) -> None:
    request = EnrolmentRequest(
        role="process-server",
        passphrase=await lab.passphrase(),
        signing_request_pem=signing_request(new_private_key(), "ps").decode(),
        hostname="ps",
        machine_fingerprint="fingerprint",
    )
    assert (await lab.request("POST", "/api/v1/enrolments", request)).status == 400


async def test_neither_passphrase_nor_its_hash_is_in_events(lab: Lab) -> None:
    text = await lab.passphrase()
    await lab.enrol(Role.AGENT, "web-1", passphrase=text)
    async with lab.running.site.database.read() as session:
        messages = [event.message for event in await session.scalars(select(EventRow))]
        certificates = (await session.scalars(select(CertificateRow))).all()
    assert len(certificates) == 1
    assert any("enrolled" in message for message in messages)
    assert not any(text in message or text[9:] in message for message in messages)


async def test_address_that_the_certificate_does_not_list_is_refused(lab: Lab, tmp_path: Path) -> None:
    url = f"https://127.0.0.2:{lab.running.port}"
    with pytest.raises(PeerUnavailable):
        await enrol(url, lab.fingerprint, "x", Role.AGENT, "web-1", "fingerprint", tmp_path / "id")


async def test_unusable_arguments_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1", "https://", "https://h/path", "https://h?x=1"):
        with pytest.raises(InvalidInput):
            await enrol(url, "00" * 32, "x", Role.AGENT, "h", "fingerprint", tmp_path)
    with pytest.raises(InvalidInput):
        await enrol("https://h", "00" * 31, "x", Role.AGENT, "h", "fingerprint", tmp_path)
    with pytest.raises(InvalidInput):
        await enrol("https://h", "00" * 32, "x", Role.SINK, "h", "fingerprint", tmp_path)


async def test_directory_with_an_identity_is_not_overwritten(lab: Lab, tmp_path: Path) -> None:
    identity = LabAuthority().issue(Role.AGENT, "3f0c3b4e-5a67-4c8a-9d5e-0d4f5a6b7c8d", tmp_path / "id")
    before = identity.key_path.read_bytes()
    with pytest.raises(Conflict):
        await enrol(lab.url, lab.fingerprint, "x", Role.AGENT, "h", "fingerprint", tmp_path / "id")
    assert identity.key_path.read_bytes() == before
