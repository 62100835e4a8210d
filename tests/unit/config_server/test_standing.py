"""Who is revoked while his request is under way gets nothing by it: not after its body, not in its transaction, not at another server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives import serialization
from sqlalchemy import func, select, update

from config_server import revocations, waiting_request
from config_server.api import routes
from config_server.certificates import serial_text
from config_server.events import COMMAND_LINE
from config_server.job_feed import MAX_JOB_WAIT_S
from config_server.standing import HolderStanding
from config_server.tables import (
    AdministratorTokenRow,
    CertificateRow,
    EnrolmentPassphraseRow,
    GenerationRow,
    JobRow,
    MachineRow,
)
from replication.control_plane import MAX_DESIRED_WAIT_S, EnrollingRole, GenerationRequest, RenewalRequest
from replication.errors import Refused
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.tls_identity import Role, new_private_key, peer_certificate, signing_request
from tests.harness.config_site import Lab, Reply, running_lab
from tests.harness.driven_site import SOURCE, DrivenSite, driven_site
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.postgresql_cluster import PostgresqlCluster
from tests.harness.scripted_peers import DISK, heartbeat, new_id

DEADLINE_S = 60.0


@dataclass
class HalfSent:
    """A request whose sender the server has let in; ``rest`` of its body is to come."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    async def answered(self) -> Reply:
        async with asyncio.timeout(DEADLINE_S):
            self.writer.write(self.rest)
            await self.writer.drain()
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return Reply(int(head.split()[1]), {}, await self.reader.readexactly(length))


