"""The whole site under one seed: source machine, two process servers, replica writers, store and configuration server, wired together.

Used by ``simulation``. Everything that happens comes from the seed; ``trace`` says what happened, for a failure and for the test that the
same seed always does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry

from azure_sink.replica_writer import epoch_application
from azure_sink.replica_writer.metrics import WriterMetrics
from azure_sink.replica_writer.replica_writer import ReplicaWriter
from azure_sink.replica_writer.settings import WriterSettings
from mobility_agent.protection import disk_supervisor
from process_server.spool import recovery
from replication.clock import Clock
from replication.control_plane import DataKeyGrant, GenerationGrant, GenerationRequest, ReplicationTiming
from replication.dirty_bitmap import Geometry
from replication.documents import Document, WriterIdentity, WriterPublicKey
from replication.errors import BlockferryError
from replication.identifiers import BatchKey, DiskId, GenerationKey
from replication.service.health import HealthBoard
from replication.store_layout import CONTAINERS, REPLICATION_CONTAINER, parse_epoch_blob_name
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.simulation.agent_machine import STATE, AgentMachine
from tests.simulation.control_model import ControlModel
from tests.simulation.network import Network, StoreClient
from tests.simulation.oracle import Broken, Oracle
from tests.simulation.process_server_machine import ProcessServerMachine
from tests.simulation.redirected_calls import Redirection
from tests.simulation.source_disk import SECTOR_BYTES, KernelHabits, SourceDisk
from tests.simulation.store_trouble import StoreTrouble
from tests.simulation.virtual_files import VirtualFiles
from tests.simulation.virtual_loop import Process, ProcessKilled, VirtualLoop, drive
from tests.simulation.workload import Habits, SimulatedFreezer, Workload, sector_content

EPOCH_NS: Final = 1_760_000_000 * 10**9
GRANULARITY_BYTES: Final = 4096
_BEGINNING: Final = datetime(2026, 1, 1, tzinfo=UTC)
_IDENTITY: Final = WriterIdentity.generate()
_WRITER_LEASE_S: Final = 15


@dataclass(frozen=True, slots=True)
class Shape:
    """What a seed's site looks like."""

    disks: int
    granules: int
    short_by_sectors: int
    tracker: str
    epoch_granules: int
    writers: int
    workload: Habits
    kernel: KernelHabits
    slow_freezes: float
    timing: ReplicationTiming


@functools.cache
def _writer_metrics(_name: str) -> WriterMetrics:
    """Made once: nobody reads them, and making them takes longer than an epoch."""
    return WriterMetrics(CollectorRegistry())


