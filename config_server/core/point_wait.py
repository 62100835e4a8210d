"""How long a recovery point has been waited for. Called by ``health.py``; whether any is due also by the reconciler's figures and alerts.

While replication is paused none is due, and an hour without one is no fault. So the wait begins anew when it is resumed: the newest point
may be days old then, and nothing is wrong yet. It is no longer than from then on, so that what really fails is told as soon as of any
other server. How old the newest point is stays what it is, and is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from config_server.core.protected_item import State

NO_NEW_POINTS: Final = (State.MIGRATING, State.MIGRATED, State.MIGRATION_FAILED)
"""The states of a migration, in which none are due."""


def points_are_due(state: State, *, paused: bool) -> bool:
    """Whether new recovery points are to come, so that it is a fault if none does. ``paused``: as ``HealthFacts`` has it."""
    return not (paused or state is State.PAUSED or state in NO_NEW_POINTS)


def waited_s(age_s: float, resumed_age_s: float | None) -> float:
    """How long a point could have been made and was not. ``age_s``: of the newest, or since there could have been one."""
    return age_s if resumed_age_s is None else min(age_s, resumed_age_s)


@dataclass(frozen=True, slots=True)
class PointWait:
    """``age_s``: of the newest good point, or since initial replication was over; ``resumed_age_s`` None: it was never paused."""

    age_s: float
    none_yet: bool
    resumed_age_s: float | None

    @property
    def waited_s(self) -> float:
        """What alerts count."""
        return waited_s(self.age_s, self.resumed_age_s)

    @property
    def since_resumed(self) -> str:
        """For a message; empty if there is a newer point than the end of the last pause."""
        if self.resumed_age_s is None or self.resumed_age_s >= self.age_s:
            return ""
        return f", none since replication was resumed {self.resumed_age_s:.0f} s ago"

    @property
    def shortage(self) -> str:
        """What there is none of, or how old the newest is."""
        newest = (
            "there is no good recovery point"
            if self.none_yet
            else f"the newest good recovery point is {self.age_s:.0f} s old"
        )
        return newest + self.since_resumed
