"""The configuration server among hostile clients: whatever they send is refused or taken, and the site is served afterwards.

Called by pytest. Every value of every document that an agent or process server sends is replaced by each hostile one; afterwards every
answer to operators must still be made, and the reconciler must still work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config_server.config import Settings
from replication.control_plane import CutoverObservation, Problem, SourceHash
from replication.tls_identity import Role
from tests.harness.config_site import Reply, running_lab
from tests.harness.driven_site import DrivenSite, driven_site
from tests.harness.internal_errors import no_internal_error
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.mutations import INTEGERS, replaced_values
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    new_id,
    observation,
)

__all__ = ["no_internal_error"]

HOSTILE: list[Any] = [-(2**63), 2**63 - 1, 10**40, 1e308, None, "x" * 5000, "\0\u202e\uffff\U0010ffff", []]
RAW = [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'"\\ud800"', b"1e999", b"9" * 10_000,
    b'{"name": "\\ud800"}', b'{"name": NaN}', b" " * 1_000_000,
]  # fmt: skip


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DrivenSite]:
    async with driven_site(tmp_path) as made:
        await made.replicate()
        yield made


def check(reply: Reply, sent: object = None) -> None:
    assert reply.status < 500, (reply.body, str(sent)[:300])
    if reply.status >= 400:
        assert reply.headers["Content-Type"].startswith("application/problem+json")
        assert reply.json["detail"]
        assert len(reply.body) < 4000


async def check_site(site: DrivenSite) -> None:
    """The operators' view can be had, the reconciler works, and an honest agent is served."""
    for path in ("/site", "/servers", "/servers/web-1", "/servers/web-1/readiness", "/protected-items", "/jobs",
                 "/events", "/process-servers", "/protected-items/web-1", "/protected-items/web-1/recovery-points"):  # fmt: skip
        reply = await site.lab.administer("GET", "/api/v1" + path)
        assert reply.status == 200, (path, reply.body)
        json.loads(reply.body)
    await site.settle()
    await site.observe()
    await site.beat()
    assert (await site.item())["state"] == "replicating"


async def test_hostile_values_in_an_agents_inventory(site: DrivenSite) -> None:
    identity = site.lab.identities["web-1"]
    usual = inventory("web-1", [inventory_disk(DISK), inventory_disk(OTHER_DISK, "/dev/sdb")]).model_dump()
    for document in replaced_values(usual, HOSTILE):
        check(await site.lab.request("PUT", "/api/v1/agent/inventory", document, identity=identity), document)
    reply = await site.lab.request("PUT", "/api/v1/agent/inventory", usual, identity=identity)
    assert reply.status < 300
    await check_site(site)


async def test_hostile_values_in_an_agents_observations(site: DrivenSite) -> None:
    identity = site.lab.identities["web-1"]
    cutover = CutoverObservation(
        job=new_id(),
        state="shipping",
        cut=new_id(),
        source_hashes=[SourceHash(disk=DISK, sha256="0" * 64, size_bytes=1)],
        problem=Problem(code="c", message="m", hint="h"),
    )
    revision = (await site.desired())["revision"]
    usual = observation("web-1", [disk_observation(eta_s=1.0, last_freeze_s=0.1)], revision=revision, cutover=cutover)
    for count, document in enumerate(replaced_values(usual.model_dump(), HOSTILE)):
        check(await site.lab.request("POST", "/api/v1/agent/observations", document, identity=identity), document)
        if count % 150 == 0:
            await site.settle()
            check(await site.lab.administer("GET", "/api/v1/protected-items/web-1"), document)
    await check_site(site)


async def test_hostile_values_in_a_process_servers_heartbeat(site: DrivenSite) -> None:
    identity = site.lab.identities["ps-1"]
    for count, document in enumerate(replaced_values(heartbeat().model_dump(), HOSTILE)):
        reply = await site.lab.request("POST", "/api/v1/process-server/heartbeats", document, identity=identity)
        check(reply, document)
        if count % 5 == 0:
            check(await site.lab.administer("GET", "/api/v1/process-servers"), document)
    await site.beat()
    await check_site(site)


async def test_hostile_values_in_a_request_for_a_generation(site: DrivenSite) -> None:
    identity, path = site.lab.identities["web-1"], f"/api/v1/agent/disks/{DISK}/generations"
    usual = {"request": new_id(), "reason": "test", "size_bytes": 2**30, "granularity_bytes": 65536}
    for document in replaced_values(usual, HOSTILE):
        reply = await site.lab.request("POST", path, {**usual, **document} if document else document, identity=identity)
        assert reply.status in (200, 201, 400, 403, 409, 503), reply.body
    await check_site(site)


