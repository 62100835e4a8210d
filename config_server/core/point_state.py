"""What becomes of a recovery point's record. Called by ``point_history.py`` and ``reconciler/recovery_points.py``.

A point is offered while its record stands in the store: AVAILABLE. What retention lets go is PRUNING until the writer answers. One whose
record is gone though nobody asked for that is LOST: the store was put back to an older state, perhaps by mistake, so it is AVAILABLE again
as soon as the store lists it, and forgotten when retention would have let it go. DELETED is for ever; it is forgotten after a look.
Invariant: a point that the store does not list is never offered for longer than a look, and one that it lists is offered or pruned.
"""

from __future__ import annotations

import enum
from typing import Final

from replication.errors import Conflict


class PointState(enum.StrEnum):
    AVAILABLE = "available"
    PRUNING = "pruning"
    LOST = "lost"
    DELETED = "deleted"


TRANSITIONS: Final[dict[PointState, frozenset[PointState]]] = {
    PointState.AVAILABLE: frozenset({PointState.PRUNING, PointState.LOST, PointState.DELETED}),
    PointState.PRUNING: frozenset({PointState.AVAILABLE, PointState.DELETED}),
    PointState.LOST: frozenset({PointState.AVAILABLE, PointState.DELETED}),
    PointState.DELETED: frozenset(),
}


def next_point_state(state: PointState, wanted: PointState) -> PointState:
    """:raises Conflict: if the table has no such transition."""
    if wanted not in TRANSITIONS[state]:
        raise Conflict(f"cannot bring a recovery point from {state} to {wanted}")
    return wanted
