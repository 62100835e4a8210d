"""Composition root of the process server: builds the real objects, hands them inward, serves until told to stop.

Called by ``cli``. ``running_process_server`` is the whole process server without command line and signals; tests run it in their own
process and replace its ``Surroundings``. Order of a stop: requests end, uploads are broken off, what is acknowledged is durable, the
spool is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from process_server.buffer_arena import MOST_LEASES, BufferArena
from process_server.config import DEFAULT_INTAKE_BUFFER_BYTES, Settings
from process_server.control.config_server_client import ConfigServerClient
from process_server.control.heartbeat import Heartbeat, HeartbeatPeer
from process_server.control.machine_identity import machine_fingerprint
from process_server.control.machine_load import MachineLoad
from process_server.core.backlog import Backlog, GenerationBacklog
from process_server.core.backoff import StoreGate
from process_server.core.epoch_chain import ReceiptFacts
from process_server.core.probe_output import MOST_TRIED, Service
from process_server.core.spool_budget import SpoolBudget, spool_limit_bytes
from process_server.core.upload_schedule import UploadSchedule
from process_server.heap import HeapKeeper
from process_server.intake.back_pressure import BackPressure
from process_server.intake.batch_intake import BatchIntake
from process_server.intake.body import TIMES_AS_A_WHOLE
from process_server.intake.compression_choice import CompressionChoice
from process_server.intake.grants import Grants, GrantSource
from process_server.intake.http_surface import HttpSurface
from process_server.intake.manifest_intake import ManifestIntake
from process_server.intake.peers import Peers
from process_server.intake.sealing import Sealing
from process_server.intake.warm_connections import WarmConnections
from process_server.metrics import ProcessServerMetrics
from process_server.observation import Observation
from process_server.rebuild import damage_of, rebuild_backlog
from process_server.receipt_watch import ReceiptWatch
from process_server.remote.discovery import Discovery, DiscoveryPeer
from process_server.remote.installation import Installation, InstallationPeer
from process_server.remote.installer_cache import InstallerCache, InstallerSource
from process_server.remote.probe import Prober
from process_server.remote.remote_orders import RemoteOrders
from process_server.retirement import Retirement
from process_server.settings_watch import SettingsWatch
from process_server.spool.directory_lock import locked
from process_server.spool.files import DirectoryFiles, SpoolFiles
from process_server.spool.spool import Spool
from process_server.store_inquiry import StoreInquiry
from process_server.throttle import Throttle
from process_server.upload_limits import FILE_NAME, LimitsInForce
from process_server.uploader.manifest_courier import ManifestCourier
from process_server.uploader.segment_uploader import SegmentUploader
from process_server.uploader.upload_room import UploadRoom, most_connections
from replication import __version__
from replication.batch_frame import MAX_BATCH_DATA_BYTES, PROTOCOL_VERSION
from replication.blob_client.api import BlobClient
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.pace import Pace
from replication.blob_client.settings import BlobEndpointSettings
from replication.clock import Clock
from replication.control_plane import EnrolmentAnswer, ProcessServerDesired, RenewalRequest
from replication.data_plane import Hello
from replication.durable_file import make_directory_durably
from replication.errors import InvalidInput, SettingsError
from replication.identifiers import BatchKey, GenerationKey, MachineId
from replication.limits_memory import LimitsMemory
from replication.remote_access import DISCOVERIES, INSTALLATIONS
from replication.renewal import Renewal
from replication.service.connection_figures import ConnectionFigures
from replication.service.health import HealthBoard
from replication.service.https import ListenAddress, RunningServer, start_server
from replication.service.observability import make_registry, start_observability
from replication.service.runtime import Lifecycle
from replication.service_address import ServiceAddress
from replication.state_directory import state_directory_usable
from replication.tls_identity import Role, TlsIdentity
from replication.upload_limits import UploadLimits

SMALL_REQUEST_CONNECTIONS: Final = 4
"""To the store, for manifests, receipts and questions: apart from the segments', which would hold them up."""

INTAKE_LEASE_BYTES: Final = DEFAULT_INTAKE_BUFFER_BYTES // MOST_LEASES
"""Of a larger ``intake.buffer_bytes``, so much allows one more batch at a time."""


class ConfigServer(GrantSource, HeartbeatPeer, DiscoveryPeer, InstallationPeer, InstallerSource, Protocol):
    """The configuration server as a process server uses it."""

    async def renew_certificate(self, request: RenewalRequest) -> EnrolmentAnswer: ...

    async def use_tls(self, tls: ssl.SSLContext) -> None: ...