async def test_hostile_numbers_in_paths_and_queries(site: DrivenSite) -> None:
    agent, server = site.lab.identities["web-1"], site.lab.identities["ps-1"]
    for number in [
        *map(str, INTEGERS),
        "1.5",
        "NaN",
        "inf",
        "-inf",
        "1e400",
        "%00",
        "\u0661",
        "x" * 300,
        "..%2f..",
        "%ff",
    ]:
        for path in (f"/api/v1/agent/disks/{DISK}/generations/{number}", f"/api/v1/agent/desired?after_revision={number}",
                     f"/api/v1/agent/desired?wait_s={number}&after_revision=0", f"/api/v1/agent/disks/{number}/generations/1"):  # fmt: skip
            check(await site.lab.request("GET", path, identity=agent), path)
        path = f"/api/v1/process-server/disks/{DISK}/generations/{number}/key"
        check(await site.lab.request("GET", path, identity=server), path)
        for path in (f"/events?after={number}", f"/events?limit={number}", f"/jobs?after={number}", f"/servers?after={number}",
                     f"/jobs/{number}", f"/servers/{number}", f"/protected-items/{number}",
                     f"/servers/web-1/readiness?disks={number}", f"/protected-items/web-1/recovery-points?after={number}"):  # fmt: skip
            check(await site.lab.administer("GET", "/api/v1" + path), path)
    await check_site(site)


@pytest.mark.parametrize("method_and_path", ["POST /enrolments", "POST /policies", "PUT /agent/inventory"])
async def test_malformed_json_is_refused(site: DrivenSite, method_and_path: str) -> None:
    method, path = method_and_path.split()
    for content in RAW:
        reply = await site.lab.request(
            method, "/api/v1" + path, content, identity=site.lab.identities["web-1"],
            headers={"Authorization": f"Bearer {site.lab.token}"},
        )  # fmt: skip
        check(reply, content)
        assert 400 <= reply.status < 500, content[:50]
        assert reply.json["detail"].startswith("cannot parse")
    await check_site(site)


async def test_hostile_values_in_an_enrolment_enrol_nobody(site: DrivenSite) -> None:
    usual = {
        "role": "agent", "passphrase": "wrong", "signing_request_pem": "none", "hostname": "h", "machine_fingerprint": "f" * 8,
        "service_url": "https://127.0.0.1:1",
    }  # fmt: skip
    for document in replaced_values(usual, HOSTILE):
        reply = await site.lab.request("POST", "/api/v1/enrolments", document)
        assert reply.status in (400, 403, 503), reply.body  # 503: guessing is limited
    assert {server["hostname"] for server in (await site.lab.administer("GET", "/api/v1/servers")).json["items"]} == {
        "web-1"
    }
    await check_site(site)


# -- time -----------------------------------------------------------------------------------------------------


def impatient(settings: Settings) -> Settings:
    return replace(settings, body_timeout_s=0.2)


async def test_a_body_that_never_becomes_whole_ends_and_others_are_served(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), change=impatient, reconcile=False) as lab:
        lines = []
        for sent in (b"", b"{", b'{"role": '):  # before any authentication: anybody can do that
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.running.port, ssl=lab.tls())
            writer.write(b"POST /api/v1/enrolments HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + sent)
            lines.append((reader, writer))
        for reader, writer in lines:
            async with asyncio.timeout(20):
                head = await reader.readuntil(b"\r\n\r\n")
            assert b" 502 " in head.splitlines()[0]
            writer.close()
        assert (await lab.administer("GET", "/api/v1/site")).status == 200


async def test_a_body_that_trickles_has_its_time_as_a_whole(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), change=impatient, reconcile=False) as lab:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.running.port, ssl=lab.tls())
        writer.write(b"POST /api/v1/enrolments HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        async with asyncio.timeout(20):
            while not answer.done():
                with contextlib.suppress(ConnectionError):
                    writer.write(b" ")
                await asyncio.sleep(0.02)  # the pace of the client
        assert b" 502 " in answer.result().splitlines()[0]
        writer.close()


# -- certificates for real ------------------------------------------------------------------------------------


async def test_a_certificate_that_has_expired_does_not_get_through_tls(tmp_path: Path) -> None:
    """Enrolled with a server whose clock stood in the past: the authority itself issued a certificate that is over."""
    past_ns = 1_600_000_000 * 10**9
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        enrolments = lab.running.site.enrolments
        now, enrolments._clock = enrolments._clock, lambda: past_ns
        site_now, lab.running.site.passphrases._clock = lab.running.site.passphrases._clock, lambda: past_ns
        await lab.enrol(Role.AGENT, "late-1")
        enrolments._clock, lab.running.site.passphrases._clock = now, site_now
        with pytest.raises(Exception, match=r"(?i)expired|ssl|reset|disconnected"):
            await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["late-1"])
        await lab.enrol(Role.AGENT, "web-1")
        assert (await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-1"])).status in (
            200,
            204,
        )


