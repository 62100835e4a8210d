"""Jobs: what an operator asked for, until it is done. Kinds, states and the table of what may follow what.

Called by ``jobs.py`` and the reconciler. A job that waits for input goes on by itself once the operator has done what it says.
"""

from __future__ import annotations

import enum
from typing import Final

from replication.errors import Conflict


class JobKind(enum.StrEnum):
    ENABLE_REPLICATION = "enable-replication"
    RESYNC = "resync"
    RECOVERY_POINT = "recovery-point"
    TEST_MIGRATE = "test-migrate"
    CLEAN_UP = "cleanup"
    MIGRATE = "migrate"
    COMPLETE = "complete"
    STOP = "stop-replication"


class JobState(enum.StrEnum):
    """FIELD.md's job states, and the operator's own cancellation."""

    IN_PROGRESS = "in-progress"
    WAITING_FOR_INPUT = "waiting-for-input"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_STATES: Final = frozenset({JobState.IN_PROGRESS, JobState.WAITING_FOR_INPUT})

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.IN_PROGRESS: frozenset(JobState),
    JobState.WAITING_FOR_INPUT: frozenset(JobState),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

EXCLUSIVE_KINDS: Final = frozenset(JobKind) - {JobKind.RECOVERY_POINT}
"""At most one open job of each of these kinds on an item; recovery points may queue."""


def next_job_state(state: JobState, wanted: JobState) -> JobState:
    """:raises Conflict: if the job has ended already."""
    if wanted not in TRANSITIONS[state]:
        raise Conflict(f"cannot bring a job from {state} to {wanted}: it has ended")
    return wanted
