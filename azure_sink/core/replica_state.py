"""The life of a replica: which generation and epoch are applied, and what is under way. Stored as the page blob's metadata.

Called by ``replica_writer/replica_blob.py``, which makes every step durable before the next one begins.

Invariant: in SETTLED, POINT_DUE and CLOSED without a torn epoch, the replica's bytes are those of ``applied`` exactly; in APPLYING they
differ from them only inside the extents of ``applying_epoch``.

    CREATED ──opening──▶ OPENING ──opened──▶ SETTLED ──begun──▶ APPLYING ──applied──▶ SETTLED, or POINT_DUE if it is a point
       CLOSED ──opening──▶ OPENING            │  ▲                 │ begun again after a crash
                                              │  └──snapshot taken── POINT_DUE
                                              └──closed──▶ CLOSED ◀──closed (torn)── APPLYING

A replica in POINT_DUE takes no step but its snapshot (the next epoch would overwrite the point). A void epoch moves SETTLED to
SETTLED. A generation is closed while APPLYING only if that epoch cannot be applied (its segments are lost or damaged): the
closed state then names it as torn, and the next generation must send every extent of it (R1).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from replication.errors import Refused
from replication.identifiers import CutId, DiskId, ItemId

NO_HASH: Final = "0" * 64
"""What the first manifest of a generation chains to, in hex."""


class Phase(enum.Enum):
    CREATED = "created"
    OPENING = "opening"
    SETTLED = "settled"
    POINT_DUE = "point-due"
    APPLYING = "applying"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far a replica's history has come; generation 0: it was never written."""

    generation: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.generation}/{self.epoch}"


@dataclass(frozen=True, slots=True)
class PointMark:
    """The applied epoch is a point: the cut it belongs to."""

    cut: CutId
    item: ItemId
    disks: tuple[DiskId, ...]
    app_consistent: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """Journal of a change of generation (R8) and of the geometry that comes with it (R13)."""

    generation: int
    size_bytes: int
    item: ItemId


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What the metadata says. ``size_bytes`` is the source's size; ``cut_time_ns`` that of the newest applied cut."""

    phase: Phase
    item: ItemId
    size_bytes: int
    applied: Position = Position(0, 0)
    manifest_hash: str = NO_HASH
    cut_time_ns: int = 0
    applying_epoch: int | None = None
    opening: Opening | None = None
    point: PointMark | None = None

    @property
    def was_written(self) -> bool:
        """Whether any generation was ever opened here."""
        return self.applied.generation > 0

    @property
    def torn_epoch(self) -> int | None:
        """The epoch that a closed generation applied only in part."""
        return self.applying_epoch if self.phase is Phase.CLOSED else None


@dataclass(frozen=True, slots=True)
class GenerationOpening:
    """A new generation's geometry is about to be laid out."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class GenerationOpened:
    """The geometry is in place; nothing of the new generation is applied."""


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """The epoch's first write is about to be made."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EpochApplied:
    """All writes of the epoch are durable."""

    epoch: int
    manifest_hash: str
    cut_time_ns: int
    point: PointMark | None = None


@dataclass(frozen=True, slots=True)
class EpochVoided:
    """The epoch was abandoned; nothing of it was or will be applied."""

    epoch: int
    manifest_hash: str


@dataclass(frozen=True, slots=True)
class PointSnapshotTaken:
    """The snapshot of the applied point exists."""


@dataclass(frozen=True, slots=True)
class GenerationClosed:
    """The generation takes no further epoch."""


ReplicaEvent = (
    GenerationOpening
    | GenerationOpened
    | EpochBegun
    | EpochApplied
    | EpochVoided
    | PointSnapshotTaken
    | GenerationClosed
)

TRANSITIONS: Final[dict[tuple[Phase, type[ReplicaEvent]], frozenset[Phase]]] = {
    (Phase.CREATED, GenerationOpening): frozenset({Phase.OPENING}),
    (Phase.CLOSED, GenerationOpening): frozenset({Phase.OPENING}),
    (Phase.OPENING, GenerationOpened): frozenset({Phase.SETTLED}),
    (Phase.SETTLED, EpochBegun): frozenset({Phase.APPLYING}),
    (Phase.APPLYING, EpochBegun): frozenset({Phase.APPLYING}),
    (Phase.APPLYING, EpochApplied): frozenset({Phase.SETTLED, Phase.POINT_DUE}),
    (Phase.SETTLED, EpochVoided): frozenset({Phase.SETTLED}),
    (Phase.POINT_DUE, PointSnapshotTaken): frozenset({Phase.SETTLED}),
    (Phase.SETTLED, GenerationClosed): frozenset({Phase.CLOSED}),
    (Phase.APPLYING, GenerationClosed): frozenset({Phase.CLOSED}),
}


def created(item: ItemId, size_bytes: int) -> ReplicaState:
    """The state of a replica that was just made."""
    return ReplicaState(Phase.CREATED, item, size_bytes)


def advance(state: ReplicaState, event: ReplicaEvent) -> ReplicaState:
    """The state after ``event``.

    :raises Refused: if the event cannot happen in this state, or not with this epoch.
    """
    allowed = TRANSITIONS.get((state.phase, type(event)))
    if allowed is None:
        raise Refused(f"cannot take {type(event).__name__} on a replica that is {state.phase.value} at {state.applied}")
    following = _follow(state, event)
    if following.phase not in allowed:
        raise Refused(f"cannot move a replica from {state.phase.value} to {following.phase.value}")
    return following


def _follow(state: ReplicaState, event: ReplicaEvent) -> ReplicaState:
    match event:
        case GenerationOpening(opening):
            if opening.generation <= state.applied.generation:
                raise Refused(f"cannot open generation {opening.generation} after {state.applied.generation}")
            return replace(state, phase=Phase.OPENING, opening=opening, point=None)
        case GenerationOpened():
            opening = _required_opening(state)
            return ReplicaState(
                Phase.SETTLED, opening.item, opening.size_bytes, Position(opening.generation, 0), NO_HASH, 0
            )
        case EpochBegun(epoch):
            _require_next(state, epoch)
            return replace(state, phase=Phase.APPLYING, applying_epoch=epoch, point=None)
        case EpochApplied(epoch, manifest_hash, cut_time_ns, point):
            if epoch != state.applying_epoch:
                raise Refused(f"cannot finish epoch {epoch} while {state.applying_epoch} is applied")
            return replace(
                state,
                phase=Phase.SETTLED if point is None else Phase.POINT_DUE,
                applied=Position(state.applied.generation, epoch),
                manifest_hash=manifest_hash,
                cut_time_ns=cut_time_ns,
                applying_epoch=None,
                point=point,
            )
        case EpochVoided(epoch, manifest_hash):
            _require_next(state, epoch)
            # The bytes are still those of the cut before: its time stands.
            return replace(
                state, applied=Position(state.applied.generation, epoch), manifest_hash=manifest_hash, point=None
            )
        case PointSnapshotTaken():
            return replace(state, phase=Phase.SETTLED)
        case GenerationClosed():
            return replace(state, phase=Phase.CLOSED)


def _required_opening(state: ReplicaState) -> Opening:
    if state.opening is None:
        raise Refused("cannot finish opening a generation: none is being opened")
    return state.opening


def _require_next(state: ReplicaState, epoch: int) -> None:
    if epoch != state.applied.epoch + 1:
        raise Refused(f"cannot apply epoch {epoch} on a replica at {state.applied}", epoch=epoch)
    if state.applying_epoch not in (None, epoch):
        raise Refused(f"cannot apply epoch {epoch} while {state.applying_epoch} is applied", epoch=epoch)
