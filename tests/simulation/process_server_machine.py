"""A process server's machine: its file system with the spool, and the real process server without its HTTP surface.

Used by the simulation. Real: everything that ``process_server.daemon`` puts together (intake, spool, backlog, uploader, courier, receipts,
retirement) but heartbeat, observation and heap; ``serve`` is what its ``start`` does before it listens.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from process_server.config import ConfigServerSettings, Settings
from process_server.core.backlog import SegmentState
from process_server.daemon import ConfigServer, Surroundings, _Site
from process_server.intake.body import Body
from process_server.rebuild import rebuild_backlog
from process_server.spool.files import DirectoryFiles
from process_server.throttle import Throttle
from process_server.upload_limits import FILE_NAME
from replication.blob_client.settings import BlobEndpointSettings
from replication.clock import Clock
from replication.control_plane import DataKeyGrant
from replication.data_plane import MAX_RECEIPT_WAIT_S, BatchAcknowledgement
from replication.epoch_manifest import decode_unverified_manifest, manifest_hash
from replication.errors import PeerUnavailable
from replication.identifiers import BatchKey, EpochId, EpochKey, GenerationKey
from replication.limits_memory import LimitsMemory
from replication.service.health import HealthBoard
from replication.store_layout import REPLICATION_CONTAINER, manifest_name, segment_name
from replication.upload_limits import NO_LIMITS, UploadLimits
from tests.simulation.agent_machine import Intake
from tests.simulation.control_model import MACHINE
from tests.simulation.network import Network, StoreClient
from tests.simulation.oracle import Broken, Oracle
from tests.simulation.virtual_files import VirtualFiles
from tests.simulation.virtual_loop import Process, VirtualLoop

_FILE_CALL_S = 100e-6
_FILE_BYTES = 48 * 1024


class _Content:
    """``Body`` of a request whose bytes have all arrived."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def as_body(self) -> Body:
        return cast("Body", self)

    def length(self, *, at_least: int, at_most: int) -> int:
        assert at_least <= len(self._content) <= at_most
        return len(self._content)

    @property
    def received_bytes(self) -> int:
        return len(self._content)

    async def receive_into(self, view: memoryview) -> None:
        view[:] = self._content

    async def receive(self, *, at_least: int, at_most: int) -> bytearray:
        return bytearray(self._content[: self.length(at_least=at_least, at_most=at_most)])


class _ConfigServer:
    def __init__(
        self, process: Process, ask: Callable[[Process, GenerationKey], Coroutine[Any, Any, DataKeyGrant]]
    ) -> None:
        self._process = process
        self._ask = ask

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        return await self._ask(self._process, key)


