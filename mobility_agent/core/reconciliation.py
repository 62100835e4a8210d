"""Whether the tracker's programs saw every write: their counts held against the kernel's own. Pure decisions.

Called by ``change_tracker/ebpf/tracker`` at each harvest. Theory of operation:

Each request passes three points: issued (our program counts its sectors), completed (our program counts them), and
accounted: right after, in the same function, the kernel adds the same sectors to /sys/block/X/stat. Sectors, not
operations: an empty flush counts as an operation and carries no data. Two groups, writes and discards, are kept apart.
The tracker reads *accounted* first, then our counters; so, unless runs were lost,

    completed >= accounted      the surplus is what completed between the two readings
    issued    >= accounted      the surplus is what is in flight, and what was issued between the readings

A **deficit** is therefore proof of a lost run, never a false alarm; it is cumulative, so what a surplus masks now shows
later, and with nothing in flight the account is exact. The two deficits of one request show at the same moment, when it
is accounted (or later, masked): never before.

- Completions lost, no issue lost: every lost request was marked when it was issued. All that was harvested since the
  account last was exact at rest (the *suspects*) and what is harvested now is dirty again: REDIRTIED.
- Issues lost, no completion lost: every request was marked when it completed, after its data landed. No doubt.
- Both lost in one *window* (from one exact rest to the next): one request may have lost both marks: RESYNC.
- A run that the kernel skipped since the program was running already (``missed_runs``): as completions lost.
- Overflow, passthrough, statistics switched off: RESYNC.

The base from which counts run is taken so that completions are exact or show a deficit, never a surplus that could hide a
loss. Issues cannot be: what is in flight when counting begins was never counted. So counting begins at rest where a rest is
found; else, until the first one, an issue deficit may be false: it then merely turns a REDIRTIED into a RESYNC.

Invariant: a request whose data may have landed after the harvest that its mark was in, is in a later harvest, or in the
suspects with its account open, or covered by a RESYNC doubt.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

Groups = tuple[int, int]
"""Sectors of 512 bytes: (writes, discards)."""

NO_SECTORS: Final[Groups] = (0, 0)


class Window(enum.IntFlag):
    """What is known about the window that is open. Persisted as a number: never renumber."""

    CLEAN = 0
    BEGAN_UNDER_WAY = 1
    """Counting began with requests in flight: they are accounted for without having been counted as issued. Until the first
    rest, issue deficits may be theirs."""
    ISSUES_LOST = 2
    COMPLETIONS_LOST = 4


class Cause(enum.IntEnum):
    """Why everything must be compared. Persisted as a number: never renumber."""

    NONE = 0
    TRACKING_BEGAN = 1
    MARKS_LOST = 2
    OVERFLOW = 3
    PASSTHROUGH = 4
    STATISTICS_OFF = 5
    STATISTICS_STOOD_STILL = 6
    PINS_UNUSABLE = 7


CAUSE_SENTENCES: Final = {
    Cause.TRACKING_BEGAN: "tracking began at this attach: what was written before is unknown",
    Cause.MARKS_LOST: "the kernel accounted for writes whose issue and completion were both not seen",
    Cause.OVERFLOW: "a request was too fragmented to be marked whole",
    Cause.PASSTHROUGH: "a passthrough command (SG_IO or NVMe ioctl) may have changed blocks unseen",
    Cause.STATISTICS_OFF: "the device's I/O statistics (queue/iostats) were off, so losses would not have shown",
    Cause.STATISTICS_STOOD_STILL: "the device's I/O statistics stood still for a while, so losses would not have shown",
    Cause.PINS_UNUSABLE: "the earlier tracking was of another device or version and was discarded",
}
LOST_COMPLETIONS: Final = "completions of {sectors} sectors were not seen; all that can be affected is dirty again"
MISSED_RUNS: Final = "{runs} runs of a tracking program were skipped; all that can be affected is dirty again"


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the counters, all since the base. ``issued`` is net of what was requeued."""

    accounted: Groups
    issued: Groups
    completed: Groups
    missed_runs: int = 0
    overflows: int = 0
    passthroughs: int = 0
    statistics_on: bool = True