StoreOpener = Callable[[BlobEndpointSettings, Pace], AbstractAsyncContextManager[BlobClient]]
ConfigServerOpener = Callable[[Sequence[str], ssl.SSLContext], AbstractAsyncContextManager[ConfigServer]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the process server meets outside of its own memory; tests hand in their own."""

    open_store: StoreOpener = HttpBlobClient
    open_config_server: ConfigServerOpener = ConfigServerClient
    open_files: Callable[[Path], SpoolFiles] = DirectoryFiles
    clock: Clock = field(default_factory=Clock)
    chance: Callable[[], float] = random.random
    load: Callable[[], MachineLoad] = MachineLoad


@dataclass(frozen=True, slots=True)
class RunningProcessServer:
    """A process server that answers; ``server.port`` is the bound port."""

    server: RunningServer
    backlog: Backlog
    spool: Spool
    observation: Observation
    schedule: UploadSchedule
    throttle: Throttle
    heartbeat: Heartbeat
    retirement: Retirement
    renewal: Renewal
    orders: RemoteOrders


def _budget(settings: Settings, files: SpoolFiles) -> SpoolBudget:
    with state_directory_usable(settings.state_dir):
        space = files.space()
    limit = spool_limit_bytes(settings.spool.limit_bytes, space.total_bytes)
    try:
        return SpoolBudget(limit)
    except InvalidInput as error:
        raise SettingsError(f"{error.message} in {settings.spool_directory}", hint=error.hint) from error


def _identity(settings: Settings) -> TlsIdentity:
    identity = TlsIdentity(settings.identity_directory)
    if not identity.exists():
        raise SettingsError(
            f"cannot find this process server's identity in {settings.identity_directory}",
            hint="run `process-server enrol` first",
        )
    identity.settle()
    return identity


@contextlib.asynccontextmanager
async def running_process_server(
    settings: Settings,
    board: HealthBoard,
    registry: CollectorRegistry,
    around: Surroundings | None = None,
    *,
    watched_file: Path | None = None,
) -> AsyncIterator[RunningProcessServer]:
    """Serve until the context is left. ``watched_file``: the configuration, whose upload limits are obeyed live.

    :raises SettingsError: identity, address, state directory or account key cannot be used, or another process uses the spool.
    :raises BlockferryError: if the spool's disk fails at the start.
    """
    around = around or Surroundings()
    identity = _identity(settings)
    async with contextlib.AsyncExitStack() as stack:
        with state_directory_usable(settings.state_dir):
            make_directory_durably(settings.spool_directory)
            stack.enter_context(locked(settings.spool_directory))
            files = around.open_files(settings.spool_directory)
            memory = LimitsMemory(settings.state_dir / FILE_NAME, UploadLimits)
        throttle = Throttle(None, around.clock)
        segments = dataclasses.replace(settings.store, connections=most_connections(settings.store.connections))
        bulk = await stack.enter_async_context(around.open_store(segments, throttle))
        small_requests = dataclasses.replace(settings.store, connections=SMALL_REQUEST_CONNECTIONS)
        store = await stack.enter_async_context(around.open_store(small_requests, throttle))
        config_server = await stack.enter_async_context(
            around.open_config_server(settings.config_server.urls, identity.client_context(Role.CONFIG_SERVER))
        )
        watch = None if watched_file is None else SettingsWatch(watched_file, settings)
        site = _Site(settings, board, registry, around, files, bulk, store, config_server, throttle, memory, watch)
        yield await site.start(stack, identity)


class _Site:
    """The objects of one process server and the lines between them."""

    def __init__(
        self,
        settings: Settings,
        board: HealthBoard,
        registry: CollectorRegistry,
        around: Surroundings,
        files: SpoolFiles,
        bulk: BlobClient,
        store: BlobClient,
        config_server: ConfigServer,
        throttle: Throttle,
        memory: LimitsMemory[UploadLimits],
        watch: SettingsWatch | None,
    ) -> None:
        clock, room = around.clock, UploadRoom(settings.store.connections, settings.upload.buffer_bytes)
        self.settings, self.registry = settings, registry
        self.clock, self.board, self.config_server = clock, board, config_server
        self.server: RunningServer | None = None
        self.throttle = throttle
        self.metrics, self.backlog = ProcessServerMetrics(registry), Backlog()
        self.schedule = UploadSchedule(self.backlog, settings.upload.threads_per_machine)
        self.spool = Spool(
            files,
            _budget(settings, files),
            index_bytes=lambda: self.backlog.index_bytes,
            on_group=self.metrics.fsync_groups.observe,
        )
        self.gate = StoreGate()
        self.inquiry = StoreInquiry(store)
        self.receipts = ReceiptWatch(
            store, clock, self._note_receipt, self._note_step_back, self.backlog.doubt_stored, self._is_over
        )
        self.peers = Peers(clock)
        self.grants = Grants(config_server, self.inquiry, clock, self._known_owner)
        level = CompressionChoice(
            settings.intake.compression_level, self.backlog, throttle, self.metrics.segments_sealed
        )
        threads = settings.intake.sealing_threads
        self.sealing = Sealing(self.spool, threads=threads, level=level, unix_ns=clock.unix_ns)
        self.uploader = SegmentUploader(
            self.backlog,
            self.schedule,
            self.spool,
            bulk,
            self.inquiry,
            room,
            self.throttle,
            self.gate,
            clock,
            self.metrics,
            chance=around.chance,
            on_settled=self._note_settled,
        )
        self.limits = LimitsInForce(
            settings.upload.limits,
            memory,
            watch,
            throttle,
            self.schedule,
            board,
            clock,
            self.uploader.wake,
            room=room,
        )
        self.courier = ManifestCourier(
            self.backlog,
            self.spool,
            store,
            self.inquiry,
            self.receipts,
            self.gate,
            clock,
            self.metrics,
            chance=around.chance,
        )
        intake_arena = BufferArena(
            settings.intake.buffer_bytes,
            most_leases=max(MOST_LEASES, settings.intake.buffer_bytes // INTAKE_LEASE_BYTES),
            longest_s=TIMES_AS_A_WHOLE * settings.intake.body_timeout_s,
            on_broken_off=self.metrics.intake_broken_off.inc,
        )
        self.heap = HeapKeeper(clock, lambda: not intake_arena.leased_bytes and not self.schedule.in_flight)
        self.pressure = BackPressure(self.spool.budget, lambda: self.spool.use, throttle.measured_bytes_per_s, clock)
        self.batches = BatchIntake(
            self.backlog,
            self.spool,
            self.sealing,
            intake_arena,
            self.grants,
            self.inquiry,
            self.metrics,
            self.pressure,
            on_segment=self._note_segment,
            on_generation=self._note_generation,
        )
        self.manifests = ManifestIntake(
            self.backlog,
            self.spool,
            self.grants,
            self.inquiry,
            intake_arena,
            self.metrics,
            self.sealing.pool,
            unix_ns=clock.unix_ns,
            on_manifest=self.courier.nudge,
            read_receipt=self.receipts.read_now,
            on_step_back=self._note_step_back,
        )
        self.retirement = Retirement(
            self.backlog,
            self.spool,
            config_server,
            clock,
            self.metrics,
            (self.grants.forget, self.batches.forget, self.receipts.forget, self._forget_idle_machines),
            store_answers=lambda: self.gate.problem is None,
        )
        prober = Prober(clock, self._services)
        discovery = Discovery(config_server, clock, prober, self.metrics, settings.discovery)
        installation = Installation(
            config_server,
            clock,
            prober,
            InstallerCache(config_server, settings.state_dir / "installers"),
            settings.config_server.urls,
            self.metrics,
            settings.discovery,
        )
        self.orders = RemoteOrders({DISCOVERIES: discovery.carry_out, INSTALLATIONS: installation.carry_out})
        self.observation = Observation(
            settings.effective_service_url,
            self.backlog,
            self.spool,
            self.schedule,
            self.uploader,
            self.courier,
            self.gate,
            self.throttle,
            self.pressure,
            self.limits,
            self.peers,
            self.metrics,
            board,
            clock,
            around.load(),
            intake_arena,
        )
        self.heartbeat = Heartbeat(
            config_server,
            clock,
            board,
            settings.config_server.heartbeat_interval_s,
            observe=self.observation.observe,
            apply=self._apply,
            on_answer=self.metrics.config_server_up.set,
        )

    # -- lines between the parts ------------------------------------------------------------------------------

    def _known_owner(self, key: GenerationKey) -> MachineId | None:
        generation = self.backlog.generations.get(key)
        return None if generation is None else generation.machine

    def _note_segment(self, generation: GenerationBacklog) -> None:
        self.schedule.added(generation)
        self.uploader.wake()

    def _note_settled(self, key: BatchKey) -> None:
        self.courier.segment_settled(key)

    def _note_generation(self, key: GenerationKey) -> None:
        self.retirement.ships(key)

    def _forget_idle_machines(self, _key: GenerationKey) -> None:
        self.schedule.forget_idle()

    def _note_receipt(self, key: GenerationKey, facts: ReceiptFacts) -> None:
        generation = self.backlog.generations.get(key)
        if generation is not None:
            generation.chain.learn(facts)
            self.courier.settle(key)

    async def _is_over(self, key: GenerationKey) -> bool:
        return await self.retirement.is_over(key)

    def _note_step_back(self, key: GenerationKey, facts: ReceiptFacts) -> None:
        """The store was put back to an older state: what is known of it is not so any more."""
        self.metrics.store_step_backs.inc()
        generation = self.backlog.generations.get(key)
        if generation is not None:
            generation.chain.step_back(facts)
            self.backlog.doubt_stored(key)
            self.courier.nudge(key)

    def _apply(self, desired: ProcessServerDesired) -> None:
        if self.peers.revoke(desired.revoked_serials) and self.server is not None:
            self.server.end_connections(self.peers.is_revoked)
        self.limits.tell(desired.upload)
        self.orders.wanted(desired.remote_orders)

    def _services(self) -> list[Service]:
        """What a server must reach: a configuration server as this one is told to reach it, and this one as agents are told."""
        control = [ServiceAddress.parse(url) for url in self.settings.config_server.urls]
        data = ServiceAddress.parse(self.settings.effective_service_url)
        return [
            *(Service("configuration server", each.host, each.port) for each in control[:MOST_TRIED]),
            Service("process server", data.host, data.port),
        ]

    # -- start ------------------------------------------------------------------------------------------------

    async def start(self, stack: contextlib.AsyncExitStack, identity: TlsIdentity) -> RunningProcessServer:
        """Recover the spool, start the tasks, listen; ``stack`` undoes it in the reverse order."""
        report = await asyncio.get_running_loop().run_in_executor(
            None, functools.partial(rebuild_backlog, self.spool, self.backlog)
        )
        self.observation.lost_at_start = damage_of(report)
        for key, generation in self.backlog.generations.items():
            self.schedule.added(generation)
            self.courier.nudge(key)
        stack.push_async_callback(self.spool.close)
        stack.callback(self.sealing.close)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for run in (
            self.spool.run,
            self.receipts.run,
            self.courier.run,
            self.uploader.run,
            self.limits.run,
            self.retirement.run,
            self.observation.run,
            self.heartbeat.run,
            self.heap.run,
            self.orders.run,
        ):
            stack.callback(tasks.create_task(run()).cancel)
        surface = HttpSurface(
            Hello(
                server=identity.name().identifier,
                software_version=__version__,
                protocol_min=PROTOCOL_VERSION,
                protocol_max=PROTOCOL_VERSION,
                max_batch_data_bytes=MAX_BATCH_DATA_BYTES,
                max_batches_in_flight=self.settings.intake.batches_in_flight,
            ),
            self.peers,
            self.grants,
            self.batches,
            self.manifests,
            self.receipts,
            self.metrics,
            WarmConnections(),
            self.settings.intake.body_timeout_s,
        )
        server = self.server = await start_server(
            surface.application(),
            ListenAddress.parse(self.settings.listen),
            identity.server_context(require_client=True),
            self.settings.connections,
        )
        stack.push_async_callback(server.close)
        self.registry.register(ConnectionFigures(server.listener))
        renewal = self._renewal(identity, server)
        stack.callback(tasks.create_task(renewal.run()).cancel)
        return RunningProcessServer(
            server,
            self.backlog,
            self.spool,
            self.observation,
            self.schedule,
            self.throttle,
            self.heartbeat,
            self.retirement,
            renewal,
            self.orders,
        )

    def _renewal(self, identity: TlsIdentity, server: RunningServer) -> Renewal:
        async def adopt() -> None:
            server.use_tls(identity.server_context(require_client=True))
            await self.config_server.use_tls(identity.client_context(Role.CONFIG_SERVER))

        return Renewal(
            identity,
            self.settings.config_server.urls,
            machine_fingerprint(self.settings.state_dir),
            self.config_server.renew_certificate,
            adopt,
            self.clock,
            self.board,
        )


async def run(settings: Settings, config_path: Path, lifecycle: Lifecycle) -> None:
    """``process-server run``: serve until ``lifecycle`` says stop."""
    registry, board = make_registry(), HealthBoard()
    observability = await start_observability(settings.observability, board, registry)
    try:
        async with running_process_server(settings, board, registry, watched_file=config_path):
            lifecycle.ready()
            await lifecycle.stopping.wait()
    finally:
        await observability.close()
