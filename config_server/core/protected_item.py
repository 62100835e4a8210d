"""The lifecycle of a protected item, as one table. Called by ``protection.py`` (operators' verbs) and by the reconciler.

Theory: an item is born ENABLING when an operator protects a machine. What its agent observes (``ReplicationObserved``) carries it through
initial replication into REPLICATING and, where tracking was lost, through RESYNCHRONIZING. Operators' verbs lead out of that: pause, test
migration, migration, stop. While a test migration is under way replication goes on underneath, so that an observation changes nothing
in those states; when the test has been cleaned up the item takes the state that the newest observation says, or is PAUSED again if it was.
Each long step has its failed state, which keeps the reason; no failed state deletes anything, and each can be left by trying again, by
going back or by stopping.

Invariant: only STOPPING and COMPLETING delete replicas and points, and only an operator's own verb leads there.

``TRANSITIONS`` names for every (state, event) the states that may follow; ``next_state`` chooses; a missing pair raises ``Conflict``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from replication.errors import Conflict


class State(enum.StrEnum):
    """FIELD.md's states. The value is what users, API and metrics see."""

    ENABLING = "enabling-replication"
    ENABLING_FAILED = "enabling-replication-failed"
    SEEDING_QUEUED = "initial-replication-queued"
    SEEDING = "initial-replication"
    SEEDING_FAILED = "initial-replication-failed"
    REPLICATING = "replicating"
    REPLICATING_FAILED = "replicating-failed"
    RESYNCHRONIZING = "resynchronizing"
    RESYNCHRONIZING_FAILED = "resynchronizing-failed"
    PAUSED = "paused"
    TEST_PENDING = "test-migration-pending"
    TEST_IN_PROGRESS = "test-migration-in-progress"
    TEST_FAILED = "test-migration-failed"
    TEST_CLEANUP_PENDING = "test-migration-clean-up-pending"
    TEST_CLEANUP = "test-migration-clean-up"
    TEST_CLEANUP_FAILED = "test-migration-clean-up-failed"
    MIGRATING = "migration-in-progress"
    MIGRATION_FAILED = "migration-failed"
    MIGRATED = "migrated"
    COMPLETING = "completing"
    COMPLETING_FAILED = "completing-failed"
    COMPLETED = "completed"
    STOPPING = "stopping"
    STOPPING_FAILED = "stopping-failed"
    STOPPED = "stopped"


class Progress(enum.Enum):
    """Where replication stands, over all disks of an item: the least advanced disk counts."""

    WAITING = "waiting"
    SEEDING = "seeding"
    REPLICATING = "replicating"
    RESYNCHRONIZING = "resynchronizing"
    FAILED_SEEDING = "failed-seeding"
    FAILED_REPLICATING = "failed-replicating"
    FAILED_RESYNCHRONIZING = "failed-resynchronizing"


@dataclass(frozen=True, slots=True)
class ReplicationObserved:
    """The agent reported, or a resync was ordered; ``reason`` says what failed."""

    progress: Progress
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EnablingFailed:
    """Protection could not be set up."""

    reason: str


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """The operator paused replication; changes go on being tracked."""


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """The operator resumed replication; ``progress`` is the newest observation's."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class ResyncRequested:
    """The operator asked for compare and repair."""


@dataclass(frozen=True, slots=True)
class TestMigrationRequested:
    """The operator asked for a test migration."""

    __test__ = False


@dataclass(frozen=True, slots=True)
class TestPointChosen:
    """The recovery point to test from is known; disks are being made."""

    __test__ = False


@dataclass(frozen=True, slots=True)
class TestDisksMade:
    """The test disks can be used."""

    __test__ = False


@dataclass(frozen=True, slots=True)
class TestMigrationFailed:
    """No point could be cut or no disk be made."""

    reason: str
    __test__ = False


@dataclass(frozen=True, slots=True)
class CleanupRequested:
    """The operator asked for the test disks to be deleted."""


@dataclass(frozen=True, slots=True)
class CleanupFailed:
    """The test disks could not be deleted."""

    reason: str


@dataclass(frozen=True, slots=True)
class CleanupSucceeded:
    """The test disks are gone; ``progress`` is the newest observation's. ``paused``: the item was paused before the test, and stays so."""

    progress: Progress
    paused: bool = False


@dataclass(frozen=True, slots=True)
class MigrationRequested:
    """The operator asked for the cutover."""


@dataclass(frozen=True, slots=True)
class MigrationFailed:
    """The cutover failed, or identity was not proved. Replica and points are as they were."""

    reason: str


@dataclass(frozen=True, slots=True)
class MigrationSucceeded:
    """The final disks are made and, where the mode claims it, proved identical."""