class WriterMachine:
    """One replica writer instance: its lease id is kept over restarts."""

    def __init__(self, name: str, lease_id: str, world: World) -> None:
        self.name = name
        self.process: Process | None = None
        self._lease_id = lease_id
        self._world = world

    def start(self) -> None:
        world = self._world
        process = self.process = Process(self.name, world.loop)
        task = process.start(self._run(process))
        task.add_done_callback(world.note_end(self.name), context=world.loop.world)

    async def _run(self, process: Process) -> None:
        world = self._world
        settings = WriterSettings(
            Path("unused"),
            lease_s=_WRITER_LEASE_S,
            segment_slots=2,
            poll_busy_s=0.2,
            poll_idle_s=2.0,
            sweep_interval_s=20.0,
        )
        writer = ReplicaWriter(
            world.store_of(process).as_client(),
            _IDENTITY,
            self._lease_id,
            settings,
            _writer_metrics(self.name),
            HealthBoard(),
            Clock(process.now_s, functools.partial(world.unix_ns, self.name), asyncio.sleep),
        )
        await writer.run()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class World:
    """Built from a shape and a random generator; the scenario then moves it."""

    def __init__(self, shape: Shape, random: Random, redirection: Redirection, trouble: StoreTrouble) -> None:
        self.shape = shape
        self.random = random
        self.loop = VirtualLoop(random.random)
        self.trace: list[tuple[float, str, str]] = []
        self.failure: BaseException | None = None
        self.is_over = False
        self.store_is_copied = False
        self.clock_offset_ns = 0
        self.clocks_ns: Counter[str] = Counter()
        """By how much the clock of a machine was set; the source's is ``clock_offset_ns``."""
        self._moments: dict[int, float] = {}
        self.account = MemoryBlobClient(self._store_time)
        for container in CONTAINERS:
            drive(self.account.create_container(container))
        self.network = Network(self.loop, random, self.note, trouble)
        self.disks = {DiskId(self.new_id()): self._disk() for _ in range(shape.disks)}
        self.oracle = Oracle(self.account, _IDENTITY.public, self.disks, self.loop.time, self._moments.get, self.note)
        self.workload = Workload(list(self.disks.values()), self.loop, random, shape.workload)
        self._fill_disks()
        self.control_process = Process("config", self.loop)
        self.control = ControlModel(self.store_of(self.control_process).as_client(), _IDENTITY, random)
        self.agent = self._agent(redirection)
        self.process_servers = [self._process_server(f"ps-{n}", redirection) for n in (1, 2)]
        self.writers = [WriterMachine(f"writer-{n}", self.new_id(), self) for n in range(1, shape.writers + 1)]

    # ---- building

    def new_id(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def _disk(self) -> SourceDisk:
        shape = self.shape
        size_bytes = shape.granules * GRANULARITY_BYTES - shape.short_by_sectors * SECTOR_BYTES
        return SourceDisk(Geometry(size_bytes, GRANULARITY_BYTES), self.loop, self.random, shape.kernel)

    def _fill_disks(self) -> None:
        for disk in self.disks.values():
            colours = [self.random.choice((0, 0, 1, 2, 7)) for _ in range(disk.geometry.granules)]
            pieces = (
                sector_content(colours[sector * SECTOR_BYTES // GRANULARITY_BYTES], sector)
                for sector in range(disk.sectors)
            )
            blank = bytes(SECTOR_BYTES)
            disk.fill(
                b"".join(
                    piece if colours[sector * SECTOR_BYTES // GRANULARITY_BYTES] else blank
                    for sector, piece in enumerate(pieces)
                )
            )

    def _files(self, machine: str, redirection: Redirection, directory: Path) -> VirtualFiles:
        files = VirtualFiles(machine, self.random, lambda _what: None)
        redirection.machines[machine] = files
        for place in (directory.parent, directory):
            files.mkdir(str(place))
        for place in (directory.parent.parent, directory.parent, directory):
            files.find(str(place)).sync()
        files.partial = lambda: self.random.random() < 0.5
        return files

    def _agent(self, redirection: Redirection) -> AgentMachine:
        files = self._files("agent", redirection, STATE)
        agent = AgentMachine(
            self.disks,
            self.loop,
            self.network,
            files,
            self.workload,
            SimulatedFreezer(self.workload, self.loop, self.random),
            self.oracle,
            tracker_kind=self.shape.tracker,
            epoch_granules=self.shape.epoch_granules,
            timing=self.shape.timing,
            ask_generation=self._ask_generation,
        )
        files.act = agent.act
        agent.freezer.slow_chance = self.shape.slow_freezes
        agent.ended = self.note_end("agent")
        return agent

    def _process_server(self, name: str, redirection: Redirection) -> ProcessServerMachine:
        files = self._files(name, redirection, Path(f"/simulated-{name}/state/spool"))
        machine = ProcessServerMachine(
            name, self.loop, self.network, files, self.oracle, self.random.random, self.store_of, self._ask_key,
            functools.partial(self.unix_ns, name),
        )  # fmt: skip
        files.act = machine.act
        machine.ended = self.note_end(name, machine.restart)
        return machine

    def store_of(self, process: Process) -> StoreClient:
        return StoreClient(self.account, self.network, process, self.oracle)

    # ---- between machines

    async def _ask_generation(self, process: Process, disk: DiskId, request: GenerationRequest) -> GenerationGrant:
        def call() -> Coroutine[Any, Any, GenerationGrant]:
            return self.control.new_generation(disk, request, self.loop.time() + self.clocks_ns["config"] / 1e9)

        grant = await self.network.ask(process, lambda: self.control_process, "config", call)
        return cast("GenerationGrant", grant)

    async def _ask_key(self, process: Process, key: GenerationKey) -> DataKeyGrant:
        grant = await self.network.ask(
            process, lambda: self.control_process, "config", lambda: self.control.data_key(key)
        )
        return cast("DataKeyGrant", grant)

    def damage_some_segment(self) -> bool:
        """Flip a bit of a segment in the store that is still to be applied; False if there is none."""
        blobs = self.account._containers[REPLICATION_CONTAINER]
        segments = [name for name in sorted(blobs) if isinstance(parse_epoch_blob_name(name), BatchKey)]
        if not segments:
            return False
        name = self.random.choice(segments)
        content = bytearray(blobs[name].content)
        content[self.random.randrange(len(content))] ^= 1
        blobs[name].content = bytes(content)
        self.note("fault", f"segment {name[37:]} is damaged in the store")
        return True

    # ---- time

    def monotonic_s(self) -> float:
        process = self.loop.current
        return self.loop.time() if process is None else process.now_s()

    def unix_ns(self, machine: str) -> int:
        """By the clock of a machine that is not the source."""
        return EPOCH_NS + int(self.loop.time() * 1e9) + self.clocks_ns[machine]

    def _store_time(self) -> datetime:
        return _BEGINNING + timedelta(seconds=self.loop.time() + self.clocks_ns["store"] / 1e9)

    def agent_time_ns(self) -> int:
        """Every answer is another number, so that it tells the moment it was given."""
        now_ns = EPOCH_NS + int(self.loop.time() * 1e9) + self.clock_offset_ns
        while now_ns in self._moments:
            now_ns += 1
        self._moments[now_ns] = self.loop.time()
        return now_ns

    # ---- what happened

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.loop.time(), who, what))

    def note_end(self, name: str, restart: Callable[[], None] | None = None) -> Any:
        """:param restart: as a service manager does, for what a daemon may end with."""

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if _is_death(error):
                return
            if restart is not None and _is_gone_on_with(error):
                self.note(name, f"has ended: {error!r}")
                self.loop.in_world(1.0, restart)
            else:
                self.fail(error or Broken(f"{name} has ended by itself"))

        return ended

    def fail(self, error: BaseException) -> None:
        if self.failure is None and not self.is_over:
            self.failure = error
            self.note("failure", f"{type(error).__name__}: {error}")
            self.loop.stop()

    def on_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not _is_death(error):
            self.fail(error or Broken(str(context.get("message"))))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, the product's modules have this world's clock, chance and devices."""
        keys = Random(self.random.getrandbits(64))
        changed: list[tuple[object, str, object]] = [
            (time, "monotonic", self.monotonic_s),
            (time, "time_ns", self.agent_time_ns),
            (os, "urandom", keys.randbytes),
            (disk_supervisor, "DiskReader", self.agent.reader),
            (epoch_application, "GROUP_SEGMENTS", 2),
            (recovery, "MAX_PAYLOAD_BYTES", 256 * 1024),
            (WriterPublicKey, "open_signed", _opened_once()),
        ]
        with contextlib.ExitStack() as undone:
            for module, name, value in changed:
                undone.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
            yield

    def end(self) -> None:
        """Kill everybody; nothing is left to be collected with an effect."""
        self.is_over = True
        self.agent.kill()
        for process_server in self.process_servers:
            process_server.kill()
        for writer in self.writers:
            writer.kill()
        self.control_process.kill()
        self.loop.end()
        self.loop.close()


def _opened_once() -> Callable[[WriterPublicKey, type[Document], bytes], Document]:
    """``WriterPublicKey.open_signed`` for documents that are read again and again: verified and parsed once by one key."""
    opened: dict[tuple[str, type[Document], bytes], Document] = {}
    open_signed = WriterPublicKey.open_signed

    def open_once(public: WriterPublicKey, kind: type[Document], content: bytes) -> Document:
        key = public.key_id, kind, bytes(content)
        if key not in opened:
            opened[key] = open_signed(public, kind, content)
        return opened[key]

    return open_once


def _is_death(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_death(each) for each in error.exceptions)
    return isinstance(error, ProcessKilled)


def _is_gone_on_with(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_gone_on_with(each) for each in error.exceptions)
    return isinstance(error, BlockferryError)


class TracingHandler(logging.Handler):
    """The product's own log lines in the trace, when a seed is replayed."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = self._world.loop.current
        fields = getattr(record, "fields", "")
        self._world.note("world" if process is None else process.name, f"log: {record.getMessage()} {fields}")


def as_text(error: BaseException) -> str:
    return str(error) if isinstance(error, BlockferryError | AssertionError) else repr(error)
