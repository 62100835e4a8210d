"""The protected server: its disks, their writers, its file system, and the real agent's item session on it.

Used by the simulation. Real: ``ItemSession`` and everything below it (supervisors, sessions, ledger, journal, digest table, shipper, point
coordinator) and the ``EbpfTracker`` or ``ScanTracker``. Modelled: the disks' block layer, freeze and watchdog,
hooks, the uplink's HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import mmap
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.ebpf.objects import KernelObjects
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind, Harvest
from mobility_agent.change_tracker.scan import ScanTracker
from mobility_agent.core.own_writes import StateWrites
from mobility_agent.core.reconciliation import Cause
from mobility_agent.interruption import Interruption
from mobility_agent.protection.disk_session import DiskSession, SessionLimits
from mobility_agent.protection.disk_supervisor import DiskEnvironment
from mobility_agent.protection.item_session import ItemEnvironment, ItemSession, ended
from mobility_agent.protection.point_coordinator import PointCoordinator, PointOutcome
from mobility_agent.quiesce.interface import Mount
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.epoch_shipper import ShippingBuffers
from replication.batch_frame import BatchFrame
from replication.control_plane import (
    DesiredItem,
    GenerationGrant,
    GenerationRequest,
    ProcessServerAddress,
    ReplicationTiming,
    ResyncOrder,
)
from replication.data_plane import BatchAcknowledgement, receipt_digest
from replication.dirty_bitmap import DirtyBitmap, Geometry
from replication.epoch_manifest import manifest_hash
from replication.errors import NotFound
from replication.extents import Extent
from replication.identifiers import CutId, DiskId, EpochId, EpochKey, GenerationKey
from tests.simulation.control_model import ITEM
from tests.simulation.network import TIMEOUT_S, Network
from tests.simulation.oracle import CutTaken, Oracle
from tests.simulation.promises import DiskPromises, PromiseBroken, judge_table
from tests.simulation.source_disk import SourceDisk
from tests.simulation.virtual_files import Inode, VirtualFiles
from tests.simulation.virtual_loop import Process, VirtualLoop
from tests.simulation.workload import SimulatedFreezer, Workload

STATE: Final = Path("/simulated-agent/var/state")
_FILE_CALL_S: Final = 100e-6
_FAILPOINTS: Final = {"sync directory": "name", "sync digests": "table"}
_PROCESS_SERVER: Final = ProcessServerAddress(identifier="44444444-4444-4444-8444-444444444444", url="https://ps")


class SimulatedReader:
    """``DiskReader`` of one process over a simulated disk."""

    def __init__(self, disk: SourceDisk, path: Path, process: Process) -> None:
        self.path = path
        self.size_bytes = disk.geometry.size_bytes
        self._disk = disk
        self._process = process

    def current_size_bytes(self) -> int:
        return self._disk.geometry.size_bytes

    def read_into(self, buffer: memoryview, extent: Extent) -> None:
        self._process.act("read")
        self._disk.read_into(buffer, extent)

    def data_extents(self, within: Extent, granularity_bytes: int) -> Iterator[Extent]:
        yield within

    def close(self) -> None:
        """Nothing is open."""


class Uplink:
    """One agent process's way to one process server: real handlers behind an unreliable network."""

    def __init__(
        self, process: Process, target: Intake, network: Network, promises: Mapping[DiskId, DiskPromises]
    ) -> None:
        self._process = process
        self._promises = promises
        self._target = target
        self._network = network

    async def _ask(self, call: Callable[[], Coroutine[Any, Any, Any]], timeout_s: float = TIMEOUT_S) -> Any:
        return await self._network.ask(self._process, lambda: self._target.process, self._target.name, call, timeout_s)

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        self._promises[frame.key.disk].sent_batch(frame.key, frame.digest)
        content = b"".join((bytes(frame.head), *(bytes(view) for view in frame.data)))
        key = frame.key
        return cast("BatchAcknowledgement", await self._ask(lambda: self._target.put_batch(key, content)))

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        self._promises[key.disk].sent_manifest(key, manifest_hash(encoded))
        await self._ask(lambda: self._target.put_manifest(key, encoded))

    async def stored_manifest(self, key: EpochKey) -> bytes | None:
        try:
            return cast("bytes", await self._ask(lambda: self._target.stored_manifest(key)))
        except NotFound:
            return None

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None:
        digest = None if seen is None else receipt_digest(seen)
        return cast(
            "bytes | None",
            await self._ask(lambda: self._target.receipt(key, after_epoch, wait_s, digest), TIMEOUT_S + wait_s),
        )


