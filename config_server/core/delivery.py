"""Which notification is sent next, and when one that failed is sent again. Called by ``webhook.py``; no I/O, no clock.

Theory: notifications of one alert arrive in their order, so only the oldest of an alert that waits, its head, may be sent. A receiver that
cannot be reached, or says that it cannot serve now, pauses all of them: each attempt is a probe, and there is one at a time. One that
refuses a notification pauses that alert only: another one may be to its liking. Pauses double from ``FIRST_PAUSE_S`` to the longest
that is configured; the first answer ends that of the receiver. They are remembered in memory only: after a start all is tried at once.

Invariant: of an alert nothing is sent before everything older of it was delivered or given up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

FIRST_PAUSE_S: Final = 1.0


class Outcome(enum.Enum):
    """What came of an attempt."""

    DELIVERED = "delivered"
    UNAVAILABLE = "unavailable"
    """No answer, no connection, no trust, 408, 429, 5xx: nobody could serve it."""
    REFUSED = "refused"
    """Any other answer, a redirection included: nothing is followed."""


def outcome_of(status: int | None) -> Outcome:
    """By HTTP status; None: there was no answer."""
    if status is None or status in (408, 429) or status >= 500:
        return Outcome.UNAVAILABLE
    return Outcome.DELIVERED if 200 <= status < 300 else Outcome.REFUSED


def pause_s(failures: int, longest_s: float) -> float:
    """After so many failures in a row."""
    return min(longest_s, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30))


@dataclass(frozen=True, slots=True)
class Head:
    """The oldest notification of an alert that waits."""

    alert: str
    sequence: int


@dataclass(slots=True)
class _Pause:
    failures: int = 0
    until_s: float = 0.0

    def failed(self, now_s: float, longest_s: float) -> None:
        self.failures += 1
        self.until_s = now_s + pause_s(self.failures, longest_s)


@dataclass(slots=True)
class Schedule:
    """``longest_s``: the longest pause."""

    longest_s: float
    _receiver: _Pause = field(default_factory=_Pause)
    _alerts: dict[str, _Pause] = field(default_factory=dict)

    def due(self, heads: Iterable[Head], now_s: float) -> Head | None:
        """The oldest that may be sent now."""
        if now_s < self._receiver.until_s:
            return None
        return min(
            (head for head in heads if now_s >= self._until_s(head.alert)), key=lambda head: head.sequence, default=None
        )

    def next_s(self, heads: Iterable[Head], now_s: float) -> float | None:
        """In how many seconds something becomes due; None: nothing waits."""
        untils = [max(self._receiver.until_s, self._until_s(head.alert)) for head in heads]
        return max(0.0, min(untils) - now_s) if untils else None

    def note(self, alert: str, outcome: Outcome, now_s: float) -> None:
        """Learn from an attempt."""
        if outcome is Outcome.UNAVAILABLE:
            self._receiver.failed(now_s, self.longest_s)
            return
        self._receiver = _Pause()
        if outcome is Outcome.DELIVERED:
            self._alerts.pop(alert, None)
        else:
            self._alerts.setdefault(alert, _Pause()).failed(now_s, self.longest_s)

    def forget_others(self, heads: Iterable[Head]) -> None:
        """Pauses of alerts of which nothing waits any more."""
        waiting = {head.alert for head in heads}
        for alert in [alert for alert in self._alerts if alert not in waiting]:
            del self._alerts[alert]

    def _until_s(self, alert: str) -> float:
        return self._alerts[alert].until_s if alert in self._alerts else 0.0