@dataclass(frozen=True, slots=True)
class MigrationCancelled:
    """The operator goes back to the source; ``progress`` is the newest observation's."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class CompletionRequested:
    """The operator ends the migration: stop replication, delete replica and points, keep the final disks."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The operator gives the protection up: delete replica and points."""


@dataclass(frozen=True, slots=True)
class ReplicasDeleted:
    """The writer has deleted replica, points, segments and keys."""


@dataclass(frozen=True, slots=True)
class DeletionFailed:
    """The writer could not delete them."""

    reason: str


Event = (
    ReplicationObserved
    | EnablingFailed
    | PauseRequested
    | ResumeRequested
    | ResyncRequested
    | TestMigrationRequested
    | TestPointChosen
    | TestDisksMade
    | TestMigrationFailed
    | CleanupRequested
    | CleanupFailed
    | CleanupSucceeded
    | MigrationRequested
    | MigrationFailed
    | MigrationSucceeded
    | MigrationCancelled
    | CompletionRequested
    | StopRequested
    | ReplicasDeleted
    | DeletionFailed
)
EventType = type[Event]

_BY_PROGRESS: Final = {
    Progress.WAITING: State.SEEDING_QUEUED,
    Progress.SEEDING: State.SEEDING,
    Progress.REPLICATING: State.REPLICATING,
    Progress.RESYNCHRONIZING: State.RESYNCHRONIZING,
    Progress.FAILED_SEEDING: State.SEEDING_FAILED,
    Progress.FAILED_REPLICATING: State.REPLICATING_FAILED,
    Progress.FAILED_RESYNCHRONIZING: State.RESYNCHRONIZING_FAILED,
}

REPLICATION_STATES: Final = frozenset(_BY_PROGRESS.values())
"""States that follow what the agent observes."""

FAILED_STATES: Final = frozenset(state for state in State if state.value.endswith("-failed"))
ENDED_STATES: Final = frozenset({State.COMPLETED, State.STOPPED})
DELETING_STATES: Final = frozenset({State.STOPPING, State.COMPLETING})
TEST_STATES: Final = frozenset(
    {
        State.TEST_PENDING,
        State.TEST_IN_PROGRESS,
        State.TEST_FAILED,
        State.TEST_CLEANUP_PENDING,
        State.TEST_CLEANUP,
        State.TEST_CLEANUP_FAILED,
    }
)
_UNTOUCHED_BY_OBSERVATION: Final = TEST_STATES | {
    State.PAUSED,
    State.MIGRATING,
    State.MIGRATION_FAILED,
    State.MIGRATED,
    State.COMPLETING,
    State.COMPLETING_FAILED,
    State.STOPPING,
    State.STOPPING_FAILED,
}
_TESTABLE: Final = frozenset(
    {State.REPLICATING, State.RESYNCHRONIZING, State.PAUSED} | {State.REPLICATING_FAILED, State.RESYNCHRONIZING_FAILED}
)
_STOPPABLE: Final = (
    frozenset(State) - ENDED_STATES - DELETING_STATES - {State.MIGRATING, State.MIGRATED, State.COMPLETING_FAILED}
)


def _to(*states: State) -> frozenset[State]:
    return frozenset(states)


