"""Which recovery points may go (FIELD.md's retention). Called by ``reconciler/recovery_points.py``.

All points of the last two hours stay; older ones are thinned: one an hour for policies up to a day, one per 2 h for up to 7 days, and for
longer ones one per 2 h for 7 days, then one per 4 h; beyond the retention they go. Retention 0 keeps the latest only. Which point is newer
is its place in the history; no clock decides it. Ages count from the newest *good* point, not from now: where no new point can be made,
nothing is pruned (P5, R12). The newest good point never goes, nor does one in use. Within a slot the earliest app-consistent point stays,
else the earliest; good ones go before suspect ones, which never stand for a good one. Slots lie on fixed boundaries of time, so that what
stays today is among what stays tomorrow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

ALL_POINTS_S: Final = 2 * 3600.0
_HOUR_S: Final = 3600.0
_DAY_S: Final = 86400.0
MAX_RETENTION_S: Final = 15 * _DAY_S


@dataclass(frozen=True, slots=True)
class Point:
    """A recovery point as retention sees it. ``time_ns``: its cut, as ``point_times.py`` counts it, not as the agent's clock says;
    ``place``: in the history of its item.
    """

    cut: str
    time_ns: int
    app_consistent: bool = False
    suspect: bool = False
    place: tuple[int, int] = (0, 0)


def newest_good(points: Sequence[Point]) -> Point | None:
    """The last good point: never pruned, never a suspect one."""
    return max((point for point in points if not point.suspect), key=_order, default=None)


def points_to_prune(points: Sequence[Point], retention_s: float, in_use: Collection[str] = ()) -> list[str]:
    """The cuts that may be deleted now, oldest first; empty if no point is good."""
    newest = newest_good(points)
    if newest is None:
        return []
    kept = {newest.cut, *in_use}
    slots: dict[tuple[float, int], Point] = {}
    for point in sorted(points, key=_order):
        age_s = (newest.time_ns - point.time_ns) / 1e9
        if _order(point) > _order(newest) or (retention_s > 0 and age_s <= min(ALL_POINTS_S, retention_s)):
            kept.add(point.cut)
        elif 0 < age_s <= retention_s:
            width_s = _slot_width_s(age_s, retention_s)
            slot = (width_s, int(point.time_ns // int(width_s * 1e9)))
            if slot not in slots or _represents(point, slots[slot]):
                slots[slot] = point
    kept |= {point.cut for point in slots.values()}
    return [point.cut for point in sorted(points, key=_order) if point.cut not in kept]


def _order(point: Point) -> tuple[tuple[int, int], int, str]:
    return point.place, point.time_ns, point.cut


def _slot_width_s(age_s: float, retention_s: float) -> float:
    if retention_s <= _DAY_S:
        return _HOUR_S
    return 2 * _HOUR_S if age_s <= 7 * _DAY_S else 4 * _HOUR_S


def _represents(point: Point, present: Point) -> bool:
    """Whether a later point takes the place of the earlier one that stands for the slot so far."""
    return (not point.suspect, point.app_consistent) > (not present.suspect, present.app_consistent)
