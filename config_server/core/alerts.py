"""When a condition becomes an alert and when it is over: nothing flaps. Called by ``reconciler/alarms.py`` with what each look finds.

Theory: a *condition* is true or not at this moment. An *alert* is a condition that persisted. For each of the two levels of a condition a
latch is kept; what a look finds of that level turns it. A latch is SET only when the level was found for the rule's hold time, and CALM
again only when it was found gone for the calm time. Between the threshold that sets and the one that clears (``Limit``) nothing is found:
the latch stays. What is not known sets nothing and clears nothing: it takes back a hold or a calm that was running. So does a time in
which nobody looked (this server was down). The alert's severity is that of its worst latch that is SET or FALLING.

Invariant: between two raisings of one alert lie at least its hold time and its calm time, whatever the facts do.

``TRANSITIONS`` names for every (latch, finding) what may follow; ``turned`` chooses by the times; a missing pair raises ``KeyError``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal

from config_server.core.health import Health


class Found(enum.Enum):
    """What a look says about one level of a condition."""

    PRESENT = "present"
    BETWEEN = "between"
    """Neither beyond the threshold nor clear of it."""
    ABSENT = "absent"
    UNKNOWN = "unknown"
    INTERRUPTED = "interrupted"
    """Nobody has looked for too long: what was running must begin anew."""


class Latch(enum.StrEnum):
    """Of one level. The value stands in the database."""

    CALM = "calm"
    RISING = "rising"
    SET = "set"
    FALLING = "falling"


TRANSITIONS: Final[dict[tuple[Latch, Found], frozenset[Latch]]] = {
    (Latch.CALM, Found.PRESENT): frozenset({Latch.RISING, Latch.SET}),
    (Latch.CALM, Found.BETWEEN): frozenset({Latch.CALM}),
    (Latch.CALM, Found.ABSENT): frozenset({Latch.CALM}),
    (Latch.CALM, Found.UNKNOWN): frozenset({Latch.CALM}),
    (Latch.CALM, Found.INTERRUPTED): frozenset({Latch.CALM}),
    (Latch.RISING, Found.PRESENT): frozenset({Latch.RISING, Latch.SET}),
    (Latch.RISING, Found.BETWEEN): frozenset({Latch.RISING}),
    (Latch.RISING, Found.ABSENT): frozenset({Latch.CALM}),
    (Latch.RISING, Found.UNKNOWN): frozenset({Latch.CALM}),
    (Latch.RISING, Found.INTERRUPTED): frozenset({Latch.CALM}),
    (Latch.SET, Found.PRESENT): frozenset({Latch.SET}),
    (Latch.SET, Found.BETWEEN): frozenset({Latch.SET}),
    (Latch.SET, Found.ABSENT): frozenset({Latch.FALLING, Latch.CALM}),
    (Latch.SET, Found.UNKNOWN): frozenset({Latch.SET}),
    (Latch.SET, Found.INTERRUPTED): frozenset({Latch.SET}),
    (Latch.FALLING, Found.PRESENT): frozenset({Latch.SET}),
    (Latch.FALLING, Found.BETWEEN): frozenset({Latch.SET}),
    (Latch.FALLING, Found.ABSENT): frozenset({Latch.FALLING, Latch.CALM}),
    (Latch.FALLING, Found.UNKNOWN): frozenset({Latch.SET}),
    (Latch.FALLING, Found.INTERRUPTED): frozenset({Latch.SET}),
}

_RAISED: Final = frozenset({Latch.SET, Latch.FALLING})


@dataclass(frozen=True, slots=True)
class LatchAt:
    """A latch and for how long it has been so."""

    latch: Latch = Latch.CALM
    for_s: float = 0.0


def turned(at: LatchAt, found: Found, *, hold_s: float, calm_s: float) -> LatchAt:
    """The latch after a look; the very same object if it stays."""
    may_follow = TRANSITIONS[at.latch, found]
    if found is Found.PRESENT and Latch.RISING in may_follow:
        held_s = at.for_s if at.latch is Latch.RISING else 0.0
        chosen = Latch.SET if held_s >= hold_s else Latch.RISING
    elif found is Found.ABSENT and Latch.FALLING in may_follow:
        calm_for_s = at.for_s if at.latch is Latch.FALLING else 0.0
        chosen = Latch.CALM if calm_for_s >= calm_s else Latch.FALLING
    else:
        (chosen,) = may_follow
    return at if chosen is at.latch else LatchAt(chosen)


@dataclass(frozen=True, slots=True)
class Limit:
    """A threshold with hysteresis: present beyond ``enters``, absent at ``leaves`` and on its other side. ``enters`` below ``leaves``:
    little is bad (free space).
    """

    enters: float
    leaves: float

    def judge(self, value: float | None) -> Found:
        """None: not known."""
        if value is None:
            return Found.UNKNOWN
        sign = 1.0 if self.enters >= self.leaves else -1.0
        if sign * value > sign * self.enters:
            return Found.PRESENT
        return Found.ABSENT if sign * value <= sign * self.leaves else Found.BETWEEN


SubjectKind = Literal["server", "process-server", "site"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What an alert is about. ``identifier``: of a server its protected item's, of the site the empty text."""

    kind: SubjectKind
    identifier: str
    name: str


