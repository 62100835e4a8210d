"""A configuration server with several process servers and protected servers, all scripted, on a clock that the test moves.

Called by the tests of placement over the real API. ``pass_time`` lets seconds pass as they do: heartbeats come, the reconciler looks.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from replication.control_plane import GenerationRequest
from replication.service_address import ServiceAddress
from replication.surroundings import FreeSpace, Reach, ReachResult, Surroundings
from replication.tls_identity import Role
from tests.harness.config_site import Lab, Reply, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import (
    ScriptedWriter,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    new_id,
    observation,
)

DISK_BYTES: Final = 1000
BEAT_S: Final = 2.5


@dataclass
class Site:
    """``silent``: process servers and servers that do not report; ``beats``: what a process server's heartbeat says else."""

    lab: Lab
    writer: ScriptedWriter
    advance: Callable[[float], None]
    silent: set[str] = field(default_factory=set)
    beats: dict[str, dict[str, Any]] = field(default_factory=dict)
    servers: list[str] = field(default_factory=list)

    # ---- who there is

    async def add_process_server(self, name: str) -> str:
        url = f"https://127.0.0.1:{9443 + len(self.beats)}"
        found = await self.lab.enrol(Role.PROCESS_SERVER, name, service_url=url)
        self.beats[name] = {"service_url": url}
        await self.beat([name])
        return found.identifier

    async def protect(self, *names: str) -> None:
        """Enrol, protect, and let initial replication be over."""
        for name in names:
            await self.lab.enrol(Role.AGENT, name)
            report = inventory(
                name, [inventory_disk(self.disk(name), "/dev/sda", DISK_BYTES)], clock_unix_ns=time.time_ns()
            )
            assert (await self.agent(name, "PUT", "/agent/inventory", report)).status == 200
            reply = await self.lab.administer("POST", f"/api/v1/servers/{name}/protection", {})
            assert reply.status == 202, reply.body
            self.servers.append(name)
        await self.observe()
        await self.look()

    @staticmethod
    def disk(name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))

    # ---- what they say

    async def beat(self, names: Iterable[str] | None = None) -> dict[str, Reply]:
        replies = {}
        for name in self.beats if names is None else names:
            if name not in self.silent:
                body = heartbeat(**self.beats[name])
                replies[name] = await self.lab.request(
                    "POST", "/api/v1/process-server/heartbeats", body, identity=self.lab.identities[name]
                )
        return replies

    async def agent(self, name: str, method: str, path: str, body: Any = None) -> Reply:
        return await self.lab.request(method, "/api/v1" + path, body, identity=self.lab.identities[name])

    async def observe(self) -> None:
        for name in self.servers:
            if name not in self.silent:
                body = observation(
                    name,
                    [disk_observation(self.disk(name), size_bytes=DISK_BYTES)],
                    revision=(await self.desired(name))["revision"],
                )
                assert (await self.agent(name, "POST", "/agent/observations", body)).status == 200

    async def desired(self, name: str) -> Any:
        return (await self.agent(name, "GET", "/agent/desired")).json

    async def generation(self, name: str) -> None:
        body = GenerationRequest(request=new_id(), reason="test", size_bytes=DISK_BYTES, granularity_bytes=65536)
        reply = await self.agent(name, "POST", f"/agent/disks/{self.disk(name)}/generations", body)
        assert reply.status == 200, reply.body

    async def data_key(self, process_server: str, name: str) -> Reply:
        path = f"/api/v1/process-server/disks/{self.disk(name)}/generations/1/key"
        return await self.lab.request("GET", path, identity=self.lab.identities[process_server])

    async def reach(self, name: str, results: dict[str, ReachResult]) -> None:
        """What the agent of ``name`` found at process servers, in an inventory."""
        found = [
            Reach(service="process server", host=address.host, port=address.port, result=result)
            for process_server, result in results.items()
            for address in [ServiceAddress.parse(self.beats[process_server]["service_url"])]
        ]
        around = Surroundings(state=FreeSpace(path="/state", free_bytes=2**40), reach=found)
        disks = [inventory_disk(self.disk(name), "/dev/sda", DISK_BYTES)]
        report = inventory(name, disks, clock_unix_ns=time.time_ns()).model_copy(update={"surroundings": around})
        self.advance(0.001)  # each comes at a time of its own
        assert (await self.agent(name, "PUT", "/agent/inventory", report)).status == 200

    # ---- time

    async def look(self) -> None:
        await self.lab.running.reconciler.run_once()
        await self.writer.work()

    async def pass_time(self, seconds: float) -> None:
        """As it passes: everybody who is not silent reports every ``BEAT_S``."""
        left_s = seconds
        while left_s > 0:
            step_s = min(BEAT_S, left_s)
            self.advance(step_s)
            left_s -= step_s
            await self.beat()
            await self.observe()
            await self.look()

    # ---- what the site says

    async def order(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self.lab.administer(method, "/api/v1" + path, body)
        assert reply.status in (200, 202, 204), reply.body
        return reply.json if reply.body else None

    async def item(self, name: str) -> Any:
        return await self.order("GET", f"/protected-items/{name}")

    async def where(self) -> dict[str, str]:
        """The process server that each protected server's agent is told to ship to."""
        names = {server["id"]: server["hostname"] for server in (await self.order("GET", "/process-servers"))["items"]}
        found = {}
        for name in self.servers:
            address = (await self.desired(name))["item"]["process_server"]
            found[name] = "nowhere" if address is None else names[address["identifier"]]
        return found

    async def events(self, kind: str) -> list[str]:
        page = await self.order("GET", "/events?limit=1000")
        return [event["message"] for event in page["items"] if event["kind"] == kind]

    def figures(self) -> dict[tuple[str, tuple[str, ...]], float]:
        families = self.lab.running.reconciler.figures.collect()
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


@contextlib.asynccontextmanager
async def site_of(
    directory: Path, names: tuple[str, ...], moment: list[int] | None = None, store: MemoryBlobClient | None = None
) -> AsyncIterator[Site]:
    """``names``: of its process servers. ``moment``: the clock, nanoseconds in a list, for who looks at it twice."""
    now_ns = moment if moment is not None else [time.time_ns()]
    store = store or MemoryBlobClient()
    writer = ScriptedWriter(store, source={})

    def advance(seconds: float) -> None:
        now_ns[0] += int(seconds * 1e9)

    async with running_lab(directory, store, writer=writer.identity, clock=lambda: now_ns[0], reconcile=False) as lab:
        site = Site(lab, writer, advance)
        await lab.running.reconciler.run_once()
        for name in names:
            await site.add_process_server(name)
        yield site
