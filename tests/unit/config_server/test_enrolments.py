"""Enrolment end to end in one process: the client of ``replication.enrolment`` against the real server over TLS."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from sqlalchemy import select

from config_server.authority import ServerNames
from config_server.config import Settings
from config_server.events import COMMAND_LINE
from config_server.service_addresses import HELD_FOR_S
from config_server.tables import CertificateRow, EventRow, MachineRow, ProcessServerRow
from replication.control_plane import EnrolmentRequest
from replication.documents import WriterIdentity
from replication.enrolment import enrol
from replication.errors import Conflict, InvalidInput, Overloaded, PeerUnavailable, Refused
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, signing_request
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import heartbeat
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


async def test_process_server_certificate_lists_the_address_agents_are_told_and_nothing_else(lab: Lab) -> None:
    await lab.enrol(Role.PROCESS_SERVER, "ps-1", service_url="https://127.0.0.1:9443")
    certificate = lab.identities["ps-1"].certificate()
    assert ServerNames.parse(["127.0.0.1"]).missing_in(certificate) == []
    listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(listed)) == 2, "its name and this address"
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


async def test_passphrase_of_a_protected_server_makes_no_process_server_and_the_other_way_round(lab: Lab) -> None:
    for given, wanted in ((Role.AGENT, Role.PROCESS_SERVER), (Role.PROCESS_SERVER, Role.AGENT)):
        with pytest.raises(Refused, match=f"cannot enrol as {wanted}: this passphrase is for role {given}") as refusal:
            await lab.enrol(wanted, "evil", passphrase=await lab.passphrase(given))
        assert f"--role {wanted}" in str(refusal.value.hint)
    async with lab.running.site.database.read() as session:
        for table in (MachineRow, ProcessServerRow, CertificateRow):
            assert (await session.scalars(select(table))).all() == []


async def test_passphrase_for_another_role_that_is_not_valid_says_no_more_than_any_wrong_one(lab: Lab) -> None:
    passphrases = lab.running.site.passphrases
    made = await passphrases.create(60.0, COMMAND_LINE, "process-server")
    wrong = made.text[:-1] + ("A" if made.text[-1] != "A" else "B")
    with pytest.raises(Refused, match="wrong or has expired"):
        await lab.enrol(Role.AGENT, "web-1", passphrase=wrong)
    await passphrases.revoke(made.identifier, COMMAND_LINE)
    with pytest.raises(Refused, match="wrong or has expired"):
        await lab.enrol(Role.AGENT, "web-1", passphrase=made.text)


async def test_passphrase_for_another_role_is_counted_as_a_wrong_attempt(lab: Lab) -> None:
    request = EnrolmentRequest(
        role="process-server",
        passphrase=await lab.passphrase(Role.AGENT),
        signing_request_pem="",
        hostname="evil",
        machine_fingerprint="fingerprint",
        service_url="https://127.0.0.1:9443",
    )
    statuses = [(await lab.request("POST", "/api/v1/enrolments", request)).status for _ in range(12)]
    assert statuses[:10] == [403] * 10
    assert 503 in statuses[10:]


async def claim(lab: Lab, name: str, service_url: str) -> PeerName:
    return await lab.enrol(Role.PROCESS_SERVER, name, service_url=service_url)


async def test_process_server_gets_no_certificate_for_the_configuration_server_s_own_address(tmp_path: Path) -> None:
    def named(settings: Settings) -> Settings:
        return replace(settings, names=("config.example", "192.0.2.10"))

    async with running_lab(tmp_path, MemoryBlobClient(), change=named) as lab:
        enrolments, request = lab.running.site.enrolments, await claim_request(lab)
        for host in ("config.example", "CONFIG.example.", "192.0.2.10"):
            with pytest.raises(Refused, match="is the configuration server's own, on another machine"):
                await enrolments.enrol(
                    request.model_copy(update={"service_url": f"https://{host}:9443"}), "192.0.2.99", same_machine=False
                )
        async with lab.running.site.database.read() as session:
            assert (await session.scalars(select(ProcessServerRow))).all() == [], "a refusal leaves nothing"
        await claim(lab, "appliance", "https://config.example:9443")  # from the same machine, on another port


async def test_caller_is_on_the_same_machine_only_if_the_kernel_reaches_it_from_its_own_address(tmp_path: Path) -> None:
    def named(settings: Settings) -> Settings:
        return replace(settings, names=("config.example",), listen="0.0.0.0:0")

    async with running_lab(tmp_path, MemoryBlobClient(), change=named) as lab:
        request = await claim_request(lab)
        body = request.model_copy(update={"service_url": "https://config.example:9443"})
        connector = aiohttp.TCPConnector(ssl=lab.tls(), local_addr=("127.0.0.9", 0))
        async with (
            aiohttp.ClientSession(connector=connector) as elsewhere,
            elsewhere.post(f"{lab.url}/api/v1/enrolments", data=body.encode()) as answer,
        ):
            assert (answer.status, "on another machine" in await answer.text()) == (403, True)
        assert (await lab.request("POST", "/api/v1/enrolments", body)).status == 201


async def claim_request(lab: Lab) -> EnrolmentRequest:
    return EnrolmentRequest(
        role="process-server",
        passphrase=await lab.passphrase(Role.PROCESS_SERVER),
        signing_request_pem=signing_request(new_private_key(), "ps").decode(),
        hostname="ps",
        machine_fingerprint="fingerprint-of-ps",
        service_url="https://ps.example:9443",
    )


async def test_process_server_gets_no_certificate_for_another_one_s_address(lab: Lab) -> None:
    first = await claim(lab, "ps-1", "https://ps.example:9443")
    with pytest.raises(Conflict, match=f"the process server ps-1 .{first.identifier}. has this address") as refusal:
        await claim(lab, "ps-2", "https://PS.example.:9444")
    assert "allow-reenrolment" in str(refusal.value.hint)
    lab.identities["ps-1"].certificate_path.unlink()
    assert await claim(lab, "ps-1", "https://ps.example:9444") == first, "its own address is no other's"
    assert (await lab.administer("POST", f"/api/v1/servers/{first.identifier}/reenrolment")).status == 204
    assert (await claim(lab, "ps-2", "https://ps.example:9443")) != first, (
        "the first one is gone, said the administrator"
    )


async def test_process_server_that_reports_a_senseless_address_keeps_nobody_from_enrolling(lab: Lab) -> None:
    await claim(lab, "ps-1", "https://ps-1.example:9443")
    body = heartbeat("https:// no host/path?x")
    reply = await lab.request("POST", "/api/v1/process-server/heartbeats", body, identity=lab.identities["ps-1"])
    assert reply.status == 200
    await claim(lab, "ps-2", "https://ps-2.example:9443")
    assert await addresses(lab) == {"ps-1": "https://ps-1.example:9443", "ps-2": "https://ps-2.example:9443"}


async def addresses(lab: Lab) -> dict[str, str]:
    servers = (await lab.administer("GET", "/api/v1/process-servers")).json["items"]
    return {server["hostname"]: server["url"] for server in servers}


async def test_heartbeat_moves_a_process_server_but_never_onto_an_address_that_its_certificate_could_not_have(
    tmp_path: Path,
) -> None:
    def named(settings: Settings) -> Settings:
        return replace(settings, names=("config.example",), listen="127.0.0.1:0")

    async with running_lab(tmp_path, MemoryBlobClient(), change=named) as lab:
        await claim(lab, "ps-1", "https://ps-1.example:9443")
        await claim(lab, "ps-2", "https://ps-2.example:9443")

        async def beat(url: str) -> None:
            for _ in range(2):
                reply = await lab.request(
                    "POST", "/api/v1/process-server/heartbeats", heartbeat(url), identity=lab.identities["ps-2"]
                )
                assert reply.status == 200

        for url in ("https://PS-1.example.:9444", "https://config.example:0"):
            await beat(url)
            assert (await addresses(lab))["ps-2"] == "https://ps-2.example:9443"
        refusals = (await lab.administer("GET", "/api/v1/events?kind=address-refused")).json["items"]
        assert len(refusals) == 2, "each is told once"
        assert "stays at https://ps-2.example:9443" in refusals[0]["message"]
        await beat("https://ps-3.example:9443")
        assert (await addresses(lab))["ps-2"] == "https://ps-3.example:9443"


async def test_process_server_that_is_silent_for_a_week_keeps_its_address_from_nobody(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        await claim(lab, "ps-1", "https://ps.example:9443")
        beat = heartbeat("https://ps.example:9443")
        await lab.request("POST", "/api/v1/process-server/heartbeats", beat, identity=lab.identities["ps-1"])
        await claim(lab, "never-heard", "https://nh.example:9443")
        now[0] += int(HELD_FOR_S * 1e9) - 10**9
        for url in ("https://ps.example:9443", "https://nh.example:9443"):
            with pytest.raises(Conflict, match="has this address"):
                await claim(lab, "ps-2", url)
        now[0] += 2 * 10**9
        await claim(lab, "ps-2", "https://ps.example:9443")
        await claim(lab, "ps-3", "https://nh.example:9443")


async def test_after_a_week_without_the_configuration_server_nobody_can_take_a_process_server_s_address(
    tmp_path: Path,
) -> None:
    """All were silent only because nobody listened: this one is not heard yet when the other asks."""
    now, store, writer = [time.time_ns()], MemoryBlobClient(), WriterIdentity.generate()

    def running() -> contextlib.AbstractAsyncContextManager[Lab]:
        return running_lab(tmp_path, store, writer=writer, clock=lambda: now[0], reconcile=False)

    async with running() as lab:
        await claim(lab, "ps-1", "https://ps.example:9443")
        beat = heartbeat("https://ps.example:9443")
        await lab.request("POST", "/api/v1/process-server/heartbeats", beat, identity=lab.identities["ps-1"])
    now[0] += int(HELD_FOR_S * 1e9) + 10**9
    async with running() as lab:
        with pytest.raises(Conflict, match="has this address"):
            await claim(lab, "ps-2", "https://ps.example:9443")
        now[0] += int(HELD_FOR_S * 1e9) + 10**9
        await claim(lab, "ps-2", "https://ps.example:9443")


async def test_wildcard_and_other_senseless_addresses_get_no_certificate(lab: Lab) -> None:
    for url in (
        "https://*.example:9443",
        "https://*",
        "http://ps.example",
        "https://ps.example/path",
        "https://ps:0x1",
    ):
        with pytest.raises(InvalidInput, match="as an address"):
            await claim(lab, "ps-1", url)


async def test_enrolment_of_a_process_server_is_an_event_with_its_address(lab: Lab) -> None:
    await claim(lab, "ps-1", "https://ps.example:9443")
    events = (await lab.administer("GET", "/api/v1/events")).json["items"]
    [message] = [event["message"] for event in events if event["kind"] == "enrolled"]
    assert message.startswith("process-server ps-1 enrolled from 127.0.0.1 with passphrase ")
    assert message.endswith(" to be reached at ps.example:9443")


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
            await lab.passphrase(Role.PROCESS_SERVER),
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


async def test_name_that_a_terminal_would_obey_is_refused(lab: Lab) -> None:
    request = EnrolmentRequest(
        role="agent",
        passphrase=await lab.passphrase(),
        signing_request_pem=signing_request(new_private_key(), "web-1").decode(),
        hostname="web-1",
        machine_fingerprint="fingerprint",
    )
    for name in ("web\x1b[2J", "web\nroot", "web\u202e1"):
        body = request.model_copy(update={"hostname": name})
        assert (await lab.request("POST", "/api/v1/enrolments", body)).status == 400
    assert (await lab.request("POST", "/api/v1/enrolments", request)).status == 201


async def test_process_server_without_an_address_is_refused(lab: Lab) -> None:
    request = EnrolmentRequest(
        role="process-server",
        passphrase=await lab.passphrase(Role.PROCESS_SERVER),
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