SITE: Final = Subject("site", "", "site")


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one look found of one condition of one subject. ``warning``: at least that level."""

    code: str
    subject: Subject
    warning: Found
    critical: Found
    message: str
    remedy: str

    @property
    def is_present(self) -> bool:
        return Found.PRESENT in (self.warning, self.critical)


@dataclass(frozen=True, slots=True)
class Rule:
    """How long a condition must last to become an alert (``critical_hold_s``: at its critical level), and be gone to be over.

    ``cause``: what it comes from as a rule, one sentence.
    """

    about: SubjectKind
    hold_s: float
    critical_hold_s: float
    calm_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class Standing:
    """An alert, or what may become one."""

    warning: LatchAt = LatchAt()
    critical: LatchAt = LatchAt()

    @property
    def severity(self) -> Health:
        """HEALTHY: it is none (yet, or any more)."""
        if self.critical.latch in _RAISED:
            return Health.CRITICAL
        return Health.WARNING if self.warning.latch in _RAISED else Health.HEALTHY

    @property
    def is_calm(self) -> bool:
        return self.warning.latch is Latch.CALM and self.critical.latch is Latch.CALM


def after_look(standing: Standing, warning: Found, critical: Found, rule: Rule, *, interrupted: bool) -> Standing:
    """Turn both latches; ``interrupted``: before this look nobody had looked for too long."""

    def turn(at: LatchAt, found: Found, hold_s: float) -> LatchAt:
        if interrupted:
            at = turned(at, Found.INTERRUPTED, hold_s=hold_s, calm_s=rule.calm_s)
        return turned(at, found, hold_s=hold_s, calm_s=rule.calm_s)

    return Standing(
        turn(standing.warning, warning, rule.hold_s), turn(standing.critical, critical, rule.critical_hold_s)
    )


class Change(enum.StrEnum):
    """What is told of an alert. The value stands in events and in webhook documents."""

    RAISED = "raised"
    WORSENED = "worsened"
    EASED = "eased"
    CLEARED = "cleared"
    ACKNOWLEDGED = "acknowledged"
    ACKNOWLEDGEMENT_ENDED = "acknowledgement-ended"


def change_between(before: Health, after: Health) -> Change | None:
    """What a look made of an alert's severity."""
    if before is after:
        return None
    if before is Health.HEALTHY:
        return Change.RAISED
    if after is Health.HEALTHY:
        return Change.CLEARED
    return Change.WORSENED if after > before else Change.EASED


def is_told(change: Change, *, acknowledged: bool) -> bool:
    """Whether a change is told outside: who has acknowledged an alert wants to hear only that it is worse, or over."""
    return not acknowledged or change is not Change.EASED
