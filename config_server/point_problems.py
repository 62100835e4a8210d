"""Why a recovery point does not come, as the agent says. Called by ``item_health.py`` and by the jobs that wait for a point."""

from __future__ import annotations

from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import steps
from config_server.job_documents import JobProblem
from config_server.jobs import set_step
from config_server.tables import JobRow, MachineRow, ProtectedItemRow
from replication.control_plane import POINT_NEEDS_HOOKS, AgentObservation, Problem
from replication.store_documents import Consistency

TRIED_AGAIN: Final = "the agent cannot make it yet and tries again: "


def point_problem(machine: MachineRow, item: ProtectedItemRow, consistency: Consistency) -> Problem | None:
    """Why the newest point that the agent tried could not be made, if that holds for points of ``consistency``, too."""
    observation = _observation_with_a_problem(machine)
    if observation is None or observation.problem is None or observation.revision < item.first_revision:
        return None
    return observation.problem if _holds_for(observation, observation.problem, consistency) else None


def _observation_with_a_problem(machine: MachineRow) -> AgentObservation | None:
    if machine.observation is None or '"problem":{' not in machine.observation:
        return None  # asked of every server all the time: most observations need not be parsed for it
    return AgentObservation.decode(machine.observation.encode())


def _holds_for(observation: AgentObservation, problem: Problem, consistency: Consistency) -> bool:
    """The point that lacked hooks may have been an app-consistent one of the policy: on tracked disks others need none."""
    return (
        problem.code != POINT_NEEDS_HOOKS
        or consistency == "app"
        or any(disk.tracker_kind == "scan" for disk in observation.disks)
    )


async def follow_waiting(
    session: AsyncSession, job: JobRow, item: ProtectedItemRow, consistency: Consistency, now_ns: int
) -> JobProblem | None:
    """Of a job that waits for a point: say why it has to, or return why it waits in vain.

    It does if hooks are missing: they are configured with a restart of the agent. Only what an agent says counts that knows of the job.
    """
    machine = await session.get_one(MachineRow, item.machine_id)
    problem = point_problem(machine, item, consistency)
    if problem is not None and problem.code == POINT_NEEDS_HOOKS and _knows_all(machine):
        return JobProblem(code=problem.code, message=f"cannot make the point: {problem.message}", hint=problem.hint)
    if problem is not None:
        set_step(job, now_ns, steps.WAITING_FOR_POINT, TRIED_AGAIN + problem.message)
    elif job.message.startswith(TRIED_AGAIN):
        set_step(job, now_ns, steps.WAITING_FOR_POINT)
    return None


def _knows_all(machine: MachineRow) -> bool:
    observation = _observation_with_a_problem(machine)
    return observation is not None and observation.revision >= machine.desired_revision