class Halfway:
    """Requests that the server has let in, and no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._let_in = asyncio.Event()
        really = routes._identified

        async def identified(*request: Any) -> routes.Identity:
            identity = await really(*request)
            self._let_in.set()
            return identity

        monkeypatch.setattr(routes, "_identified", identified)

    @contextlib.asynccontextmanager
    async def sent(
        self, lab: Lab, tls: ssl.SSLContext, what: str, body: bytes, *, now: int | None = None, token: str = ""
    ) -> AsyncIterator[HalfSent]:
        """``what``: method and path. So many bytes of the body are sent ``now``; None: all."""
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.running.port, ssl=tls)
        method, path = what.split()
        header = f"Authorization: Bearer {token}\r\n" if token else ""
        head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}Content-Length: {len(body)}\r\n\r\n"
        self._let_in.clear()
        try:
            writer.write(head.encode() + body[:now])
            await writer.drain()
            async with asyncio.timeout(DEADLINE_S):
                await self._let_in.wait()
            yield HalfSent(reader, writer, b"" if now is None else body[now:])
        finally:
            writer.close()


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch) -> Halfway:
    return Halfway(monkeypatch)


@contextlib.asynccontextmanager
async def two_servers(tmp_path: Path) -> AsyncIterator[tuple[Lab, Lab]]:
    """On one database."""
    store = MemoryBlobClient()
    async with (
        running_lab(tmp_path / "one", store, reconcile=False) as one,
        running_lab(
            tmp_path / "two",
            store,
            writer=one.writer,
            reconcile=False,
            change=lambda settings: replace(
                settings, database_url=one.settings.database_url, postgresql=one.settings.postgresql
            ),
        ) as two,
    ):
        yield one, two


def renewal(name: str) -> bytes:
    return RenewalRequest(
        signing_request_pem=signing_request(new_private_key(), name).decode(),
        machine_fingerprint=f"fingerprint-of-{name}",
    ).encode()


async def count(lab: Lab, *kinds: Any) -> list[int]:
    async with lab.running.site.database.read() as session:
        return [await session.scalar(select(func.count()).select_from(kind)) or 0 for kind in kinds]


ACCESS = (AdministratorTokenRow, EnrolmentPassphraseRow, CertificateRow, GenerationRow, MachineRow)
"""What lets somebody in, or gives him a key."""

BY_TOKEN: dict[str, dict[str, Any] | None] = {
    "POST /tokens": {"name": "mallory-again", "role": "administrator"},
    "POST /enrolment-passphrases": {"valid_for_s": 3600.0, "role": "agent"},
    "POST /certificates/revocations": {"holder": "web-1"},
    "POST /servers/web-1/reenrolment": None,
}


# ---- after the body


@pytest.mark.parametrize("what", [what for what, body in BY_TOKEN.items() if body is not None])
async def test_a_body_that_comes_after_its_token_was_revoked_changes_nothing(
    tmp_path: Path, halfway: Halfway, what: str
) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        made = await lab.running.site.administrators.create_token("mallory", COMMAND_LINE)
        before = await count(lab, *ACCESS)
        body = json.dumps(BY_TOKEN[what]).encode()
        async with halfway.sent(lab, lab.tls(), what, body, now=1, token=made.text) as request:
            assert (await lab.administer("DELETE", f"/api/v1/tokens/{made.identifier}")).status == 204
            reply = await request.answered()
        assert reply.status == 401, reply.body
        assert await count(lab, *ACCESS) == before
        assert (await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-1"])).status != 403
        audited = (await lab.administer("GET", "/api/v1/audit")).json["items"]
        assert [entry["actor"] for entry in audited if entry["status"] == 401] == ["administrator:mallory"]


async def test_a_certificate_that_is_revoked_at_one_server_is_not_renewed_at_the_other(
    tmp_path: Path, halfway: Halfway
) -> None:
    async with two_servers(tmp_path) as (one, two):
        await one.enrol(Role.AGENT, "web-1")
        tls = two.tls(one.identities["web-1"])
        async with halfway.sent(two, tls, "POST /agent/certificate", renewal("web-1"), now=1) as request:
            revoked = await one.administer("POST", "/api/v1/certificates/revocations", {"holder": "web-1"})
            assert revoked.status == 200, revoked.body
            reply = await request.answered()
        assert reply.status == 403, reply.body
        assert b"revoked" in reply.body
        assert await count(one, CertificateRow) == [1]


async def test_a_body_that_takes_its_time_is_taken_from_who_may_come_in(tmp_path: Path, halfway: Halfway) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        body = json.dumps(BY_TOKEN["POST /tokens"]).encode()
        async with halfway.sent(lab, lab.tls(), "POST /tokens", body, now=1, token=lab.token) as request:
            assert (await request.answered()).status == 201


async def test_a_heartbeat_that_comes_after_the_revocation_makes_no_process_server_look_alive(
    tmp_path: Path, halfway: Halfway
) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        what, tls = "POST /process-server/heartbeats", lab.tls(lab.identities["ps-1"])
        body, path = heartbeat().encode(), "/api/v1/process-servers/ps-1"
        async with halfway.sent(lab, tls, what, body) as request:
            assert (await request.answered()).status == 200
        now[0] += 60 * 10**9
        async with halfway.sent(lab, tls, what, body, now=1) as request:
            async with lab.running.site.database.write() as session:
                await session.execute(update(CertificateRow).values(revoked_ns=now[0]))
            assert (await request.answered()).status == 403
        assert (await lab.administer("GET", path)).json["heard_age_s"] >= 60


# ---- in the transaction


@pytest.mark.parametrize("what", BY_TOKEN)
async def test_a_token_that_is_revoked_while_its_request_waits_to_write_gives_nothing(
    tmp_path: Path, halfway: Halfway, what: str
) -> None:
    """Everything was looked at and found good; then the revocation got its turn to write first."""
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        made = await lab.running.site.administrators.create_token("mallory", COMMAND_LINE)
        before = await count(lab, *ACCESS)
        content = BY_TOKEN[what]
        body = b"" if content is None else json.dumps(content).encode()
        async with contextlib.AsyncExitStack() as stack:
            async with lab.running.site.database.write() as session:
                request = await stack.enter_async_context(halfway.sent(lab, lab.tls(), what, body, token=made.text))
                (await session.get_one(AdministratorTokenRow, made.identifier)).revoked_ns = 1
            reply = await request.answered()
        assert reply.status == 401, reply.body
        assert await count(lab, *ACCESS) == before
        async with lab.running.site.database.read() as session:
            machine = (await session.scalars(select(MachineRow))).one()
            certificate = (await session.scalars(select(CertificateRow))).one()
        assert (machine.reenrolment_until_ns, certificate.revoked_ns) == (None, None)


@pytest.mark.parametrize("what", ["POST /agent/certificate", f"POST /agent/disks/{DISK}/generations"])
async def test_a_certificate_that_is_revoked_while_its_request_waits_to_write_gives_nothing(
    tmp_path: Path, halfway: Halfway, what: str
) -> None:
    async with driven_site(tmp_path) as site:
        await site.replicate()
        lab, before = site.lab, await count(site.lab, *ACCESS)
        generation = GenerationRequest(
            request=new_id(), reason="test", size_bytes=len(SOURCE[DISK]), granularity_bytes=65536
        )
        body = renewal("web-1") if what.endswith("certificate") else generation.encode()
        async with contextlib.AsyncExitStack() as stack:
            async with lab.running.site.database.write() as session:
                tls = lab.tls(lab.identities["web-1"])
                request = await stack.enter_async_context(halfway.sent(lab, tls, what, body))
                await session.execute(update(CertificateRow).values(revoked_ns=1))
            reply = await request.answered()
        assert reply.status == 403, reply.body
        assert b"revoked" in reply.body
        assert await count(lab, *ACCESS) == before


async def test_keys_are_not_given_to_who_was_revoked_before_they_are_read(tmp_path: Path) -> None:
    async with driven_site(tmp_path) as site:
        await site.replicate()
        assert (await site.grant()).status == 200
        lab, key = site.lab, GenerationKey(DiskId(DISK), GenerationId(1))
        agent, server = (standing_of(lab, name) for name in ("web-1", "ps-1"))
        generations = lab.running.site.generations
        assert (await generations.granted(agent.name.identifier, key, guard=agent)).generation == 1
        assert (await generations.data_key(server.name.identifier, key, guard=server)).generation == 1
        async with lab.running.site.database.write() as session:
            await session.execute(update(CertificateRow).values(revoked_ns=1))
        with pytest.raises(Refused, match="revoked"):
            await generations.granted(agent.name.identifier, key, guard=agent)
        with pytest.raises(Refused, match="revoked"):
            await generations.data_key(server.name.identifier, key, guard=server)


def standing_of(lab: Lab, name: str) -> HolderStanding:
    certificate = lab.identities[name].certificate()
    found = peer_certificate(certificate.public_bytes(serialization.Encoding.DER))
    return HolderStanding(found.name, serial_text(found.serial))


async def test_a_passphrase_that_is_revoked_while_its_machine_waits_to_write_enrols_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        passphrases, checked = lab.running.site.passphrases, asyncio.Event()
        made, really = await passphrases.create(3600.0, COMMAND_LINE), passphrases.check

        async def check(text: str, role: EnrollingRole) -> str:
            identifier = await really(text, role)
            checked.set()
            return identifier

        monkeypatch.setattr(passphrases, "check", check)
        async with lab.running.site.database.write() as session:
            enrolling = asyncio.create_task(lab.enrol(Role.AGENT, "web-1", passphrase=made.text))
            async with asyncio.timeout(DEADLINE_S):
                await checked.wait()
            (await session.get_one(EnrolmentPassphraseRow, made.identifier)).revoked_ns = 1
        with pytest.raises(Refused, match="passphrase"):
            await enrolling
        assert await count(lab, MachineRow, CertificateRow) == [0, 0]


# ---- while he waits for his answer


async def waiting_for_a_job(site: DrivenSite) -> str:
    """The request that waits for the end of a job, which does not come."""
    job = await site.verb("/recovery-points", {})
    return f"GET /jobs/{job['id']}?wait_s={MAX_JOB_WAIT_S:g}"


async def revoke_token(lab: Lab, identifier: str) -> None:
    """As another server of the site does it: nobody here is told."""
    async with lab.running.site.database.write() as session:
        (await session.get_one(AdministratorTokenRow, identifier)).revoked_ns = 1


async def revoke_certificates(lab: Lab) -> None:
    async with lab.running.site.database.write() as session:
        await session.execute(update(CertificateRow).values(revoked_ns=1))


@pytest.mark.parametrize("role", ["reader", "administrator"])
async def test_whose_token_is_revoked_while_he_waits_is_refused_and_not_at_the_end_of_his_wait(
    tmp_path: Path, halfway: Halfway, monkeypatch: pytest.MonkeyPatch, role: Literal["reader", "administrator"]
) -> None:
    monkeypatch.setattr(waiting_request, "LOOK_S", 0.05)
    async with driven_site(tmp_path) as site:
        await site.replicate()
        lab, what = site.lab, await waiting_for_a_job(site)
        made = await lab.running.site.administrators.create_token("mallory", COMMAND_LINE, role=role)
        async with halfway.sent(lab, lab.tls(), what, b"", token=made.text) as request:
            await revoke_token(lab, made.identifier)
            async with asyncio.timeout(MAX_JOB_WAIT_S / 2):
                reply = await request.answered()
        assert (reply.status, b"recovery" in reply.body) == (401, False), reply.body


async def test_whose_certificate_is_revoked_while_he_waits_is_refused_and_not_at_the_end_of_his_wait(
    tmp_path: Path, halfway: Halfway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_request, "LOOK_S", 0.05)
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        waiting = f"GET /agent/desired?after_revision=0&wait_s={MAX_DESIRED_WAIT_S}"
        async with halfway.sent(lab, lab.tls(lab.identities["web-1"]), waiting, b"") as request:
            await revoke_certificates(lab)
            async with asyncio.timeout(MAX_DESIRED_WAIT_S / 2):
                reply = await request.answered()
        assert reply.status == 403, reply.body
        assert b"revoked" in reply.body


async def test_what_comes_after_the_revocation_is_not_given_to_the_revoked(
    tmp_path: Path, halfway: Halfway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News before the next look."""
    monkeypatch.setattr(waiting_request, "LOOK_S", 3600.0)
    async with driven_site(tmp_path) as site:
        await site.replicate()
        lab = site.lab
        made = await lab.running.site.administrators.create_token("mallory", COMMAND_LINE)
        job = await waiting_for_a_job(site)
        desired = f"GET /agent/desired?after_revision={(await site.desired())['revision']}&wait_s={MAX_DESIRED_WAIT_S}"
        async with contextlib.AsyncExitStack() as stack:
            for_job, for_desired = [
                await stack.enter_async_context(halfway.sent(lab, lab.tls(identity), what, b"", token=token))
                for what, identity, token in (
                    (job, None, made.text),
                    (desired, lab.identities["web-1"], ""),
                )
            ]
            await revoke_token(lab, made.identifier)
            await revoke_certificates(lab)
            async with lab.running.site.database.write() as session:
                await session.execute(update(JobRow).values(state="succeeded", ended_ns=1))
                await session.execute(update(MachineRow).values(desired_revision=MachineRow.desired_revision + 1))
            lab.running.site.jobs.wake()
            lab.running.site.feed.wake_here()
            assert [(await each.answered()).status for each in (for_job, for_desired)] == [401, 403]


# ---- what is open at the other server


@pytest.mark.requires("postgresql")
async def test_what_is_open_at_another_server_is_cut_within_a_heartbeat(
    cluster: PostgresqlCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halfway: Halfway
) -> None:
    monkeypatch.setattr(revocations, "LOOK_S", 0.05)
    async with two_servers(tmp_path) as (one, two):
        await one.enrol(Role.AGENT, "web-1")
        await one.enrol(Role.AGENT, "web-2")
        waiting = f"GET /agent/desired?after_revision=0&wait_s={MAX_DESIRED_WAIT_S}"
        async with contextlib.AsyncExitStack() as stack:
            mine, other = [
                await stack.enter_async_context(halfway.sent(two, two.tls(one.identities[name]), waiting, b""))
                for name in ("web-1", "web-2")
            ]
            assert (await one.administer("POST", "/api/v1/certificates/revocations", {"holder": "web-1"})).status == 200
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await mine.answered()
            assert not other.reader.at_eof()
