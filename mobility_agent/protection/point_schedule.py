"""When the next recovery point of an item is due, and whether those that were made still stand.

Asked by ``item_session`` several times a second. A point stands while every disk's part of it is sealed and on its way, or applied. One
whose epoch had to be opened again (a spool lost) does not: it is due again, and a request that it answered is open again.

Points that fail are tried again after some seconds. Where applications were brought to rest for one that failed, they are let alone for
twice as long each time, up to the interval of such points; a point that is made, or another request of the operator, ends that.

A cut's name stands for one instant: the sink makes a point of the parts that have the same name, so parts of two instants must never meet
under it. Points get a name each time they are tried. A request's name is given; when it may have been used (it failed half-way, or
an agent before this one may have tried), it is not used again before a point of another name, made since, is recorded for every disk: then
the sink has dropped what was left of the earlier try. With one disk there is nothing to mix.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Protocol

from mobility_agent.core.epoch_ledger import EpochLedger
from replication.control_plane import PointRequest, ReplicationTiming
from replication.identifiers import CutId
from replication.store_documents import Consistency

FAILED_POINT_RETRY_S: Final = 5.0
MIN_INTERVAL_S: Final = 1.0
"""However short an interval the policy states."""
_REMEMBERED_CUTS: Final = 256
_MAX_DOUBLINGS: Final = 16


class PointHolder(Protocol):
    """What the schedule asks of a disk's session."""

    @property
    def ledger(self) -> EpochLedger: ...

    def holds_cut(self, cut: CutId) -> bool:
        """Whether its part of ``cut`` is sealed and on its way, or applied."""
        ...

    def has_applied_cut(self, cut: CutId) -> bool: ...

    @property
    def newest_point_cut(self) -> CutId | None:
        """The newest of the disk's points that the sink has recorded, as far as is known."""
        ...


@dataclass(frozen=True, slots=True)
class DuePoint:
    """A point to be cut now."""

    cut: CutId
    consistency: Consistency


@dataclass(slots=True)
class _Made:
    """A point that was made. Once every disk has applied its part, nothing can take it back: ``is_settled``."""

    cut: CutId
    made_s: float
    is_settled: bool = False

    def stands(self, sessions: Collection[PointHolder]) -> bool:
        self.is_settled = self.is_settled or all(session.has_applied_cut(self.cut) for session in sessions)
        return self.is_settled or all(session.holds_cut(self.cut) for session in sessions)


@dataclass(slots=True)
class _Patience:
    """How long applications are let alone after points in vain for which they were brought to rest."""

    failures: int = 0
    until_s: float = float("-inf")

    def note_failed(self, now_s: float, longest_s: float) -> None:
        doubled_s = FAILED_POINT_RETRY_S * 2.0 ** min(self.failures, _MAX_DOUBLINGS)
        self.failures += 1
        self.until_s = now_s + max(FAILED_POINT_RETRY_S, min(doubled_s, longest_s))

    def end(self) -> None:
        self.failures, self.until_s = 0, float("-inf")


