"""The machine's protected item at work: supervises its disks, makes recovery points when they are due, runs a cutover.

Run by ``daemon`` for as long as the structure of the desired state (item, disks, goal, process server) stays the same; what may change
live (timing, point requests, cutover, resync orders) arrives through ``update``. Cancelling it leaves everything resumable.

One loop decides, whenever something has changed and several times a second; what takes long runs in tasks beside it. A point that is
being cut gives way to a resync order and to a cutover, and has a deadline, so that a sink that does not apply keeps no order waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mobility_agent.changes import Changes
from mobility_agent.config import DEFAULT_REST_BUDGET_S
from mobility_agent.protection.cutover import Cutover, HeldClaim
from mobility_agent.protection.disk_session import DiskSession
from mobility_agent.protection.disk_supervisor import DiskEnvironment, DiskSupervisor
from mobility_agent.protection.point_coordinator import PointCoordinator, PointOutcome, Rest, scan_s
from mobility_agent.protection.point_schedule import DuePoint, PointSchedule
from mobility_agent.protection.resting_disk import RestingDisks
from mobility_agent.shipping.epoch_shipper import Uplink
from mobility_agent.task_groups import together
from replication.control_plane import (
    POINT_NEEDS_HOOKS,
    CutoverObservation,
    DesiredItem,
    Problem,
    ProcessServerAddress,
)
from replication.epoch_manifest import EpochFlag
from replication.errors import BlockferryError
from replication.identifiers import DiskId, ItemId

POINT_DEADLINE_S: Final = 300.0
"""For a point, its pre-copy rounds included. What the rounds have shipped by then stays shipped."""
SCANS_OF_A_POINT: Final = 4
"""Beside the deadline, where a tracker scans: in the rounds before, and at rest."""

FAILED_POINT_TOLD_EVERY_S: Final = 300.0
_POLL_S: Final = 0.25
_TOLD_CHARACTERS: Final = 500
_HOOKS_HINT: Final = "configure quiesce.pre and quiesce.post of the agent, then restart it"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemEnvironment:
    """What the item's parts share besides what the disks need."""

    disks: DiskEnvironment
    coordinator: PointCoordinator
    quiesced: Callable[[], AbstractAsyncContextManager[None]] | None
    """Runs the operator's pre hook on entering and the post hook on leaving; None if none is configured."""
    claim: Callable[[DiskSession], HeldClaim]
    rest_budget_s: float = DEFAULT_REST_BUDGET_S
    """How long a point may keep applications at rest, besides the hooks themselves."""
    changes: Changes = field(default_factory=Changes)
    """Told of whatever may let this item go on, or is worth a report."""


