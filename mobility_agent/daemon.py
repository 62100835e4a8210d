"""Composition root of the agent: builds the real objects, hands them inward, and follows the desired state until asked to stop.

Called by ``cli``. Its tasks: report the inventory, report observations, wait for desired state, run the protected item accordingly, keep
to the limits, discard what is kept of disks that are not protected any more, and renew the certificate. The newest desired state is kept
on disk, so that replication goes on after a restart while the configuration server is down. An error that nobody expected ends the agent:
recovery is the normal start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import logging
import mmap
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mobility_agent.block_device.claim import Claim
from mobility_agent.block_device.identity import DiskIdentity
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, MachineFacts, read_machine_facts
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import ChangeTracker
from mobility_agent.changes import Changes
from mobility_agent.churn_profiler import ChurnProfiler
from mobility_agent.config import AgentSettings
from mobility_agent.config_server_client import ConfigServerClient
from mobility_agent.core.own_writes import StateWrites
from mobility_agent.core.report_pace import ReportPace
from mobility_agent.desired_memory import DesiredMemory
from mobility_agent.disk_memory import DISKS_DIRECTORY, DiskMemory
from mobility_agent.inventory import locate_disk, take_inventory
from mobility_agent.limits_in_force import LimitsInForce, open_memory
from mobility_agent.observations import DiskMetrics, observe_item, standing
from mobility_agent.pace import Pace
from mobility_agent.protection.disk_session import DiskSession, SessionLimits
from mobility_agent.protection.disk_supervisor import DiskEnvironment
from mobility_agent.protection.item_session import ItemEnvironment, ItemSession, ended, runs, structure_of
from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.protection.resting_disk import RestingDisks, look_at_all
from mobility_agent.quiesce.file_systems import file_systems_on
from mobility_agent.quiesce.freeze_guard import FreezeGuard
from mobility_agent.quiesce.freeze_record import FreezeRecord, record_of
from mobility_agent.quiesce.hooks import QuiesceHooks
from mobility_agent.quiesce.interface import Mount
from mobility_agent.quiesce.locked_memory import LockedBuffer
from mobility_agent.shipping.epoch_shipper import ShippingBuffers, backoff_s
from mobility_agent.shipping.process_server_client import ProcessServerClient
from mobility_agent.sole_agent import hold_disk, hold_machine
from mobility_agent.state_place import lies_on
from mobility_agent.surroundings import look_around
from mobility_agent.tracker_choice import discard_tracking, open_tracker, prepare_tracking, tracking_at_rest
from mobility_agent.unprotected_disks import UnprotectedDisks
from replication import __version__
from replication.clock import Clock
from replication.control_plane import (
    AgentDesired,
    AgentObservation,
    DesiredItem,
    InventoryAnswer,
    MachineInventory,
    ProcessServerAddress,
)
from replication.errors import BlockferryError, Refused, Retryable, SettingsError
from replication.failpoint import reached
from replication.identifiers import DiskId
from replication.renewal import Renewal
from replication.service.health import HealthBoard, HealthState
from replication.service.observability import make_registry, start_observability
from replication.service.runtime import Lifecycle
from replication.state_directory import make_state_directory, state_directory_usable
from replication.surroundings import Surroundings
from replication.tls_identity import ExpectedPeer, Role, TlsIdentity

DESIRED_WAIT_S: Final = 30.0
INVENTORY_INTERVAL_S: Final = 300.0
UNREACHED_INTERVAL_S: Final = 30.0
RETRY_S: Final = 2.0
DISCARD_POLL_S: Final = 5.0
MIN_REPORT_GAP_S: Final = 0.2
"""However often something happens, reports are this far apart: ``ReportPace``."""
MIN_EPOCH_INTERVAL_S: Final = 0.1
ECHO_WAIT_INTERVALS: Final = 2.0
"""Recovery points take along what waits as the agent's own doing (R10); if none is made for so many intervals, it waits no longer."""
_DESIRED_FILE: Final = "desired.json"
_LOCK_FILE: Final = "lock"

_logger = logging.getLogger(__name__)