class PointSchedule:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self._newest: _Made | None = None
        self._newest_app: _Made | None = None
        self._answer: _Made | None = None
        """To the newest request."""
        self._not_before_s = float("-inf")
        self._patience: dict[Consistency, _Patience] = {"crash": _Patience(), "app": _Patience()}
        self._intervals_s: dict[Consistency, float] = {"crash": 0.0, "app": 0.0}
        """By the newest policy."""
        self._asked: str | None = None
        """The newest request."""
        self._app_failed = False
        """The newest try was of an app-consistent point: a crash-consistent one that is due has its turn."""
        self._used_names: set[CutId] | None = None
        """Requests of which parts may be at the sink. None at first: an agent before this one may have tried what is asked for now."""
        self._made_since: deque[CutId] = deque(maxlen=_REMEMBERED_CUTS)
        """Points made since the newest try of a request."""

    def due(
        self,
        timing: ReplicationTiming,
        request: PointRequest | None,
        sessions: Collection[PointHolder],
        now_s: float,
    ) -> DuePoint | None:
        """The point that is due, None if none is. A request goes first, and is answered by a cut of its own name; but for
        an app-consistent point that has just failed, which keeps no crash-consistent one from being made.
        """
        if self._used_names is None:
            self._used_names = set() if request is None else {CutId(request.request)}
        self._take_note(timing, request)
        if now_s < self._not_before_s or any(session.ledger.is_seeding for session in sessions):
            return None
        may_try = {consistency: patience.until_s <= now_s for consistency, patience in self._patience.items()}
        is_due = may_try["crash"] and _is_due(self._newest, timing.recovery_point_interval_s, sessions, now_s)
        if self._app_failed and is_due:
            return DuePoint(CutId(str(uuid.uuid4())), "crash")
        if request is not None and may_try[request.consistency] and not self._is_answered(request, sessions, now_s):
            cut = CutId(request.request)
            if len(sessions) == 1 or self._may_use(cut, self._used_names, sessions):
                self._used_names.add(cut)
                self._made_since.clear()
                return DuePoint(cut, request.consistency)
            if not self._made_since and may_try["crash"]:
                return DuePoint(CutId(str(uuid.uuid4())), "crash")
        app_interval_s = timing.app_consistent_interval_s
        if app_interval_s is not None and may_try["app"] and _is_due(self._newest_app, app_interval_s, sessions, now_s):
            return DuePoint(CutId(str(uuid.uuid4())), "app")
        if is_due:
            return DuePoint(CutId(str(uuid.uuid4())), "crash")
        return None

    def _take_note(self, timing: ReplicationTiming, request: PointRequest | None) -> None:
        crash_s, app_s = timing.recovery_point_interval_s, timing.app_consistent_interval_s
        self._intervals_s = {"crash": crash_s, "app": crash_s if app_s is None else app_s}
        if request is not None and request.request != self._asked:
            self._asked = request.request
            self._patience[request.consistency].end()

    def _is_answered(self, request: PointRequest, sessions: Collection[PointHolder], now_s: float) -> bool:
        """Also if that was before this agent was started: the ledgers and receipts name the cut."""
        if self._answer is None or self._answer.cut != request.request:
            self._answer = _Made(CutId(request.request), now_s)
        return self._answer.stands(sessions)

    def _may_use(self, cut: CutId, used_names: set[CutId], sessions: Collection[PointHolder]) -> bool:
        return cut not in used_names or all(session.newest_point_cut in self._made_since for session in sessions)

    def note_made(self, point: DuePoint, now_s: float) -> None:
        """Every disk's part of ``point`` is sealed and put."""
        self._newest = _Made(point.cut, now_s)
        self._app_failed = False
        self._patience[point.consistency].end()
        if self._answer is None or self._answer.cut != point.cut:
            self._made_since.append(point.cut)
        if point.consistency == "app":
            self._newest_app = self._newest

    def note_failed(self, point: DuePoint, now_s: float, *, is_spent: bool, was_at_rest: bool = False) -> None:
        """It could not be made: not at once again. ``is_spent``: a disk's part may have been sealed all the same.
        ``was_at_rest``: applications were brought to rest for it.
        """
        if was_at_rest:
            self._patience[point.consistency].note_failed(now_s, self._intervals_s[point.consistency])
        self._not_before_s = now_s + FAILED_POINT_RETRY_S
        self._app_failed = point.consistency == "app"
        if not is_spent and self._used_names is not None:
            self._used_names.discard(point.cut)


def _is_due(newest: _Made | None, interval_s: float, sessions: Collection[PointHolder], now_s: float) -> bool:
    if newest is None:
        return True
    return now_s - newest.made_s >= max(MIN_INTERVAL_S, interval_s) or not newest.stands(sessions)