TRANSITIONS: Final[dict[tuple[State, EventType], frozenset[State]]] = {
    **{(state, ReplicationObserved): REPLICATION_STATES for state in REPLICATION_STATES},
    **{(state, ReplicationObserved): _to(state) for state in _UNTOUCHED_BY_OBSERVATION},
    (State.ENABLING, ReplicationObserved): REPLICATION_STATES,
    (State.ENABLING_FAILED, ReplicationObserved): REPLICATION_STATES,
    (State.ENABLING, EnablingFailed): _to(State.ENABLING_FAILED),
    (State.ENABLING_FAILED, EnablingFailed): _to(State.ENABLING_FAILED),
    **{(state, PauseRequested): _to(State.PAUSED) for state in REPLICATION_STATES},
    (State.PAUSED, ResumeRequested): REPLICATION_STATES,
    **{
        (state, ResyncRequested): _to(State.RESYNCHRONIZING)
        for state in (State.REPLICATING, State.REPLICATING_FAILED, State.RESYNCHRONIZING, State.RESYNCHRONIZING_FAILED)
    },
    **{(state, TestMigrationRequested): _to(State.TEST_PENDING) for state in _TESTABLE},
    (State.TEST_PENDING, TestPointChosen): _to(State.TEST_IN_PROGRESS),
    (State.TEST_IN_PROGRESS, TestDisksMade): _to(State.TEST_CLEANUP_PENDING),
    (State.TEST_PENDING, TestMigrationFailed): _to(State.TEST_FAILED),
    (State.TEST_IN_PROGRESS, TestMigrationFailed): _to(State.TEST_FAILED),
    (State.TEST_CLEANUP_PENDING, CleanupRequested): _to(State.TEST_CLEANUP),
    (State.TEST_FAILED, CleanupRequested): _to(State.TEST_CLEANUP),
    (State.TEST_CLEANUP_FAILED, CleanupRequested): _to(State.TEST_CLEANUP),
    (State.TEST_CLEANUP, CleanupFailed): _to(State.TEST_CLEANUP_FAILED),
    (State.TEST_CLEANUP, CleanupSucceeded): REPLICATION_STATES | {State.PAUSED},
    (State.REPLICATING, MigrationRequested): _to(State.MIGRATING),
    (State.MIGRATION_FAILED, MigrationRequested): _to(State.MIGRATING),
    (State.MIGRATING, MigrationFailed): _to(State.MIGRATION_FAILED),
    (State.MIGRATING, MigrationSucceeded): _to(State.MIGRATED),
    (State.MIGRATING, MigrationCancelled): REPLICATION_STATES,
    (State.MIGRATION_FAILED, MigrationCancelled): REPLICATION_STATES,
    (State.MIGRATED, MigrationCancelled): REPLICATION_STATES,
    (State.MIGRATED, CompletionRequested): _to(State.COMPLETING),
    (State.COMPLETING_FAILED, CompletionRequested): _to(State.COMPLETING),
    (State.COMPLETING, ReplicasDeleted): _to(State.COMPLETED),
    (State.COMPLETING, DeletionFailed): _to(State.COMPLETING_FAILED),
    **{(state, StopRequested): _to(State.STOPPING) for state in _STOPPABLE},
    (State.STOPPING, ReplicasDeleted): _to(State.STOPPED),
    (State.STOPPING, DeletionFailed): _to(State.STOPPING_FAILED),
}

_HINTS: Final[dict[EventType, str]] = {
    PauseRequested: "clean up a test migration, or cancel a migration, first",
    ResumeRequested: "only a paused item can be resumed",
    ResyncRequested: "wait until initial replication is over, or resume first",
    TestMigrationRequested: "initial replication must be over, and an earlier test migration be cleaned up",
    CleanupRequested: "there is no test migration to clean up",
    MigrationRequested: "the item must be replicating; clean up a test migration first, resume a paused item",
    MigrationCancelled: "there is no migration to cancel",
    CompletionRequested: "migrate first",
    StopRequested: "cancel or complete the migration first",
}


def next_state(state: State, event: Event) -> State:
    """The state that follows.

    :raises Conflict: if ``event`` has no place in ``state``; nothing has changed.
    """
    allowed = TRANSITIONS.get((state, type(event)))
    if allowed is None:
        raise Conflict(f"cannot {_verb(type(event))} while the item is in state {state}", hint=_HINTS.get(type(event)))
    chosen = next(iter(allowed)) if len(allowed) == 1 else _by_observation(event)
    if chosen not in allowed:
        raise AssertionError(f"{chosen} does not follow {state} on {type(event).__name__}")
    return chosen


def _by_observation(event: Event) -> State:
    match event:
        case CleanupSucceeded(paused=True):
            return State.PAUSED
        case (
            ReplicationObserved(progress=progress)
            | ResumeRequested(progress=progress)
            | CleanupSucceeded(progress=progress)
            | MigrationCancelled(progress=progress)
        ):
            return _BY_PROGRESS[progress]
        case _:
            raise AssertionError(f"{type(event).__name__} carries no progress to choose by")


def _verb(kind: EventType) -> str:
    verbs: dict[EventType, str] = {
        PauseRequested: "pause replication",
        ResumeRequested: "resume replication",
        ResyncRequested: "resynchronize",
        TestMigrationRequested: "start a test migration",
        CleanupRequested: "clean up a test migration",
        MigrationRequested: "migrate",
        MigrationCancelled: "cancel the migration",
        CompletionRequested: "complete the migration",
        StopRequested: "stop replication",
    }
    return verbs.get(kind, f"take {kind.__name__}")


def reason_of(event: Event) -> str | None:
    """The reason that a failed state keeps."""
    match event:
        case (
            EnablingFailed(reason=reason)
            | TestMigrationFailed(reason=reason)
            | CleanupFailed(reason=reason)
            | MigrationFailed(reason=reason)
            | DeletionFailed(reason=reason)
        ):
            return reason
        case ReplicationObserved(reason=observed_reason):
            return observed_reason
        case _:
            return None