async def run(settings: AgentSettings, lifecycle: Lifecycle) -> None:
    """Serve until ``lifecycle.stopping``.

    :raises SettingsError: if the agent is not enrolled, the state directory cannot be used, or another one uses it or a copy of it.
    """
    identity = TlsIdentity(settings.identity_dir)
    if not identity.exists():
        raise SettingsError(
            f"cannot run: there is no identity in {settings.identity_dir}", hint="run `mobility-agent enrol` first"
        )
    machine = identity.name().identifier
    with contextlib.ExitStack() as held:
        held.callback(hold_machine(machine).close)
        # Before the first write: what waits for the thaw may be the file system with the agent's own state.
        FreezeGuard(FreezeRecord(record_of(machine))).thaw_left()
        identity.settle()
        make_state_directory(settings.state_dir)
        with state_directory_usable(settings.state_dir):
            held.callback(os.close, _lock_state(settings.state_dir))
        agent = Agent(settings.within_memory(), identity, held)
        await agent.run(lifecycle)


def _lock_state(directory: Path) -> int:
    descriptor = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SettingsError(
            f"cannot use {directory}: another agent runs on it", hint="stop it, or choose another state_dir"
        ) from None
    return descriptor


class Agent:
    """The running agent."""

    def __init__(self, settings: AgentSettings, identity: TlsIdentity, held: contextlib.ExitStack) -> None:
        self._settings = settings
        self._identity = identity
        self._facts: MachineFacts = read_machine_facts(substitute=settings.state_dir / MACHINE_ID_FILE)
        self._control = ConfigServerClient(settings.config_server.urls, identity.client_context(Role.CONFIG_SERVER))
        self._assigned = ExpectedPeer(Role.PROCESS_SERVER)
        self._uplink_tls = identity.client_context(self._assigned)
        self._uplink: ProcessServerClient | None = None
        self._board = HealthBoard()
        self._metrics = DiskMetrics()
        self._memory_of_desired = DesiredMemory(settings.state_dir / _DESIRED_FILE)
        self._desired_changed = asyncio.Event()
        self._changes = Changes()
        self._report_pace = ReportPace(min(MIN_REPORT_GAP_S, settings.heartbeat_s))
        self._surroundings: Surroundings | None = None
        self._item: ItemSession | None = None
        self._freeze_guard = FreezeGuard(FreezeRecord(record_of(identity.name().identifier)))
        held.callback(self._freeze_guard.close)
        self._memory = _reserve(settings.quiesce.last_round_bytes)
        self._state_writes = StateWrites(time.monotonic)
        self._pace = Pace(Clock())
        self._limits = LimitsInForce(
            settings.limits.of_agent,
            open_memory(settings.state_dir),
            self._pace,
            Clock(),
            memory_bytes=settings.limits.memory_bytes,
            note_write=self._state_writes.note,
        )
        self._heard_desired = False
        self._incarnation = str(uuid.uuid4())
        self._refused = ""
        """Why the configuration server refuses what this agent reports, as was logged last."""
        self._disk_memory = DiskMemory(settings.state_dir / DISKS_DIRECTORY)
        self._profiler = ChurnProfiler(self._attach_unpinned, Clock())
        self._unprotected = UnprotectedDisks(
            settings.state_dir / DISKS_DIRECTORY,
            functools.partial(discard_tracking, settings.tracker),
            settings.keep_unprotected_s,
        )

    @property
    def _wanted(self) -> DesiredItem | None:
        desired = self._memory_of_desired.desired
        return None if desired is None else desired.item

    async def run(self, lifecycle: Lifecycle) -> None:
        registry = make_registry()
        registry.register(self._metrics)
        registry.register(self._limits)
        observability = await start_observability(self._settings.observability, self._board, registry)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._follow_profile()
                running = [
                    tasks.create_task(self._report_inventory()),
                    tasks.create_task(self._report_observations()),
                    tasks.create_task(self._follow_desired()),
                    tasks.create_task(self._run_items(tasks)),
                    tasks.create_task(self._discard_unprotected()),
                    tasks.create_task(self._renewal().run()),
                    tasks.create_task(self._profiler.run()),
                    tasks.create_task(self._limits.run()),
                ]
                lifecycle.ready()
                await lifecycle.stopping.wait()
                for task in running:
                    task.cancel()
        finally:
            await self._control.close()
            await observability.close()

    def _renewal(self) -> Renewal:
        return Renewal(
            self._identity,
            self._settings.config_server.urls,
            self._facts.fingerprint,
            self._control.renew_certificate,
            self._adopt_certificate,
            Clock(),
            self._board,
            note_write=self._state_writes.note,
        )

    async def _adopt_certificate(self) -> None:
        """Another certificate is in place: what begins from now on shows it."""
        self._uplink_tls = self._identity.client_context(self._assigned)
        await self._control.use_tls(self._identity.client_context(Role.CONFIG_SERVER))
        if self._uplink is not None:
            await self._uplink.use_tls(self._uplink_tls)

    # ---- control plane

    async def _report_inventory(self) -> None:
        while True:
            try:
                inventory = await asyncio.to_thread(self._take_inventory)
                answer = await self._put_inventory(inventory)
                if answer is not None:
                    await self._look_around(inventory, answer.process_servers)
                if self._wanted is None:  # the next thing may be an order to protect
                    await asyncio.to_thread(prepare_tracking, self._settings.tracker)
                await self._until_next_inventory(inventory, () if answer is None else answer.process_servers)
            except (BlockferryError, OSError) as error:
                self._surroundings = None  # an older configuration server may not know what they are
                _logger.warning("cannot report the inventory", extra={"fields": {"error": str(error)}})
                await asyncio.sleep(RETRY_S)

    def _take_inventory(self) -> MachineInventory:
        inventory = take_inventory(self._facts, self._settings.disk_files, self._disk_memory.known())
        return inventory.model_copy(update={"surroundings": self._surroundings})

    async def _put_inventory(self, inventory: MachineInventory) -> InventoryAnswer | None:
        """The clock is compared on arrival: it is that of now, however long ago the disks were looked at."""
        return await self._control.put_inventory(inventory.model_copy(update={"clock_unix_ns": time.time_ns()}))

    async def _until_next_inventory(self, inventory: MachineInventory, servers: Sequence[ProcessServerAddress]) -> None:
        """Process servers are tried again while one is out of reach. Who knows of none asks again sooner, if he waits to be protected."""
        asks_soon = self._surroundings is not None and not servers and self._wanted is None
        due_s = time.monotonic() + (UNREACHED_INTERVAL_S if asks_soon else INVENTORY_INTERVAL_S)
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, UNREACHED_INTERVAL_S))
            if self._surroundings is not None and any(reach.result != "open" for reach in self._surroundings.reach):
                await self._look_around(inventory, servers)

    async def _look_around(self, inventory: MachineInventory, servers: Sequence[ProcessServerAddress]) -> None:
        """What is found goes with the next inventory; with this one again if it is another reach than was told last."""
        told, found = self._surroundings, await look_around(self._settings.state_dir, servers)
        found = found.model_copy(update={"granule_bytes": self._settings.tracker.granularity_bytes})
        self._surroundings = found
        if told is None or told.reach != found.reach:
            await self._put_inventory(inventory.model_copy(update={"surroundings": found}))

    async def _report_observations(self) -> None:
        """At each heartbeat, and as soon as something has become different that a job or an operator may wait for."""
        while True:
            told = self._standing()
            self._report_pace.note(time.monotonic())
            try:
                answer = await self._control.post_observation(self._observe())
                if answer is not None:
                    self._limits.tell(answer.limits)
                self._board.report("config-server", HealthState.OK)
                self._refused = ""
            except BlockferryError as error:
                self._board.report("config-server", HealthState.DEGRADED, str(error))
                if isinstance(error, Refused) and self._refused != str(error):
                    self._refused = str(error)
                    _logger.warning(
                        "the configuration server refuses this agent", extra={"fields": {"error": str(error)}}
                    )
            self._report_health()
            await self._wait_to_report(told)

    async def _wait_to_report(self, told: tuple[object, ...]) -> None:
        due_s = time.monotonic() + self._settings.heartbeat_s
        while self._standing() == told and (left_s := due_s - time.monotonic()) > 0:
            await self._changes.beyond(self._changes.count, left_s)
        await asyncio.sleep(self._report_pace.wait_s(time.monotonic()))

    def _standing(self) -> tuple[object, ...]:
        return self._memory_of_desired.revision, *standing(self._item)

    def _observe(self) -> AgentObservation:
        item = self._item
        return AgentObservation(
            agent_version=__version__,
            machine_fingerprint=self._facts.fingerprint,
            incarnation=self._incarnation,
            revision=self._memory_of_desired.revision,
            disks=[] if item is None else observe_item(item),
            cutover=None if item is None else item.cutover,
            problem=None if item is None else item.point_problem,
            profile=self._profiler.observe(),
            limits=self._limits.observe(),
        )

    def _report_health(self) -> None:
        item = self._item
        for supervisor in () if item is None else item.supervisors.values():
            problem = supervisor.problem
            state = HealthState.OK if problem is None else HealthState.DEGRADED
            self._board.report(f"disk {supervisor.disk}", state, "" if problem is None else problem.message)

    async def _follow_desired(self) -> None:
        while True:
            try:
                desired = await self._control.desired(self._memory_of_desired.revision, DESIRED_WAIT_S)
            except BlockferryError as error:
                _logger.debug("cannot ask for the desired state", extra={"fields": {"error": str(error)}})
                asked_s = error.retry_after_s if isinstance(error, Retryable) else None
                await asyncio.sleep(backoff_s(1, RETRY_S if asked_s is None else asked_s))
                continue
            self._heard_desired = True
            if desired is not None and desired != self._memory_of_desired.desired:
                await self._take(desired)

    async def _take(self, desired: AgentDesired) -> None:
        self._state_writes.note()
        try:
            await asyncio.to_thread(self._memory_of_desired.take, desired)
        except OSError as error:
            _logger.warning("cannot remember the desired state", extra={"fields": {"error": str(error)}})
        reached("agent.desired.remembered")
        self._desired_changed.set()
        self._changes.tell()
        self._follow_profile()

    def _follow_profile(self) -> None:
        desired = self._memory_of_desired.desired
        wanted = self._wanted
        self._profiler.follow(None if desired is None else desired.profile, () if wanted is None else wanted.disks)

    def _attach_unpinned(self, disk: DiskId) -> ChangeTracker:
        return EbpfTracker.attach(self._locate(disk), granularity_bytes=self._settings.tracker.granularity_bytes)

    # ---- the protected item

    async def _run_items(self, tasks: asyncio.TaskGroup) -> None:
        """Run the item that is desired; end and begin anew when its structure changes."""
        running: asyncio.Task[None] | None = None
        try:
            while True:
                wanted = self._wanted
                present = None if self._item is None else structure_of(self._item.desired)
                if wanted is None or structure_of(wanted) != present:
                    if running is not None:
                        await ended(running)
                    running = None
                    resting: RestingDisks = {}
                    if wanted is not None and not runs(wanted):
                        resting = await asyncio.to_thread(self._look_at_rest, wanted.disks)
                    _tell_change(None if self._item is None else self._item.desired, wanted)
                    self._forget_item()
                    if wanted is not None:
                        self._item = self._metrics.item = ItemSession(wanted, self._item_environment(wanted), resting)
                        if runs(wanted) and wanted.process_server is not None:
                            running = tasks.create_task(self._replicate(self._item, wanted.process_server))
                elif self._item is not None:
                    self._item.update(wanted)
                await self._desired_changed.wait()
                self._desired_changed.clear()
        finally:
            if running is not None:
                await ended(running)

    async def _discard_unprotected(self) -> None:
        """On the word of the configuration server only, not on what is remembered of it, nor on a word that it never gave."""
        while True:
            await asyncio.sleep(DISCARD_POLL_S)
            wanted = self._wanted
            disks = set() if wanted is None else set(wanted.disks)
            may_destroy = self._heard_desired and self._memory_of_desired.may_destroy
            await asyncio.to_thread(
                self._unprotected.discard_due, disks, may_destroy=may_destroy, now_s=time.monotonic()
            )

    async def _replicate(self, item: ItemSession, address: ProcessServerAddress) -> None:
        shipping = self._settings.shipping
        self._assigned.identifier = (
            address.identifier
        )  # nobody else at this address is shipped to; one uplink at a time
        uplink = ProcessServerClient(
            address.url,
            self._uplink_tls,
            connections=shipping.buffers + 2 * len(item.supervisors),
            timeout_s=shipping.request_timeout_s,
        )
        self._uplink = uplink
        try:
            await item.run(uplink)
        finally:
            self._uplink = None
            await uplink.close()

    def _forget_item(self) -> None:
        for supervisor in () if self._item is None else self._item.supervisors.values():
            self._board.forget(f"disk {supervisor.disk}")
        self._item = self._metrics.item = None

    def _look_at_rest(self, disks: Sequence[str]) -> RestingDisks:
        tracking = functools.partial(tracking_at_rest, self._settings.tracker, self._locate)
        return look_at_all(self._settings.state_dir, disks, tracking)

    def _item_environment(self, wanted: DesiredItem) -> ItemEnvironment:
        settings = self._settings
        shipping, tracker = settings.shipping, settings.tracker
        hooks = None
        if settings.quiesce.pre or settings.quiesce.post:
            hooks = QuiesceHooks(settings.quiesce.pre, settings.quiesce.post, settings.quiesce.hook_timeout_s)
        disks = DiskEnvironment(
            state_dir=settings.state_dir,
            granularity_bytes=tracker.granularity_bytes,
            locate=self._locate,
            open_tracker=functools.partial(open_tracker, tracker, self._pace),
            config_server=self._control,
            buffers=ShippingBuffers(shipping.buffers, shipping.batch_bytes),
            batches_in_flight=shipping.batches_in_flight,
            limits=SessionLimits(
                epoch_bytes=shipping.epoch_bytes,
                unconfirmed_epochs=shipping.unconfirmed_epochs,
                epoch_interval_s=max(MIN_EPOCH_INTERVAL_S, wanted.timing.epoch_interval_s),
                scan_interval_s=tracker.scan_interval_s,
            ),
            seeding_slots=asyncio.Semaphore(shipping.seeding_disks),
            state_writes=self._state_writes,
            holds_state=functools.partial(lies_on, settings.state_dir),
            echo_wait_s=ECHO_WAIT_INTERVALS * wanted.timing.recovery_point_interval_s,
            hold_disk=hold_disk,
            pace=self._pace,
        )
        return ItemEnvironment(
            disks=disks,
            coordinator=PointCoordinator(self._freeze_guard, self._memory, self._mounts_of, self._pace.lifted),
            quiesced=None if hooks is None else hooks.quiesced,
            claim=_claim,
            rest_budget_s=settings.quiesce.rest_budget_s,
            changes=self._changes,
        )

    def _locate(self, disk: DiskId) -> Path:
        found = locate_disk(disk, self._facts, self._settings.disk_files, self._disk_memory.known())
        seen = DiskIdentity(found.identifiers, found.size_bytes)
        if self._disk_memory.has_news(disk, seen):
            self._state_writes.note()
            self._disk_memory.remember(disk, seen)
        return found.path

    def _mounts_of(self, disks: Sequence[DiskId]) -> Sequence[Mount]:
        return file_systems_on([self._locate(disk) for disk in disks])


def _tell_change(before: DesiredItem | None, wanted: DesiredItem | None) -> None:
    if wanted is None:
        if before is not None:
            _logger.info("nothing is protected any more", extra={"fields": {"item": before.item}})
        return
    address = wanted.process_server
    fields = {
        "item": wanted.item,
        "goal": wanted.goal,
        "disks": len(wanted.disks),
        "process_server": "none yet" if address is None else address.url,
        "cutover": "" if wanted.cutover is None else wanted.cutover.job,
    }
    decision = "a wish is followed" if before is None else "another wish is followed"
    _logger.info(decision, extra={"fields": fields})


def _reserve(size_bytes: int) -> memoryview:
    """Memory for the last round of a point, locked; without the privilege unlocked, since nothing can be frozen then either."""
    try:
        return LockedBuffer(size_bytes).view
    except Refused as error:
        _logger.warning("no file system can be frozen", extra={"fields": {"reason": str(error)}})
        return memoryview(mmap.mmap(-1, size_bytes))


def _claim(session: DiskSession) -> Claim:
    return Claim(session.parts.reader.path)
