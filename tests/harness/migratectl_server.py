"""A configuration server in a thread of its own, whose scripted agent, process servers and writer answer as soon as they are asked.

Called by the tests of ``migratectl``, which runs an event loop of its own; their fixtures are here, too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from config_server.migratectl.cli import main
from replication.control_plane import CutoverObservation
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import (
    DISK,
    ScriptedWriter,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    observation,
    source_hashes,
)

SOURCE = {DISK: b"the only disk" * 50}

Ctl = Callable[..., Result]
"""``migratectl`` with these words, as ``ctl`` runs it."""


class Server:
    """A lab in a thread: a scripted agent and writer answer as soon as they are asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.ready = threading.Event()
        self.stopping = asyncio.Event()
        self.lab: Lab
        self.writer: ScriptedWriter
        self.phase = "replicating"
        self.answering = True
        self.published: set[str] = set()
        self.beating = {"ps-1": "https://127.0.0.1:9443"}

    def start(self) -> None:
        self.thread.start()
        self.serving = asyncio.run_coroutine_threadsafe(self._serve(), self.loop)
        while not self.ready.wait(0.1):
            if self.serving.done():
                self.serving.result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopping.set)
        try:
            self.serving.result(30)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def _serve(self) -> None:
        store = MemoryBlobClient()
        self.writer = ScriptedWriter(store, source=dict(SOURCE))
        async with running_lab(self.directory, store, writer=self.writer.identity) as self.lab:
            await self.lab.enrol(Role.PROCESS_SERVER, "ps-1")
            await self.lab.enrol(Role.AGENT, "web-1")
            disks = [inventory_disk(DISK, "/dev/sda", len(SOURCE[DISK]))]
            report = inventory("web-1", disks, clock_unix_ns=time.time_ns())
            await self.agent("PUT", "/agent/inventory", report)
            peers = asyncio.create_task(self._play_peers())
            await self.stopping.wait()
            peers.cancel()
            await asyncio.wait([peers])

    async def agent(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self.lab.request(method, "/api/v1" + path, body, identity=self.lab.identities["web-1"])
        assert reply.status < 300, reply.body
        return reply.json if reply.body else None

    async def _play_peers(self) -> None:
        """Report, cut what is asked for, work the writer's requests; again and again."""
        while True:
            for name, url in list(self.beating.items()):
                path, identity = "/api/v1/process-server/heartbeats", self.lab.identities[name]
                await self.lab.request("POST", path, heartbeat(url), identity=identity)
            desired = await self.agent("GET", "/agent/desired")
            await self._play_agent(desired)
            await self.writer.work()
            self.ready.set()
            await asyncio.sleep(0.02)

    async def _play_agent(self, desired: Any) -> None:
        item = desired["item"]
        cutover = None
        if item is None:
            await self.agent("POST", "/agent/observations", observation("web-1", [], revision=desired["revision"]))
            return
        if self.answering and (asked := item["point_request"]) and asked["request"] not in self.published:
            self.published.add(asked["request"])
            await self.writer.publish_point(item["item"], asked["request"], time_ns=time.time_ns())
        if self.answering and item["cutover"]:
            cutover = await self._cut_over(item)
        size_bytes = len(SOURCE[DISK])
        seen = disk_observation(
            DISK,
            phase=self.phase,
            size_bytes=size_bytes,
            seeding_total_bytes=size_bytes,
            seeding_done_bytes=size_bytes if self.phase == "replicating" else size_bytes // 2,
        )
        body = observation("web-1", [seen], revision=desired["revision"], cutover=cutover)
        await self.agent("POST", "/agent/observations", body)

    async def _cut_over(self, item: Any) -> CutoverObservation:
        job = item["cutover"]["job"]
        if job not in self.published:
            self.published.add(job)
            await self.writer.publish_point(item["item"], job, time_ns=time.time_ns(), final=True)
        return CutoverObservation(
            job=job, state="applied", cut=job, source_hashes=source_hashes(SOURCE), identity_claimed=True
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("migratectl"))
    try:
        made.start()
        yield made
    finally:  # also when it did not start: its thread would keep the process
        made.stop()


@pytest.fixture
def ctl(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Run ``migratectl`` with the server's address, token and authority in the environment."""
    (tmp_path / "token").write_text(server.lab.token)
    (tmp_path / "authority.pem").write_text(server.lab.authority_pem)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    environment = {
        "BLOCKFERRY_URL": server.lab.url,
        "BLOCKFERRY_TOKEN_FILE": str(tmp_path / "token"),
        "BLOCKFERRY_AUTHORITY": str(tmp_path / "authority.pem"),
    }

    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, list(arguments), env=environment if env is None else env)

    return run