class ProcessServerMachine(Intake):
    """``start`` a process, kill it, cut its power. ``acknowledged``: what it has promised to keep."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        network: Network,
        files: VirtualFiles,
        oracle: Oracle,
        chance: Callable[[], float],
        make_store: Callable[[Process], StoreClient],
        ask_key: Callable[[Process, GenerationKey], Coroutine[Any, Any, DataKeyGrant]],
        unix_ns: Callable[[], int],
    ) -> None:
        self.name = name
        self.process: Process | None = None
        self.files = files
        self.is_gone = self.is_doomed = self.is_damaged = False
        self.acknowledged: dict[BatchKey, str] = {}
        self.acknowledged_manifests: dict[EpochKey, tuple[int, bytes]] = {}
        self.ended: Callable[[asyncio.Task[None]], None] = lambda _task: None
        self.spool_limit_bytes = 64 * 2**20
        self._loop = loop
        self._network = network
        self._oracle = oracle
        self._chance = chance
        self._make_store = make_store
        self._ask_key = ask_key
        self._unix_ns = unix_ns
        self._site: _Site | None = None
        self._stopping = asyncio.Event()
        self._settings = Settings(
            ConfigServerSettings("https://config"),
            BlobEndpointSettings("https://store/account", "account", Path("unused"), connections=4),
            state_dir=Path(f"/simulated-{name}/state"),
        )

    # ---- life

    def start(self) -> None:
        process = self.process = Process(self.name, self._loop)
        self._stopping = asyncio.Event()
        task = process.start(self._serve(process))
        task.add_done_callback(self.ended, context=self._loop.world)

    def restart(self) -> None:
        """By the service manager, after it has ended by itself."""
        if self.process is not None and not self.process.is_dead():
            self.kill()
            if not self.is_gone:
                self.start()

    async def _serve(self, process: Process) -> None:
        self._site = None
        around = Surroundings(
            clock=Clock(process.now_s, self._unix_ns, asyncio.sleep),
            chance=self._chance,
            load=cast("Any", lambda: None),
        )
        client = self._make_store(process).as_client()
        site = _Site(
            self._settings,
            HealthBoard(),
            CollectorRegistry(),
            around,
            DirectoryFiles(self._settings.spool_directory),
            client,
            client,
            cast("ConfigServer", _ConfigServer(process, self._ask_key)),
            Throttle(None, around.clock),
            LimitsMemory(self._settings.state_dir / FILE_NAME, UploadLimits),
            None,
        )
        site.limits.tell(NO_LIMITS)  # as its first heartbeat would
        site.spool.budget.file_bytes = _FILE_BYTES
        site.spool.budget.limit_bytes = self.spool_limit_bytes
        site.spool.budget.headroom_bytes = self.spool_limit_bytes // 8
        loop = asyncio.get_running_loop()
        report = await loop.run_in_executor(None, functools.partial(rebuild_backlog, site.spool, site.backlog))
        if not self.is_damaged and [damage for damage in report.damages if damage.acknowledged]:
            raise Broken(f"{self.name} finds acknowledged records damaged: {report.damages}")
        self._judge_promises(site)
        for key, generation in site.backlog.generations.items():
            site.schedule.added(generation)
            site.courier.nudge(key)
        self._site = site
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(run())
                    for run in (
                        site.spool.run,
                        site.receipts.run,
                        site.courier.run,
                        site.uploader.run,
                        site.retirement.run,
                    )
                ]
                await self._stopping.wait()
                for task in running:
                    task.cancel()
        finally:
            await site.spool.close()
        await asyncio.Event().wait()  # until it is buried

    def stop(self) -> None:
        """In good order: the spool is closed."""
        if self._site is not None:
            self._drop_what_was_given_up(self._site)
        self._site = None
        self._stopping.set()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        if self._site is not None:
            self._drop_what_was_given_up(self._site)
        self._site = None

    def _drop_what_was_given_up(self, site: _Site) -> None:
        """What a running process server has given up (superseded, displaced, over) it need not have after its next start."""
        for epoch, (attempt, digest) in list(self.acknowledged_manifests.items()):
            generation = site.backlog.generations.get(epoch.generation_key)
            pending = None if generation is None else generation.pending_manifest(epoch.epoch)
            if pending is None or (pending.manifest_hash != digest and pending.attempt <= attempt):
                del self.acknowledged_manifests[epoch]
        for key in list(self.acknowledged):
            entry = site.backlog.find(key)
            if entry is None or entry.state in (SegmentState.LOST, SegmentState.DISPLACED):
                del self.acknowledged[key]

    def cut_power(self) -> None:
        self.kill()
        self.files.cut_power()

    def lose_everything(self) -> None:
        """Gone for good, with its spool."""
        self.kill()
        self.is_gone = True
        self.acknowledged.clear()

    def damage_record(self) -> bool:
        """Flip a bit of what it keeps; False if that is nothing. What it has promised until now is not held against it any more."""
        directory = self.files.find(str(self._settings.spool_directory))
        files = [each for _, each in sorted(directory.entries.items()) if not each.is_directory and any(each.buffer)]
        if not files:
            return False
        chosen = files[int(self._chance() * len(files))]
        chosen.flip(int(self._chance() * 8 * len(chosen.buffer.rstrip(b"\0"))))
        self.is_damaged = True
        self.acknowledged.clear()
        self.acknowledged_manifests.clear()
        return True

    def act(self, _what: str) -> None:
        self._loop.spend(_FILE_CALL_S)
        process = self._loop.current
        if process is not None:
            process.act("file")

    def forget_promises(self) -> None:
        """The store that was given what this machine had acknowledged was put back to an older state."""
        self.acknowledged.clear()
        self.acknowledged_manifests.clear()

    # ---- P1

    def _judge_promises(self, site: _Site) -> None:
        """What was acknowledged is in the spool, or in the store, or its epoch was decided without it."""
        stores = self._oracle.stores
        for key, tag in list(self.acknowledged.items()):
            entry = site.backlog.find(key)
            if entry is not None and entry.tag.hex() == tag and entry.state is not SegmentState.LOST:
                continue
            del self.acknowledged[key]
            if stores(REPLICATION_CONTAINER, segment_name(key)):
                continue
            if not self._is_over(key.epoch_key):
                raise Broken(f"{self.name} has acknowledged batch {key} and does not have it any more")

        for epoch, (attempt, digest) in list(self.acknowledged_manifests.items()):
            pending = site.backlog.generation(epoch.generation_key, MACHINE).pending_manifest(epoch.epoch)
            if pending is not None and (pending.manifest_hash == digest or pending.attempt > attempt):
                continue
            del self.acknowledged_manifests[epoch]
            if not self._is_over(epoch):
                raise Broken(f"{self.name} has acknowledged the manifest of {epoch} and does not have it any more")

    def _is_over(self, key: EpochKey) -> bool:
        """Nothing that is kept of this epoch can count any more, or its manifest was refused for good."""
        receipt = self._oracle.newest_receipt.get(key.disk)
        if receipt is not None and (receipt.generation, receipt.epoch) >= (key.generation, key.epoch):
            return True
        if receipt is not None and receipt.generation == key.generation and receipt.closed:
            return True
        if self._oracle.stores(REPLICATION_CONTAINER, manifest_name(key)):
            return True
        return any(other.disk == key.disk and other.generation > key.generation for other in self.acknowledged)

    # ---- the surface

    def _running(self) -> _Site:
        if self._site is None:
            raise PeerUnavailable(f"cannot reach {self.name}: it starts")
        return self._site

    async def put_batch(self, key: BatchKey, content: bytes) -> BatchAcknowledgement:
        answer = await self._running().batches.put(key, MACHINE, _Content(content).as_body())
        self.acknowledged[key] = answer.acknowledgement.tag
        return answer.acknowledgement

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        await self._running().manifests.put(key, MACHINE, _Content(encoded).as_body())
        attempt = decode_unverified_manifest(encoded, expected=key).attempt
        before = self.acknowledged_manifests.get(key)
        if before is None or before[0] <= attempt:
            self.acknowledged_manifests[key] = attempt, manifest_hash(encoded)

    async def stored_manifest(self, key: EpochKey) -> bytes:
        return await self._running().manifests.stored(key, MACHINE)

    async def receipt(self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: str | None) -> bytes | None:
        site = self._running()
        await site.grants.check_owner(key, MACHINE)
        found = await site.receipts.wait_for_news(key, after_epoch, min(wait_s, MAX_RECEIPT_WAIT_S), seen)
        return None if found is None else found.content
