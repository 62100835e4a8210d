"""The machine's protected item at work: supervises its disks, makes recovery points when they are due, runs a cutover.

Run by ``daemon`` for as long as the structure of the desired state (item, disks, goal, process server) stays the same; what may change
live (timing, point requests, cutover, resync orders) arrives through ``update``. Cancelling it leaves everything resumable.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from mobility_agent.protection.cutover import Cutover, HeldClaim
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.disk_supervisor import DiskEnvironment, DiskSupervisor
from mobility_agent.protection.point_coordinator import PointCoordinator, PointOutcome
from mobility_agent.shipping.epoch_shipper import Uplink
from mobility_agent.task_groups import together
from replication.control_plane import CutoverObservation, DesiredItem
from replication.epoch_manifest import EpochFlag
from replication.errors import BlockferryError
from replication.identifiers import CutId, DiskId, ItemId
from replication.store_documents import Consistency

_FAILED_POINT_RETRY_S: Final = 5.0
_POLL_S: Final = 0.25

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemEnvironment:
    """What the item's parts share besides what the disks need."""

    disks: DiskEnvironment
    coordinator: PointCoordinator
    quiesced: Callable[[], AbstractAsyncContextManager[None]] | None
    """Runs the operator's pre hook on entering and the post hook on leaving; None if none is configured."""
    claim: Callable[[DiskSession], HeldClaim]


