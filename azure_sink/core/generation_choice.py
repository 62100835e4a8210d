"""Which generation a replica follows, and when it may go over to the next one (R8).

Called by ``replica_writer/disk_follower.py``. A new generation is opened only if its base is exactly what the replica has applied and
the generation before is closed; a generation without a base only on a replica that was never written. What can never be opened is refused
with its reason, not waited for in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from azure_sink.core.replica_state import Phase, Position, ReplicaState


@dataclass(frozen=True, slots=True)
class KnownGeneration:
    """A generation whose record is in the store; ``base`` None: it starts from nothing.

    ``base_hash``: the manifest that its base was applied with; None if the record does not say.
    """

    generation: int
    base: Position | None
    size_bytes: int
    base_hash: str | None = None

    def continues(self, state: ReplicaState) -> bool:
        return self.base == state.applied and self.base_hash in (None, state.manifest_hash)


@dataclass(frozen=True, slots=True)
class FollowGeneration:
    """Apply the epochs of this generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """Go over to this generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class RefuseGeneration:
    """There is a newer generation, which does not continue this replica."""

    generation: int
    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class AwaitGeneration:
    """Nothing to follow yet."""


_CLOSE_HINT = "order a resync (`migratectl resync SERVER`): its generation continues what is applied"

GenerationChoice = FollowGeneration | OpenGeneration | RefuseGeneration | AwaitGeneration


def choose_generation(state: ReplicaState | None, known: Iterable[KnownGeneration]) -> GenerationChoice:
    """What to do with the generations whose records are in the store; ``state`` is None if there is no replica."""
    candidates = sorted(known, key=lambda each: each.generation)
    if state is not None and state.phase is Phase.OPENING and state.opening is not None:
        return OpenGeneration(state.opening.generation)
    if state is None or not state.was_written:
        return _first(candidates)
    if state.phase is not Phase.CLOSED:
        return FollowGeneration(state.applied.generation)
    newer = [each for each in candidates if each.generation > state.applied.generation]
    for each in newer:
        if each.continues(state):
            return OpenGeneration(each.generation)
    if not newer:
        return AwaitGeneration()
    refused = newer[-1]
    base = f"{refused.base or 'nothing'}{' of another history' if refused.base == state.applied else ''}"
    return RefuseGeneration(
        refused.generation, f"its base is {base}, but the replica is at {state.applied}", _CLOSE_HINT
    )


def passed_over(state: ReplicaState, recorded: Iterable[int]) -> RefuseGeneration | None:
    """What is waited for in vain while the generation of ``state`` is followed, or after it was closed; None if nothing is.

    ``recorded``: the numbers of all records in the store, usable or not. A later one is put only after this one was closed (R8); and a
    replica whose own record is gone while there are others was made under numbers that have begun anew.
    """
    numbers, applied = sorted(recorded), state.applied
    if not numbers or not state.was_written or state.phase in (Phase.CREATED, Phase.OPENING):
        return None
    if numbers[-1] > applied.generation and state.phase is not Phase.CLOSED:
        return RefuseGeneration(
            numbers[-1], f"the replica is at {applied}, and generation {applied.generation} was not closed", _CLOSE_HINT
        )
    if numbers[-1] < applied.generation:
        return RefuseGeneration(
            numbers[-1], f"the replica is at {applied} already, whose generation has no record any more", _CLOSE_HINT
        )
    return None


def _first(candidates: list[KnownGeneration]) -> GenerationChoice:
    for each in candidates:
        if each.base is None:
            return OpenGeneration(each.generation)
    if not candidates:
        return AwaitGeneration()
    refused = candidates[-1]
    return RefuseGeneration(
        refused.generation,
        f"it continues {refused.base}, but there is no replica",
        "order a resync (`migratectl resync SERVER`): its generation has no base and sends the whole disk",
    )