class ItemSession:
    """``run`` until cancelled."""

    def __init__(
        self, desired: DesiredItem, environment: ItemEnvironment, resting: RestingDisks = MappingProxyType({})
    ) -> None:
        """:param resting: what is known of the disks if this item is not to run."""
        self.desired = desired
        self.resting = resting
        self.item = ItemId(desired.item)
        self.supervisors = {
            DiskId(disk): DiskSupervisor(DiskId(disk), self.item, environment.disks, environment.changes.tell)
            for disk in desired.disks
        }
        self.newest_outcome: PointOutcome | None = None
        self._told_failure_s: float | None = None
        """When it was logged last that no point can be made; None: the newest was made."""
        self._environment = environment
        self._schedule = PointSchedule()
        self._point_task: asyncio.Task[None] | None = None
        self._cutover: Cutover | None = None
        self._cutover_task: asyncio.Task[None] | None = None
        self._disk_tasks: dict[DiskId, asyncio.Task[None]] = {}

    def update(self, desired: DesiredItem) -> None:
        """Take over what may change while the disks replicate."""
        self.desired = desired
        self._environment.changes.tell()

    @property
    def cutover(self) -> CutoverObservation | None:
        return None if self._cutover is None else self._cutover.observation

    @property
    def point_problem(self) -> Problem | None:
        """Why the newest recovery point that was tried could not be made; None: it was made, or none was tried yet."""
        outcome = self.newest_outcome
        if outcome is None or outcome.made:
            return None
        return Problem(code=outcome.code, message=outcome.reason[-_TOLD_CHARACTERS:], hint=outcome.hint)

    async def run(self, uplink: Uplink) -> None:
        """Replicate every disk and make points until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for disk, supervisor in self.supervisors.items():
                    self._disk_tasks[disk] = tasks.create_task(supervisor.run(uplink))
                tasks.create_task(self._obey(tasks, uplink))
        finally:
            await together(supervisor.close() for supervisor in self.supervisors.values())

    async def _obey(self, tasks: asyncio.TaskGroup, uplink: Uplink) -> None:
        """One decision at a time: resync orders, a cutover begun or cancelled, a point that is due."""
        changes = self._environment.changes
        while True:
            seen = changes.count
            await self._obey_resyncs(tasks, uplink)
            await self._obey_cutover(tasks)
            if self._cutover is None:
                self._begin_due_point(tasks)
            await changes.beyond(seen, _POLL_S)

    async def _obey_resyncs(self, tasks: asyncio.TaskGroup, uplink: Uplink) -> None:
        for order in self.desired.resyncs:
            supervisor = self.supervisors.get(DiskId(order.disk))
            if supervisor is not None and await supervisor.order_resync(
                order.request, order.reason, distrust_digests=order.distrust_digests
            ):
                await self._end_point()
                await ended(self._disk_tasks[supervisor.disk])
                self._disk_tasks[supervisor.disk] = tasks.create_task(supervisor.run(uplink))

    # ---- cutover

    async def _obey_cutover(self, tasks: asyncio.TaskGroup) -> None:
        desired, sessions = self.desired.cutover, self._sessions()
        running = self._cutover
        if running is not None and (desired is None or desired.job != running.observation.job):
            await self._end_cutover()
            running = None
        if running is not None and not running.is_over and sessions != running.sessions:
            await self._end_cutover()  # a session was replaced under it: begin again with the new ones
            running = None
        if desired is not None and running is None and sessions is not None:
            await self._end_point()
            self._cutover = Cutover(
                desired,
                self.item,
                sessions,
                self._environment.coordinator,
                self._environment.claim,
                self._environment.changes.tell,
            )
            self._cutover_task = tasks.create_task(self._cutover.run())

    async def _end_cutover(self) -> None:
        if self._cutover_task is not None:
            await ended(self._cutover_task)
        self._cutover = self._cutover_task = None

    def _sessions(self) -> dict[DiskId, DiskSession] | None:
        """Every disk's running session, or None if one has none."""
        sessions = {disk: supervisor.session for disk, supervisor in self.supervisors.items()}
        running = {disk: session for disk, session in sessions.items() if session is not None}
        return running if len(running) == len(sessions) else None

    # ---- recovery points

    def _begin_due_point(self, tasks: asyncio.TaskGroup) -> None:
        sessions = self._sessions()
        if sessions is None or (self._point_task is not None and not self._point_task.done()):
            return
        due = self._schedule.due(self.desired.timing, self.desired.point_request, sessions.values(), time.monotonic())
        if due is not None:
            self._point_task = tasks.create_task(self._make_point(sessions, due))

    async def _end_point(self) -> None:
        if self._point_task is not None:
            await ended(self._point_task)
        self._point_task = None

    async def _make_point(self, sessions: dict[DiskId, DiskSession], due: DuePoint) -> None:
        deadline_s = POINT_DEADLINE_S + SCANS_OF_A_POINT * scan_s(sessions.values())
        quiesced = self._environment.quiesced
        rest = None if quiesced is None else Rest(quiesced, self._environment.rest_budget_s)
        try:
            async with asyncio.timeout(deadline_s):
                outcome = await self._cut(sessions, due, rest)
        except TimeoutError:
            outcome = PointOutcome(due.cut, {}, f"it took longer than {deadline_s:g} s", is_spent=True)
        except BlockferryError as error:
            outcome = PointOutcome(due.cut, {}, str(error), is_spent=True, hint=error.hint)
        except OSError as error:
            outcome = PointOutcome(due.cut, {}, f"the operating system: {error}", is_spent=True)
        self.newest_outcome = outcome
        if outcome.made:
            self._schedule.note_made(due, time.monotonic())
        else:
            was_at_rest = rest is not None and rest.was_begun
            self._schedule.note_failed(due, time.monotonic(), is_spent=outcome.is_spent, was_at_rest=was_at_rest)
        self._tell_outcome(outcome, time.monotonic())
        self._environment.changes.tell()

    def _tell_outcome(self, outcome: PointOutcome, now_s: float) -> None:
        """That points begin to fail, and are made again; meanwhile seldom: on a disk that holds the journal a line is a write too (R10)."""
        if outcome.made:
            if self._told_failure_s is not None:
                _logger.info("recovery points are made again", extra={"fields": {"cut": outcome.cut}})
            self._told_failure_s = None
        elif self._told_failure_s is None or now_s - self._told_failure_s >= FAILED_POINT_TOLD_EVERY_S:
            self._told_failure_s = now_s
            fields = {"cut": outcome.cut, "reason": outcome.reason}
            _logger.warning("cannot make a recovery point", extra={"fields": fields})

    async def _cut(self, sessions: dict[DiskId, DiskSession], due: DuePoint, rest: Rest | None) -> PointOutcome:
        """Cut a point; a tracker that cannot prove quiet, or an app-consistent point, needs the operator's hooks."""
        needs_hooks = due.consistency == "app" or not all(
            session.parts.tracker.proves_quiet for session in sessions.values()
        )
        if needs_hooks and rest is None:
            reason = "this point needs quiesce hooks, and none are configured"
            return PointOutcome(due.cut, {}, reason, code=POINT_NEEDS_HOOKS, hint=_HOOKS_HINT)
        return await self._environment.coordinator.cut(
            self.item,
            sessions,
            due.cut,
            flags=EpochFlag.APP_CONSISTENT if needs_hooks else EpochFlag(0),
            freeze_budget_s=self.desired.timing.freeze_budget_s,
            rest=rest if needs_hooks else None,
        )


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])


def runs(desired: DesiredItem) -> bool:
    """Whether disks shall be worked on: replicated, or held for a cutover."""
    return desired.goal == "replicate" or (desired.goal == "hold" and desired.cutover is not None)


def structure_of(desired: DesiredItem) -> tuple[str, Sequence[str], bool, float, ProcessServerAddress | None]:
    """What must stay the same for an ``ItemSession`` to go on: item, disks, whether they run, epoch interval, process server."""
    timing = desired.timing
    return desired.item, tuple(desired.disks), runs(desired), timing.epoch_interval_s, desired.process_server