class Intake:
    """What an uplink needs of a process server's machine."""

    name: str
    process: Process | None
    is_gone: bool

    async def put_batch(self, key: Any, content: bytes) -> BatchAcknowledgement:
        raise NotImplementedError

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        raise NotImplementedError

    async def stored_manifest(self, key: EpochKey) -> bytes:
        raise NotImplementedError

    async def receipt(self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: str | None) -> bytes | None:
        raise NotImplementedError


class _Coordinator(PointCoordinator):
    """Says which cut it is at."""

    present_cut: str = ""

    async def cut_held(self, item: Any, sessions: Any, cut: CutId, **named: Any) -> PointOutcome:
        self.present_cut = cut
        return await super().cut_held(item, sessions, cut, **named)


class AgentMachine:
    """``start`` an agent process, kill it, cut the machine's power, revert it."""

    def __init__(
        self,
        disks: Mapping[DiskId, SourceDisk],
        loop: VirtualLoop,
        network: Network,
        files: VirtualFiles,
        workload: Workload,
        freezer: SimulatedFreezer,
        oracle: Oracle,
        *,
        tracker_kind: str,
        epoch_granules: int,
        timing: ReplicationTiming,
        ask_generation: Callable[[Process, DiskId, GenerationRequest], Coroutine[Any, Any, GenerationGrant]],
    ) -> None:
        self.disks = disks
        self.files = files
        self.workload = workload
        self.freezer = freezer
        self.process: Process | None = None
        self.item: ItemSession | None = None
        self.target: Intake | None = None
        self.ended: Callable[[asyncio.Task[None]], None] = lambda _task: None
        self._loop = loop
        self._network = network
        self._oracle = oracle
        self._tracker_kind = tracker_kind
        self._epoch_granules = epoch_granules
        self._timing = timing
        self._ask_generation = ask_generation
        self.promises: dict[DiskId, DiskPromises] = {disk: DiskPromises() for disk in disks}
        self._older_digests: Inode | None = None
        self._next_target: Intake | None = None
        self._changed = asyncio.Event()
        self._resyncs: list[ResyncOrder] = []

    # ---- life

    def start(self, target: Intake) -> None:
        self.target, self._changed = target, asyncio.Event()
        process = self.process = Process("agent", self._loop)
        task = process.start(self._run(process, target))
        task.add_done_callback(self.ended, context=self._loop.world)

    async def _run(self, process: Process, target: Intake) -> None:
        """As the daemon does: the item's session ends and begins anew when its process server changes."""
        environment = self._environment(process)
        while True:
            self.target, self._next_target = target, None
            self.item = ItemSession(self._desired(), environment)
            uplink = Uplink(process, target, self._network, self.promises)
            running = asyncio.get_running_loop().create_task(self.item.run(uplink))
            while self._assigned() is None and not running.done():
                self._changed.clear()
                changed = asyncio.get_running_loop().create_task(self._changed.wait())
                await asyncio.wait([running, changed], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self.item.update(self._desired())
            if running.done():
                await running
                return
            await ended(running)
            target = self._assigned() or target

    def _assigned(self) -> Intake | None:
        return self._next_target

    def _desired(self) -> DesiredItem:
        return DesiredItem(
            item=ITEM,
            disks=list(self.disks),
            goal="replicate",
            timing=self._timing,
            process_server=_PROCESS_SERVER,
            resyncs=list(self._resyncs),
        )

    def change_to(self, target: Intake) -> None:
        """Another process server is assigned."""
        self._next_target = target
        self._changed.set()

    def order_resync(self, disk: DiskId, request: str) -> None:
        self._resyncs.append(ResyncOrder(request=request, disk=disk, reason="an operator's order"))
        self._changed.set()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.freezer.is_frozen = False
        self.item = None
        self.workload.let_go()  # the watchdog thaws, the operator's post hook is run

    def lose_digest_files(self) -> None:
        """They are written and never synced: a crash may take any of them, or leave an older one under that name (``epoch_journal``)."""
        for disk in self.disks:
            with contextlib.suppress(FileNotFoundError):
                directory = self.files.find(str(STATE / "disks" / disk))
                names = [name for name in sorted(directory.entries) if name.startswith("digests-")]
                others = [directory.entries[name] for name in reversed(names)]
                others += [] if self._older_digests is None else [self._older_digests]
                for name, other in zip(names, others, strict=False):
                    present = directory.entries.pop(name)
                    if other is not present:
                        directory.entries[name] = other
                    self._older_digests = present

    def cut_power(self) -> None:
        self.kill()
        self.workload.lose_power()
        for disk in self.disks.values():
            disk.lose_power()
        self.files.cut_power()
        self.files.failing_syncs = 0

    def judge_files(self) -> None:
        """The agent is down: its files know all that it acted on. Never called by what strikes: a failure would die with it."""
        with self.files.looked_at():
            self._judge_files()

    def _judge_files(self) -> None:
        for disk, source in self.disks.items():
            directory = STATE / "disks" / disk
            if not directory.exists():
                if self.promises[disk].asked:
                    raise PromiseBroken("the agent's state is gone")
                continue
            self.promises[disk].judge(directory, ITEM)
            judge_table(directory, ITEM, disk, source.geometry, functools.partial(self._oracle.content_at, disk))

    def forget_promises(self) -> None:
        """Its files were replaced by a person."""
        for disk in self.promises:
            self.promises[disk] = DiskPromises()

    def act(self, what: str) -> None:
        """A file of this machine is changed."""
        process = self._loop.current
        if self.freezer.is_frozen and process is self.process and process is not None and not process.is_dead():
            raise AssertionError(f"the agent touches a file while frozen: {what}")
        self._loop.spend(_FILE_CALL_S)
        if process is not None:
            failpoint = _FAILPOINTS.get(what, "file")
            process.act(failpoint if process.fuse_burns_at == failpoint else "file")

    # ---- what it is made of

    def _environment(self, process: Process) -> ItemEnvironment:
        memory = memoryview(mmap.mmap(-1, 16 * 4096))
        coordinator = _Coordinator(self.freezer, memory, self._mounts)
        environment = DiskEnvironment(
            hold_disk=lambda _disk: contextlib.ExitStack(),
            state_dir=STATE,
            granularity_bytes=4096,
            locate=lambda disk: Path(f"/simulated-disks/{disk}"),
            open_tracker=lambda *parts: self._open_tracker(coordinator, *parts),
            config_server=_ConfigServer(process, self.promises, self._ask_generation),
            buffers=ShippingBuffers(3, 4 * 4096),
            batches_in_flight=2,
            limits=SessionLimits(
                epoch_bytes=self._epoch_granules * 4096,
                unconfirmed_epochs=3,
                epoch_interval_s=self._timing.epoch_interval_s,
                scan_interval_s=2.0,
            ),
            seeding_slots=asyncio.Semaphore(1),
            state_writes=StateWrites(self._loop.time),
            holds_state=lambda _path: False,
            echo_wait_s=60.0,
        )
        quiesced = self._quiesced if self._tracker_kind == "scan" else None
        return ItemEnvironment(environment, coordinator, quiesced, claim=_no_claim)

    def reader(self, path: Path, *_others: object) -> SimulatedReader:
        """In place of ``DiskReader``."""
        process = self._loop.current or self.process
        if process is None:
            raise NotFound("there is no agent")
        return SimulatedReader(self.disks[DiskId(path.name)], path, process)

    def _mounts(self, _disks: Sequence[DiskId]) -> Sequence[Mount]:
        return [Mount("/m", "ext4", "/dev/d", (7, 0))]

    @contextlib.asynccontextmanager
    async def _quiesced(self) -> AsyncIterator[None]:
        self.workload.hold(raw_too=True)
        try:
            yield
        finally:
            self.workload.let_go()

    def _open_tracker(
        self,
        coordinator: _Coordinator,
        disk: DiskId,
        reader: DiskReader,
        geometry: Geometry,
        table: DigestTable,
        interruption: Interruption,
    ) -> ChangeTracker:
        tracker: ChangeTracker
        if self._tracker_kind == "scan":
            tracker = ScanTracker(reader, geometry, table, is_cancelled=interruption.is_interrupted)
        else:
            tracker = self._attached(disk, geometry)
        harvest_now, forget_now = tracker.begin_harvest, tracker.commit_harvest
        promises, was_doubted = self.promises[disk], [False]

        def commit_harvest(journal_serial: int = 0) -> None:
            forget_now(journal_serial)
            promises.forgotten_serial = max(promises.forgotten_serial, journal_serial)
            self._pass("doubt" if was_doubted.pop() else "commit")

        tracker.commit_harvest = commit_harvest  # type: ignore[method-assign]

        def begin_harvest(into: DirtyBitmap | None = None) -> Harvest:
            harvest = harvest_now(into)
            was_doubted[:] = [harvest.doubt.kind is DoubtKind.RESYNC]
            self._pass("doubt found" if was_doubted[0] else "harvest")
            if self.freezer.is_frozen or self.workload.is_quiesced:
                self._note_cut(coordinator.present_cut)
            return harvest

        tracker.begin_harvest = begin_harvest  # type: ignore[method-assign]
        return tracker

    def _pass(self, failpoint: str) -> None:
        process = self._loop.current
        if process is not None:
            process.act(failpoint)

    def _attached(self, disk: DiskId, geometry: Geometry) -> EbpfTracker:
        source = self.disks[disk]
        is_pinned = source.tracking is not None
        if not is_pinned:
            source.begin_tracking()
        tracker = EbpfTracker(
            Path(f"/simulated-disks/{disk}"),
            geometry,
            cast("KernelCounters", source),
            cast("KernelObjects", source),
            None,
            source.wait_for_programs,
        )
        if is_pinned:
            tracker._continue()
        else:
            tracker._begin(Cause.TRACKING_BEGAN)
        return tracker

    def _note_cut(self, cut: str) -> None:
        now_s = self._loop.time()
        media = {disk: bytes(source.medium) for disk, source in self.disks.items()}
        taken = CutTaken(now_s, media)
        takes = self._oracle.cuts.setdefault(cut, [])
        takes.append(taken)

        def spoil() -> None:
            if taken in takes:
                takes.remove(taken)

        self.freezer.on_spoiled = spoil


class _ConfigServer:
    """``GenerationSource``."""

    def __init__(
        self,
        process: Process,
        promises: Mapping[DiskId, DiskPromises],
        ask: Callable[[Process, DiskId, GenerationRequest], Coroutine[Any, Any, GenerationGrant]],
    ) -> None:
        self._process = process
        self._promises = promises
        self._ask = ask

    async def new_generation(self, disk: DiskId, request: GenerationRequest) -> GenerationGrant:
        promises = self._promises[disk]
        promises.asked = request.request
        promises.requests.add(request.request)
        grant = await self._ask(self._process, disk, request)
        promises.grants[request.request] = grant.generation
        return grant


def _no_claim(_session: DiskSession) -> Any:
    raise NotImplementedError
