"""Publishing desired state: a document and a revision for each machine, and waking those who wait for a newer one.

``publish`` is called inside each transaction that could change what an agent shall do, and by the reconciler as a safety net; it
stores the document and counts the revision up only if the document is another. ``DesiredFeed`` serves the agents' long polls.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.churn_profiles import wanted_profile
from config_server.core.desired_state import DesiredFacts, desired_item
from config_server.core.job import JobKind, JobState
from config_server.core.protected_item import State
from config_server.database import Database
from config_server.items import item_disks
from config_server.job_documents import (
    LATEST,
    MigrationContext,
    MigrationParameters,
    RecoveryPointParameters,
    ResyncContext,
    TestMigrationParameters,
)
from config_server.jobs import context_of, jobs_of_note, parameters_of
from config_server.steps import WAITING_FOR_POINT
from config_server.tables import JobRow, MachineRow, PolicyRow, ProcessServerRow, ProtectedItemRow
from replication.control_plane import (
    AgentDesired,
    DesiredCutover,
    DesiredItem,
    PointRequest,
    ProcessServerAddress,
    ReplicationTiming,
    ResyncOrder,
)
from replication.errors import NotFound

RECHECK_S: Final = 5.0
"""A waiting agent's document is read again at least this often, in case another server changed it and its word was lost."""


async def publish(session: AsyncSession, machine_id: str) -> bool:
    """Compute what the machine's agent shall do and store it if it is another; returns whether it is."""
    await session.flush()
    found = (await session.execute(_WHAT_AN_AGENT_SERVES, {_MACHINE: machine_id})).first()
    if found is None:
        raise NotFound(f"cannot publish for machine {machine_id}: it is unknown")
    machine: MachineRow = found[0]
    item: ProtectedItemRow | None = found[1]
    server: ProcessServerRow | None = found[3]
    wanted = None if item is None else await _desired_item(session, item, found[2], server)
    encoded = "null" if wanted is None else wanted.model_dump_json()
    if machine.desired == encoded:
        return False
    machine.desired = encoded
    machine.desired_revision += 1
    return True


_MACHINE: Final = "machine_id"
_WHAT_AN_AGENT_SERVES: Final = (
    select(MachineRow, ProtectedItemRow, PolicyRow, ProcessServerRow)
    .outerjoin(ProtectedItemRow, (ProtectedItemRow.machine_id == MachineRow.id) & ProtectedItemRow.ended_ns.is_(None))
    .outerjoin(PolicyRow, PolicyRow.id == ProtectedItemRow.policy_id)
    .outerjoin(ProcessServerRow, ProcessServerRow.id == ProtectedItemRow.process_server_id)
    .where(MachineRow.id == bindparam(_MACHINE))
)
"""A machine; its item that has not ended, the item's policy (there always is one) and process server, if there are."""


async def _desired_item(
    session: AsyncSession, item: ProtectedItemRow, policy: PolicyRow, server: ProcessServerRow | None
) -> DesiredItem | None:
    requests: list[PointRequest] = []
    resyncs: list[ResyncOrder] = []
    jobs, migration = await jobs_of_note(session, item.id, JobKind.MIGRATE)
    for job in jobs:
        match JobKind(job.kind):
            case JobKind.TEST_MIGRATE if job.step == WAITING_FOR_POINT:
                if parameters_of(job, TestMigrationParameters).point == LATEST:
                    requests.append(PointRequest(request=job.id))
            case JobKind.RECOVERY_POINT:
                consistency = parameters_of(job, RecoveryPointParameters).consistency
                requests.append(PointRequest(request=job.id, consistency=consistency))
            case JobKind.RESYNC:
                resyncs += context_of(job, ResyncContext).orders
            case _:
                pass
    return desired_item(
        DesiredFacts(
            item=item.id,
            state=State(item.state),
            disks=[disk.disk_id for disk in await item_disks(session, item.id)],
            timing=ReplicationTiming(
                epoch_interval_s=policy.epoch_interval_s,
                recovery_point_interval_s=policy.recovery_point_interval_s,
                app_consistent_interval_s=policy.app_consistent_interval_s,
                freeze_budget_s=policy.freeze_budget_s,
            ),
            process_server=None
            if server is None
            else ProcessServerAddress(identifier=server.id, url=server.service_url),
            point_requests=requests,
            cutover=_cutover(migration),
            resyncs=resyncs,
            paused=item.paused,
        )
    )


def _cutover(job: JobRow | None) -> DesiredCutover | None:
    """The newest migration's cutover, as long as the source is to be held for it."""
    if job is None or job.state == JobState.CANCELLED.value or context_of(job, MigrationContext).released:
        return None
    return DesiredCutover(job=job.id, mode=parameters_of(job, MigrationParameters).mode)


class DesiredFeed:
    """Answers "what shall I do?" at once if it is news, else as soon as it is."""

    def __init__(
        self, database: Database, monotonic: Callable[[], float], tell_others: Callable[[], None] = lambda: None
    ) -> None:
        self._tell_others = tell_others
        self._database = database
        self._monotonic = monotonic
        self._changed = asyncio.Event()
        self._stopping = False

    def wake(self) -> None:
        """Something was published: let all who wait look again, here and at the site's other servers."""
        self.wake_here()
        self._tell_others()

    def wake_here(self) -> None:
        """Let all who wait here look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def release_waiters(self) -> None:
        """The daemon stops: whoever waits is answered that nothing is new, so that no long poll holds the stop up."""
        self._stopping = True
        self.wake_here()

    async def current(self, machine_id: str) -> AgentDesired:
        """:raises NotFound: if the machine is unknown."""
        async with self._database.read() as session:
            machine = await session.get(MachineRow, machine_id)
            profile = await wanted_profile(session, machine_id)
        if machine is None:
            raise NotFound(f"cannot find the machine {machine_id}")
        item = None
        if machine.desired not in (None, "null"):
            item = DesiredItem.decode(str(machine.desired).encode())
        return AgentDesired(revision=machine.desired_revision, item=item, profile=profile)

    async def wait(self, machine_id: str, known_revision: int | None, wait_s: float) -> AgentDesired | None:
        """The document if its revision is not ``known_revision``, waiting for it up to ``wait_s``; None if nothing came.

        A revision other than the known one is news even if it is smaller: this database may come from a backup.
        """
        deadline = self._monotonic() + wait_s
        while True:
            changed = self._changed
            found = await self.current(machine_id)
            if found.revision != known_revision:
                return found
            left_s = deadline - self._monotonic()
            if left_s <= 0 or self._stopping:
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, RECHECK_S)):
                    await changed.wait()
