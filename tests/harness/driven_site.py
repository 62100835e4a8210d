"""A site with one process server and one server of two disks, driven step by step over the real API, with a scripted agent and writer.

Called by the tests of the configuration server's verbs and reconciler. Nothing moves but what a test makes move: ``settle`` lets the
reconciler and the writer work until nothing more is to be done.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from replication.control_plane import CutoverObservation, GenerationRequest, Problem
from replication.tls_identity import Role
from tests.harness.changed_rows import changed_rows
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    ScriptedWriter,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    new_id,
    observation,
    source_hashes,
)

SOURCE: Final = {DISK: b"first disk" * 100, OTHER_DISK: b"second disk" * 70}
DISKS: Final = [
    inventory_disk(DISK, "/dev/sda", len(SOURCE[DISK])),
    inventory_disk(OTHER_DISK, "/dev/sdb", len(SOURCE[OTHER_DISK])),
]
_MOST_PASSES: Final = 4


class DrivenSite:
    """``lab`` is the running server, ``writer`` the scripted one."""

    def __init__(self, lab: Lab, writer: ScriptedWriter) -> None:
        self.lab = lab
        self.writer = writer

    async def prepare(self) -> None:
        await self.lab.enrol(Role.PROCESS_SERVER, "ps-1")
        await self.lab.enrol(Role.AGENT, "web-1")
        await self.beat()
        reply = await self.agent("PUT", "/agent/inventory", inventory("web-1", DISKS, clock_unix_ns=time.time_ns()))
        assert reply.status == 200, reply.body
        await self.observe([])
        await self.settle()

    async def beat(self) -> None:
        reply = await self.lab.request(
            "POST", "/api/v1/process-server/heartbeats", heartbeat(), identity=self.lab.identities["ps-1"]
        )
        assert reply.status == 200, reply.body

    async def agent(self, method: str, path: str, body: Any = None) -> Any:
        return await self.lab.request(method, "/api/v1" + path, body, identity=self.lab.identities["web-1"])

    async def observe(
        self,
        disks: list[Any] | None = None,
        *,
        cutover: CutoverObservation | None = None,
        problem: Problem | None = None,
        revision: int | None = None,
    ) -> None:
        both = [disk_observation(disk, size_bytes=len(content)) for disk, content in SOURCE.items()]
        seen = revision if revision is not None else (await self.desired())["revision"]
        shown = both if disks is None else disks
        body = observation("web-1", shown, cutover=cutover, problem=problem, revision=seen)
        reply = await self.agent("POST", "/agent/observations", body)
        assert reply.status == 200, reply.body

    async def desired(self) -> Any:
        return (await self.agent("GET", "/agent/desired")).json

    async def settle(self) -> None:
        """Let server and writer work until nothing more is to be done: the last pass changes no row and asks the writer for nothing."""
        with changed_rows(self.lab.running.site.database) as rows:
            for _ in range(_MOST_PASSES):
                before = rows.changed, len(self.writer.worked)
                self.lab.running.reconciler.look_around_soon()  # or a pass may find nothing because it does not look yet
                await self.lab.running.reconciler.run_once()
                await self.writer.work()
                if (rows.changed, len(self.writer.worked)) == before:
                    return

    async def verb(self, path: str, body: dict[str, Any] | None = None) -> Any:
        reply = await self.lab.administer("POST", f"/api/v1/protected-items/web-1{path}", body)
        assert reply.status in (200, 202), reply.body
        return reply.json

    async def item(self) -> Any:
        return (await self.lab.administer("GET", "/api/v1/protected-items/web-1")).json

    async def job(self, identifier: str) -> Any:
        return (await self.lab.administer("GET", f"/api/v1/jobs/{identifier}")).json

    async def protect(self) -> Any:
        reply = await self.lab.administer("POST", "/api/v1/servers/web-1/protection", {})
        assert reply.status == 202, reply.body
        return reply.json

    async def replicate(self) -> str:
        """Protected, seeded, replicating; returns the item."""
        job = await self.protect()
        await self.observe()
        await self.settle()
        assert (await self.item())["state"] == "replicating"
        return str(job["item"])

    async def grant(self, disk: str = DISK, request: str | None = None, reason: str = "test") -> Any:
        body = GenerationRequest(
            request=request or new_id(), reason=reason, size_bytes=len(SOURCE[disk]), granularity_bytes=65536
        )
        return await self.agent("POST", f"/agent/disks/{disk}/generations", body)


@contextlib.asynccontextmanager
async def driven_site(
    directory: Path, clock: Callable[[], int] = time.time_ns, monotonic: Callable[[], float] | None = None
) -> AsyncIterator[DrivenSite]:
    """Enrolled, reported and heard; nothing is protected yet."""
    store = MemoryBlobClient()
    writer = ScriptedWriter(store, source=dict(SOURCE))
    async with running_lab(
        directory, store, writer=writer.identity, clock=clock, monotonic=monotonic, reconcile=False
    ) as lab:
        site = DrivenSite(lab, writer)
        await lab.running.reconciler.run_once()
        await site.prepare()
        yield site


def final_cut(job: str) -> str:
    """The cut that the scripted agent makes for a job."""
    return str(uuid.uuid5(uuid.UUID(job), "final"))


def applied(job: str, **changes: Any) -> CutoverObservation:
    whole = sum(len(content) for content in SOURCE.values())
    usual = CutoverObservation(
        job=job,
        state="applied",
        cut=changes.get("cut", final_cut(job)),
        hashed_bytes=whole,
        total_bytes=whole,
        source_hashes=source_hashes(SOURCE),
        identity_claimed=True,
    )
    return CutoverObservation.model_validate(usual.model_dump() | changes)