async def test_a_certificate_that_expires_while_its_connection_is_open_is_refused_from_then_on(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False, clock=lambda: now_ns) as lab:
        await lab.enrol(Role.AGENT, "web-1")
        identity = lab.identities["web-1"]
        assert (await lab.request("GET", "/api/v1/agent/desired", identity=identity)).status in (200, 204)
        now_ns += 400 * 86400 * 10**9
        reply = await lab.request("GET", "/api/v1/agent/desired", identity=identity)
        assert (reply.status, "expired" in reply.json["detail"]) == (403, True)


async def test_a_reenrolment_revokes_the_certificate_before_it_on_its_open_connection(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        name = await lab.enrol(Role.AGENT, "web-1")
        old = lab.identities["web-1"]
        assert (await lab.request("GET", "/api/v1/agent/desired", identity=old)).status in (200, 204)
        assert (await lab.administer("POST", f"/api/v1/servers/{name.identifier}/reenrolment")).status < 300
        (old.directory).rename(old.directory.with_name("copied"))
        await lab.enrol(Role.AGENT, "web-1")
        reply = await lab.request("GET", "/api/v1/agent/desired", identity=old)
        assert (reply.status, "revoked" in reply.json["detail"]) == (403, True)


async def test_garbage_instead_of_http_is_refused(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        for garbage in GARBAGE:
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.running.port, ssl=lab.tls())
            writer.write(garbage)
            writer.write_eof() if writer.can_write_eof() else None
            async with asyncio.timeout(20):
                answer = await reader.read(2000) if b"\r\n\r\n" in garbage else b""
            assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.0 400"), answer
            writer.close()
        assert (await lab.administer("GET", "/api/v1/site")).status == 200


async def test_a_body_that_is_not_what_its_head_announces_is_refused(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        for path in ("enrolments", "policies", "nothing"):
            reader, writer = await asyncio.open_connection("127.0.0.1", lab.running.port, ssl=lab.tls())
            writer.write(
                f"POST /api/v1/{path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode()
            )
            async with asyncio.timeout(20):
                answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.split()[1] in (b"400", b"401", b"404"), answer
            writer.close()
        assert (await lab.administer("GET", "/api/v1/site")).status == 200


GARBAGE = [
    b"\0" * 100 + b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"\x16\x03\x01",
]


# -- unknown transitions --------------------------------------------------------------------------------------

IMPOSSIBLE_WHILE_REPLICATING = [
    ("POST", "/protected-items/web-1/resume"),
    ("POST", "/protected-items/web-1/test-migration/clean-up"),
    ("POST", "/protected-items/web-1/migration/cancel"),
    ("POST", "/protected-items/web-1/migration/complete"),
    ("POST", "/servers/web-1/protection"),
]


async def test_verbs_that_the_state_does_not_know_are_refused_and_change_nothing(site: DrivenSite) -> None:
    for method, path in IMPOSSIBLE_WHILE_REPLICATING:
        reply = await site.lab.administer(method, "/api/v1" + path, {})
        assert reply.status in (404, 409), (path, reply.body)
        assert reply.json["detail"].startswith("cannot "), reply.body
    await check_site(site)


async def test_an_observation_that_no_state_expects_changes_nothing(site: DrivenSite) -> None:
    """Another item's disk, a generation that was never granted, a cutover that nobody ordered, a phase of another verb."""
    strange = [
        observation("web-1", [disk_observation(new_id())]),
        observation("web-1", [disk_observation(generation=999, applied_epoch=10**6)]),
        observation("web-1", [disk_observation(phase="cutting-over")]),
        observation("web-1", [disk_observation(phase="held")]),
        observation("web-1", [], cutover=CutoverObservation(job=new_id(), state="applied", identity_claimed=True)),
        observation("web-1", [disk_observation(), disk_observation()]),
        observation("web-1", revision=2**62),
    ]
    for document in strange:
        check(
            await site.lab.request(
                "POST", "/api/v1/agent/observations", document, identity=site.lab.identities["web-1"]
            )
        )
        await site.settle()
    await check_site(site)