@dataclass(frozen=True, slots=True)
class Ledger:
    """What has been dealt with so far. Survives the agent."""

    forgiven_completed: Groups = NO_SECTORS
    forgiven_issued: Groups = NO_SECTORS
    window: Window = Window.CLEAN
    seen_missed_runs: int = 0
    seen_overflows: int = 0
    seen_passthroughs: int = 0

    def completion_deficit(self, readings: Readings) -> Groups:
        """Accounted but not seen completing; negative: a surplus."""
        return _difference(readings.accounted, readings.completed, self.forgiven_completed)

    def issue_deficit(self, readings: Readings) -> Groups:
        return _difference(readings.accounted, readings.issued, self.forgiven_issued)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``ledger`` is to be stored after what the doubt demands was stored. At most one of the two doubts is set."""

    ledger: Ledger
    resync: Cause = Cause.NONE
    redirty_reason: str = ""


def reconcile(ledger: Ledger, readings: Readings) -> Verdict:
    """Judge a harvest. ``readings.accounted`` was read before the flip, the counters after the grace period."""
    completions = _positive(ledger.completion_deficit(readings))
    issues = _positive(ledger.issue_deficit(readings))
    missed = readings.missed_runs - ledger.seen_missed_runs
    overflowed = readings.overflows > ledger.seen_overflows
    passed_through = readings.passthroughs > ledger.seen_passthroughs
    window = ledger.window
    if any(issues):
        window |= Window.ISSUES_LOST
    if any(completions):
        window |= Window.COMPLETIONS_LOST
    settled_ledger = replace(
        ledger,
        forgiven_completed=_sum(ledger.forgiven_completed, completions),
        forgiven_issued=_sum(ledger.forgiven_issued, issues),
        window=window,
        seen_missed_runs=readings.missed_runs,
        seen_overflows=readings.overflows,
        seen_passthroughs=readings.passthroughs,
    )
    cause = Cause.NONE
    if not readings.statistics_on:
        cause = Cause.STATISTICS_OFF
    elif overflowed:
        cause = Cause.OVERFLOW
    elif passed_through:
        cause = Cause.PASSTHROUGH
    elif (any(completions) or any(issues)) and Window.ISSUES_LOST in window and Window.COMPLETIONS_LOST in window:
        cause = Cause.MARKS_LOST
    if cause is not Cause.NONE:
        # A resync covers all that came before; what is masked as yet will open doubt again.
        return Verdict(replace(settled_ledger, window=window & Window.BEGAN_UNDER_WAY), resync=cause)
    if any(completions):
        return Verdict(settled_ledger, redirty_reason=LOST_COMPLETIONS.format(sectors=sum(completions)))
    if missed > 0:
        return Verdict(settled_ledger, redirty_reason=MISSED_RUNS.format(runs=missed))
    return Verdict(settled_ledger)


def is_exact(ledger: Ledger, readings: Readings) -> bool:
    """Whether every request that was issued was accounted for and seen completing, to the sector.

    Together with nothing in flight this means: all data of marked requests has landed, and no mark was lost.
    """
    return (
        readings.statistics_on
        and ledger.completion_deficit(readings) == NO_SECTORS
        and ledger.issue_deficit(readings) == NO_SECTORS
    )


def at_exact_rest(ledger: Ledger) -> Ledger:
    """The account is exact and nothing is in flight: a new window begins, with no suspects."""
    return replace(ledger, window=Window.CLEAN)


def at_inexact_rest(ledger: Ledger, readings: Readings, *, lasting: bool) -> Verdict:
    """Nothing is in flight and nothing moves, no deficit is left, and yet there is a surplus. It never ends suspicion.

    A surplus of issues is what began under way, or a lost run of the requeue program: this reading is the new base. A surplus
    of completions that is ``lasting`` (the same at two harvests, with not one request between) means that the kernel's
    statistics stood still while writes went on.
    """
    began_under_way = Window.BEGAN_UNDER_WAY in ledger.window
    if not began_under_way and not lasting:
        return Verdict(ledger)
    completions = ledger.completion_deficit(readings) if lasting else NO_SECTORS
    rebased = replace(
        ledger,
        forgiven_completed=_sum(ledger.forgiven_completed, completions),
        forgiven_issued=_sum(ledger.forgiven_issued, ledger.issue_deficit(readings)),
        window=ledger.window & ~Window.BEGAN_UNDER_WAY,
    )
    return Verdict(rebased, resync=Cause.STATISTICS_STOOD_STILL if any(completions) else Cause.NONE)


def rebased(ledger: Ledger, readings: Readings) -> Ledger:
    """Counting resumes here, with requests that may be under way. ``readings`` must be such that no completion lies between
    what the kernel and what the programs counted; what was lost before is covered by a resync."""
    return replace(
        ledger,
        forgiven_completed=_sum(ledger.forgiven_completed, ledger.completion_deficit(readings)),
        forgiven_issued=_sum(ledger.forgiven_issued, ledger.issue_deficit(readings)),
        window=Window.BEGAN_UNDER_WAY,
    )


def _difference(accounted: Groups, seen: Groups, forgiven: Groups) -> Groups:
    return accounted[0] - seen[0] - forgiven[0], accounted[1] - seen[1] - forgiven[1]


def _sum(one: Groups, other: Groups) -> Groups:
    return one[0] + other[0], one[1] + other[1]


def _positive(groups: Groups) -> Groups:
    return max(0, groups[0]), max(0, groups[1])