class ItemSession:
    """``run`` until cancelled."""

    def __init__(self, desired: DesiredItem, environment: ItemEnvironment) -> None:
        self.desired = desired
        self.item = ItemId(desired.item)
        self.supervisors = {
            DiskId(disk): DiskSupervisor(DiskId(disk), self.item, environment.disks) for disk in desired.disks
        }
        self.newest_outcome: PointOutcome | None = None
        self._environment = environment
        self._newest_point_s: float | None = None
        self._newest_app_point_s: float | None = None
        self._answered_request: str | None = None
        self._cutover: Cutover | None = None
        self._cutover_task: asyncio.Task[None] | None = None
        self._uplink: Uplink | None = None
        self._disk_tasks: dict[DiskId, asyncio.Task[None]] = {}

    def update(self, desired: DesiredItem) -> None:
        """Take over what may change while the disks replicate."""
        self.desired = desired

    @property
    def cutover(self) -> CutoverObservation | None:
        return None if self._cutover is None else self._cutover.observation

    async def run(self, uplink: Uplink) -> None:
        """Replicate every disk and make points until cancelled."""
        self._uplink = uplink
        try:
            async with asyncio.TaskGroup() as tasks:
                for disk, supervisor in self.supervisors.items():
                    self._disk_tasks[disk] = tasks.create_task(supervisor.run(uplink))
                tasks.create_task(self._obey(tasks))
        finally:
            await together(supervisor.close() for supervisor in self.supervisors.values())

    async def _obey(self, tasks: asyncio.TaskGroup) -> None:
        """One decision at a time: resync orders, a cutover begun or cancelled, a point that is due."""
        while True:
            await self._obey_resyncs(tasks)
            await self._obey_cutover(tasks)
            if self._cutover is None:
                await self._make_due_point()
            await asyncio.sleep(_POLL_S)

    async def _obey_resyncs(self, tasks: asyncio.TaskGroup) -> None:
        for order in self.desired.resyncs:
            supervisor = self.supervisors.get(DiskId(order.disk))
            if supervisor is not None and await supervisor.order_resync(order.request, order.reason):
                await _ended(self._disk_tasks[supervisor.disk])
                if self._uplink is not None:
                    self._disk_tasks[supervisor.disk] = tasks.create_task(supervisor.run(self._uplink))

    # ---- cutover

    async def _obey_cutover(self, tasks: asyncio.TaskGroup) -> None:
        desired = self.desired.cutover
        sessions = self._sessions()
        running = self._cutover
        if running is not None and (desired is None or desired.job != running.observation.job):
            await self._end_cutover()
            running = None
        if running is not None and running.observation.state != "failed" and sessions != running.sessions:
            await self._end_cutover()  # a session was replaced under it: begin again with the new ones
            running = None
        if desired is not None and running is None and sessions is not None:
            self._cutover = Cutover(
                desired,
                self.item,
                sessions,
                self._environment.coordinator,
                self._environment.claim,
            )
            self._cutover_task = tasks.create_task(self._cutover.run())

    async def _end_cutover(self) -> None:
        if self._cutover_task is not None:
            await _ended(self._cutover_task)
        self._cutover = self._cutover_task = None

    def _sessions(self) -> dict[DiskId, DiskSession] | None:
        """Every disk's running session, or None if one has none."""
        sessions = {disk: supervisor.session for disk, supervisor in self.supervisors.items()}
        running = {disk: session for disk, session in sessions.items() if session is not None}
        return running if len(running) == len(sessions) else None

    # ---- recovery points

    async def _make_due_point(self) -> None:
        sessions = self._sessions()
        if sessions is None or any(session.ledger.is_seeding for session in sessions.values()):
            return
        due = self._due_point()
        if due is None:
            return
        cut, consistency = due
        outcome = await self._cut(sessions, cut, consistency)
        self.newest_outcome = outcome
        if outcome.made:
            now_s = time.monotonic()
            self._newest_point_s = now_s
            if consistency == "app":
                self._newest_app_point_s = now_s
            self._answered_request = str(cut)
        else:
            _logger.warning("cannot make a recovery point", extra={"fields": {"cut": cut, "reason": outcome.reason}})
            await asyncio.sleep(_FAILED_POINT_RETRY_S)

    def _due_point(self) -> tuple[CutId, Consistency] | None:
        timing, request, now_s = self.desired.timing, self.desired.point_request, time.monotonic()
        if request is not None and request.request != self._answered_request:
            return CutId(request.request), request.consistency
        if timing.app_consistent_interval_s is not None and (
            self._newest_app_point_s is None or now_s - self._newest_app_point_s >= timing.app_consistent_interval_s
        ):
            return CutId(str(uuid.uuid4())), "app"
        if self._newest_point_s is None or now_s - self._newest_point_s >= timing.recovery_point_interval_s:
            return CutId(str(uuid.uuid4())), "crash"
        return None

    async def _cut(self, sessions: dict[DiskId, DiskSession], cut: CutId, consistency: Consistency) -> PointOutcome:
        """Cut a point; a tracker that cannot prove quiet, or an app-consistent point, needs the operator's hooks."""
        quiesced = self._environment.quiesced
        needs_hooks = consistency == "app" or not all(
            session.parts.tracker.proves_quiet for session in sessions.values()
        )
        try:
            if not needs_hooks:
                return await self._cut_now(sessions, cut, EpochFlag(0))
            if quiesced is None:
                return PointOutcome(cut, {}, "this point needs quiesce hooks, and none are configured")
            async with quiesced():
                return await self._cut_now(sessions, cut, EpochFlag.APP_CONSISTENT, quiesced=True)
        except BlockferryError as error:
            return PointOutcome(cut, {}, str(error))

    async def _cut_now(
        self, sessions: dict[DiskId, DiskSession], cut: CutId, flags: EpochFlag, *, quiesced: bool = False
    ) -> PointOutcome:
        return await self._environment.coordinator.cut(
            self.item,
            sessions,
            cut,
            flags=flags,
            freeze_budget_s=self.desired.timing.freeze_budget_s,
            quiesced=quiesced,
        )


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


def runs(desired: DesiredItem) -> bool:
    """Whether disks shall be worked on: replicated, or held for a cutover."""
    return desired.goal == "replicate" or (desired.goal == "hold" and desired.cutover is not None)


def structure_of(desired: DesiredItem) -> tuple[str, Sequence[str], bool, float, str | None]:
    """What must stay the same for an ``ItemSession`` to go on: item, disks, whether they run, epoch interval, process server."""
    address = desired.process_server
    url = None if address is None else address.url
    return desired.item, tuple(desired.disks), runs(desired), desired.timing.epoch_interval_s, url
