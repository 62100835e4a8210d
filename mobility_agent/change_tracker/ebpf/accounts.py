"""The three counts of each sector, and the ledger of what was made of them: read, compared, stored with the pins.

Called by ``tracker``. The rule that orders the readings, and every judgement, is in ``core/reconciliation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf.layout import CpuCounters
from mobility_agent.change_tracker.ebpf.objects import KernelObjects
from mobility_agent.core.reconciliation import Groups, Ledger, Readings, Window

_REST_TRIES: Final = 30
_SIMULTANEOUS_TRIES: Final = 1000
_TRIES_WITH_GRACE: Final = 3


@dataclass(frozen=True, slots=True)
class TrackerStatistics:
    """For metrics; cumulative since tracking began, over restarts of the agent. Sectors of 512 bytes."""

    program_runs: int
    sectors_written: int
    sectors_discarded: int
    sectors_lost_completions: int
    sectors_lost_issues: int
    missed_runs: int
    overflows: int
    passthrough_commands: int


class Accounts:
    """The kernel's account of one device beside the programs' own."""

    def __init__(
        self, kernel: KernelCounters, kernel_objects: KernelObjects, wait_for_programs: Callable[[], None]
    ) -> None:
        self._kernel = kernel
        self._objects = kernel_objects
        self._control = kernel_objects.control
        self._wait_for_programs = wait_for_programs

    def take_base(self, *, statistics_were_on: bool) -> None:
        """Counting begins here: at a moment with nothing in flight if one is found soon, else with requests under way.

        What is in flight when counting begins shows as lost issues, and then one completion that is really lost, which some kernels
        do now and then, would be a resync. Requests that began while statistics were off are never known to be in flight.
        """
        rest = self._found_at_rest() if statistics_were_on else None
        accounted, counters = rest or self.simultaneous()
        for group in range(2):
            self._control.base_accounted[group] = accounted[group]
            self._control.base_issued[group] = counters.issued[group] - counters.requeued[group]
            self._control.base_completed[group] = counters.completed[group]
        self._control.window_flags = Window.BEGAN_UNDER_WAY if rest is None else Window.CLEAN

    def _found_at_rest(self) -> tuple[Groups, CpuCounters] | None:
        """The kernel's sectors and our counters while nothing is in flight and nothing moves."""
        for _ in range(_REST_TRIES):
            before = self._objects.totals()
            if not self._kernel.writes_in_flight():
                accounted, counters = self._kernel.accounted_sectors(), self._objects.totals()
                stood_still = counters.runs == before.runs and self._kernel.accounted_sectors() == accounted
                if stood_still and not self._kernel.writes_in_flight():
                    return accounted, counters
            self._wait_for_programs()  # some milliseconds, in which requests end
        return None

    def statistics(self) -> TrackerStatistics:
        totals, control = self._objects.totals(), self._control
        return TrackerStatistics(
            program_runs=totals.runs,
            sectors_written=totals.completed[0],
            sectors_discarded=totals.completed[1],
            sectors_lost_completions=control.lost_completed,
            sectors_lost_issues=control.lost_issued,
            missed_runs=self._objects.missed_runs(),
            overflows=totals.overflow,
            passthrough_commands=totals.passthrough,
        )

    def simultaneous(self) -> tuple[Groups, CpuCounters]:
        """The kernel's sectors and our counters with no completion between them.

        First with a grace period, in which those are accounted for that were counted (both happen in one softirq). Under a
        load that leaves no such gap, without; and at last ours are the later ones: then a deficit shows that is none, but
        none is hidden.
        """
        for attempt in range(_SIMULTANEOUS_TRIES):
            before = self._objects.totals()
            if attempt < _TRIES_WITH_GRACE:
                self._wait_for_programs()
            accounted = self._kernel.accounted_sectors()
            counters = self._objects.totals()
            if _pair(before.completed) == _pair(counters.completed):
                break
        return accounted, counters

    def readings(self) -> Readings:
        statistics_on = self._kernel.statistics_on()
        accounted = self._kernel.accounted_sectors()
        return self.readings_of(accounted, self._objects.totals(), statistics_on=statistics_on)

    def readings_of(self, accounted: Groups, totals: CpuCounters, *, statistics_on: bool) -> Readings:
        """``accounted`` was read before ``totals``: the order that ``core/reconciliation`` relies on."""
        control = self._control
        return Readings(
            accounted=_less(accounted, control.base_accounted),
            issued=_less(_less(totals.issued, totals.requeued), control.base_issued),
            completed=_less(totals.completed, control.base_completed),
            missed_runs=self._objects.missed_runs(),
            overflows=totals.overflow,
            passthroughs=totals.passthrough,
            statistics_on=statistics_on,
        )

    def ledger(self) -> Ledger:
        control = self._control
        return Ledger(
            forgiven_completed=_pair(control.forgiven_completed),
            forgiven_issued=_pair(control.forgiven_issued),
            window=Window(control.window_flags),
            seen_missed_runs=control.seen_missed_runs,
            seen_overflows=control.seen_overflow,
            seen_passthroughs=control.seen_passthrough,
        )

    def store(self, ledger: Ledger) -> None:
        control = self._control
        before = self.ledger()
        # The flags first: a deficit that is forgiven twice would hide a loss, one that is doubted twice only costs.
        control.window_flags = ledger.window
        for group in range(2):
            control.forgiven_completed[group] = ledger.forgiven_completed[group]
            control.forgiven_issued[group] = ledger.forgiven_issued[group]
        control.lost_completed += max(0, sum(ledger.forgiven_completed) - sum(before.forgiven_completed))
        control.lost_issued += max(0, sum(ledger.forgiven_issued) - sum(before.forgiven_issued))
        control.seen_missed_runs = ledger.seen_missed_runs
        control.seen_overflow = ledger.seen_overflows
        control.seen_passthrough = ledger.seen_passthroughs


def _pair(array: object) -> Groups:
    values = cast("list[int]", array)
    return int(values[0]), int(values[1])


def _less(one: object, other: object) -> Groups:
    left, right = _pair(one), _pair(other)
    return left[0] - right[0], left[1] - right[1]
