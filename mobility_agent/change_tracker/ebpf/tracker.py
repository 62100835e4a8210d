"""The ``ebpf`` change tracker of one block device: attach to pins or start anew, harvest, reconcile, commit.

Called by the agent's disk session. Touches bpf(2), the pin directory, sysfs files of the device; never the device's data.
The decisions are elsewhere: ``core/reconciliation`` (were marks lost?) and ``halves`` (in which order to move bits).

Guarantees: killed at any point, the tracking goes on in the kernel, and the next attach loses no mark. Without pins
(``pin_directory`` None) everything ends with the process.

The device's I/O statistics (queue/iostats) must be on for losses to show. They are by default; where they are not, the
tracker switches them on (their cost is far below its own) and ``discard`` restores what was there.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf import bpf_syscall, objects
from mobility_agent.change_tracker.ebpf.halves import Halves
from mobility_agent.change_tracker.ebpf.layout import BitmapLayout, CpuCounters
from mobility_agent.change_tracker.ebpf.objects import DeviceIdentity, KernelObjects
from mobility_agent.change_tracker.ebpf.pins import Pins
from mobility_agent.change_tracker.ebpf.support import require_trackable
from mobility_agent.change_tracker.interface import (
    NO_DOUBT,
    Doubt,
    DoubtKind,
    Harvest,
    TrackerState,
    TrackerStatus,
)
from mobility_agent.core.reconciliation import (
    CAUSE_SENTENCES,
    Cause,
    Groups,
    Ledger,
    Readings,
    Verdict,
    Window,
    at_exact_rest,
    at_inexact_rest,
    is_exact,
    rebased,
    reconcile,
)
from replication.dirty_bitmap import DEFAULT_GRANULARITY_BYTES, DirtyBitmap, Geometry, GranuleRuns
from replication.errors import Refused

_SIMULTANEOUS_TRIES: Final = 1000
_TRIES_WITH_GRACE: Final = 3


class _Stage(enum.Enum):
    NONE = enum.auto()
    INTERRUPTED = enum.auto()
    """The halves were flipped, but the harvest was not handed out: it cannot be committed, only begun again."""
    RETURNED = enum.auto()


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


@dataclass(frozen=True, slots=True)
class _Flip:
    """What the counters said just before the last flip."""

    runs: int
    accounted: Groups


class EbpfTracker:
    """``ChangeTracker`` for a whole block device driven by blk-mq. Use ``attach``; the constructor is for it and for tests.

    ``wait_for_programs`` returns when every program run that had begun is over.
    """

    def __init__(
        self,
        device: Path,
        geometry: Geometry,
        kernel: KernelCounters,
        kernel_objects: KernelObjects,
        pins: Pins | None,
        wait_for_programs: Callable[[], None] = bpf_syscall.wait_for_programs,
    ) -> None:
        self._device = device
        self._geometry = geometry
        self._kernel = kernel
        self._objects = kernel_objects
        self._pins = pins
        self._control = kernel_objects.control
        self._wait_for_programs = wait_for_programs
        self._halves = Halves(
            kernel_objects.words, self._control, BitmapLayout(geometry), wait_for_programs, bpf_syscall.fence
        )
        self._continued = False
        self._closed = False
        self._stage = _Stage.NONE
        self._flip: _Flip | None = None
        self._redirty_reason = ""
        self._last_rest: Readings | None = None

    @classmethod
    def attach(
        cls,
        device: Path,
        *,
        granularity_bytes: int = DEFAULT_GRANULARITY_BYTES,
        pin_directory: Path | None = None,
    ) -> EbpfTracker:
        """Continue the tracking pinned at ``pin_directory`` if it is this very device's, else begin it.

        :raises Unsupported: if this kernel or device cannot be tracked; the hint says what to do instead.
        :raises Refused: without root, or CAP_BPF and CAP_PERFMON.
        :raises Conflict: if another process uses the pins.
        """
        require_trackable(device)
        number = os.stat(device).st_rdev
        kernel = KernelCounters(number)
        try:
            geometry = Geometry(kernel.size_bytes(), granularity_bytes)
            identity = DeviceIdentity(
                os.major(number) << 20 | os.minor(number), kernel.incarnation(), geometry.size_bytes, granularity_bytes
            )
            pins = None if pin_directory is None else Pins(pin_directory)
            cause = Cause.TRACKING_BEGAN
            if pins is not None and pins.exist():
                pins.lock()
                try:
                    found = objects.open_pinned(pins, identity, BitmapLayout(geometry))
                    if found is not None:
                        tracker = cls(device, geometry, kernel, found, pins)
                        tracker._continue()
                        return tracker
                except BaseException:
                    pins.unlock()
                    raise
                pins.remove()
                cause = Cause.PINS_UNUSABLE
            made = objects.create(identity, BitmapLayout(geometry))
            tracker = cls(device, geometry, kernel, made, pins)
            try:
                tracker._begin(cause)
            except BaseException:
                made.close()
                raise
            return tracker
        except BaseException:
            kernel.close()
            raise

    def _begin(self, cause: Cause) -> None:
        """The programs are attached; take the base of all counts, then pin."""
        control = self._control
        control.resync_cause = cause
        if not self._kernel.statistics_on():
            self._kernel.switch_statistics(on=True)
            control.statistics_was_off = 1
        accounted, counters = self._simultaneous_counts()
        for group in range(2):
            control.base_accounted[group] = accounted[group]
            control.base_issued[group] = counters.issued[group] - counters.requeued[group]
            control.base_completed[group] = counters.completed[group]
        control.window_flags = Window.BEGAN_UNDER_WAY
        if self._pins is not None:
            self._pins.publish(self._objects.descriptors)

    def _continue(self) -> None:
        self._continued = True
        self._halves.recover()

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        return "ebpf"

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def captures_order(self) -> bool:
        return False

    @property
    def proves_quiet(self) -> bool:
        return True

    @property
    def continued(self) -> bool:
        return self._continued

    def status(self) -> TrackerStatus:
        if self._closed:
            return TrackerStatus(TrackerState.BLIND, "the tracker is not attached")
        try:
            replaced = self._kernel.incarnation() != self._control.incarnation
            size_bytes = self._kernel.size_bytes()
            statistics_on = self._kernel.statistics_on()
        except OSError as error:
            return TrackerStatus(TrackerState.BLIND, f"the device {self._device} is gone: {error.strerror}")
        if replaced:
            return TrackerStatus(TrackerState.BLIND, f"another disk has taken the place of {self._device}")
        if size_bytes != self._geometry.size_bytes:
            return TrackerStatus(
                TrackerState.DEGRADED,
                f"{self._device} was resized from {self._geometry.size_bytes} to {size_bytes} bytes; "
                "only the earlier size is tracked",
            )
        if not statistics_on:
            return TrackerStatus(TrackerState.DEGRADED, CAUSE_SENTENCES[Cause.STATISTICS_OFF])
        cause = Cause(self._control.resync_cause)
        if cause not in (Cause.NONE, Cause.TRACKING_BEGAN):
            return TrackerStatus(TrackerState.DEGRADED, CAUSE_SENTENCES[cause])
        return TrackerStatus(TrackerState.TRACKING)

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

    # -- harvest ------------------------------------------------------------------------------------------------

    def begin_harvest(self, into: DirtyBitmap | None = None) -> Harvest:
        self._require_same_device()
        bitmap = DirtyBitmap(self._geometry.granules) if into is None else into
        if self._stage is not _Stage.NONE:
            self._halves.fold()
        self._stage = _Stage.INTERRUPTED
        statistics_on = self._kernel.statistics_on()
        accounted = self._kernel.accounted_sectors()
        self._flip = _Flip(self._objects.totals().runs, accounted)
        self._halves.flip()
        readings = self._readings_of(accounted, self._objects.totals(), statistics_on=statistics_on)
        verdict = reconcile(self._ledger(), readings)
        self._settle(verdict)
        if not statistics_on:
            self._kernel.switch_statistics(on=True)
            accounted, counters = self._simultaneous_counts()
            self._store(rebased(self._ledger(), self._readings_of(accounted, counters, statistics_on=True)))
        rested = self._look_for_rest()
        self._halves.collect(bitmap)
        if not rested:
            self._halves.suspect_flipped()
        self._stage = _Stage.RETURNED
        return Harvest(bitmap, self._doubt())

    def commit_harvest(self) -> None:
        if self._stage is not _Stage.RETURNED:
            return
        self._halves.commit()
        self._control.resync_cause = Cause.NONE
        self._redirty_reason = ""
        self._stage = _Stage.NONE

    def _doubt(self) -> Doubt:
        cause = Cause(self._control.resync_cause)
        if cause is not Cause.NONE:
            return Doubt(DoubtKind.RESYNC, CAUSE_SENTENCES[cause])
        return Doubt(DoubtKind.REDIRTIED, self._redirty_reason) if self._redirty_reason else NO_DOUBT

    def _settle(self, verdict: Verdict) -> None:
        """Store what the verdict demands, and only then that it was dealt with: killed in between, it is found again."""
        if verdict.resync is not Cause.NONE:
            self._control.resync_cause = verdict.resync
        if verdict.redirty_reason:
            self._redirty_reason = verdict.redirty_reason
            self._halves.carry_suspects()
        self._store(verdict.ledger)

    def _look_for_rest(self) -> bool:
        """Whether all that was issued before the flip has landed and is accounted for, so that suspicion ends."""
        readings = self._readings()
        ledger = self._ledger()
        if self._kernel.writes_in_flight():
            return False
        if is_exact(ledger, readings):
            self._store(at_exact_rest(ledger))
            self._halves.clear_suspects()
            return True
        if any(count > 0 for count in (*ledger.completion_deficit(readings), *ledger.issue_deficit(readings))):
            return False
        self._wait_for_programs()
        if self._readings() != readings or self._kernel.writes_in_flight():
            return False
        verdict = at_inexact_rest(ledger, readings, lasting=readings == self._last_rest)
        self._last_rest = readings
        if verdict.ledger != ledger:
            self._settle(verdict)
        return False

    # -- questions asked while frozen (R9) ------------------------------------------------------------------------

    def wrote_since_flip(self) -> bool:
        if self._flip is None or self._closed:
            return True
        readings = self._readings()
        return (
            self._objects.totals().runs != self._flip.runs
            or self._kernel.accounted_sectors() != self._flip.accounted
            or self._kernel.writes_in_flight() > 0
            or not is_exact(self._ledger(), readings)
        )

    def is_idle(self) -> bool:
        if self._closed:
            return False
        readings = self._readings()
        return self._kernel.writes_in_flight() == 0 and is_exact(self._ledger(), readings)

    # -- marks and the end ----------------------------------------------------------------------------------------

    def mark(self, runs: GranuleRuns) -> None:
        self._halves.mark(runs, harvest_open=self._stage is not _Stage.NONE)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._kernel.close()
        self._objects.close()
        if self._pins is not None:
            self._pins.unlock()

    def discard(self) -> None:
        if self._pins is not None:
            self._pins.remove()
        if not self._closed and self._control.statistics_was_off:
            self._kernel.switch_statistics(on=False)
        self.close()

    # -- the counters ---------------------------------------------------------------------------------------------

    def _require_same_device(self) -> None:
        if self._closed:
            raise Refused(f"cannot harvest {self._device}: the tracker is closed")
        if self._kernel.incarnation() != self._control.incarnation:
            raise Refused(
                f"cannot harvest {self._device}: another disk has taken its place",
                hint="the disk was detached; protect the new one, or attach the old one again and resynchronize",
            )

    def _simultaneous_counts(self) -> tuple[Groups, CpuCounters]:
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

    def _readings(self) -> Readings:
        statistics_on = self._kernel.statistics_on()
        accounted = self._kernel.accounted_sectors()
        return self._readings_of(accounted, self._objects.totals(), statistics_on=statistics_on)

    def _readings_of(self, accounted: Groups, totals: CpuCounters, *, statistics_on: bool) -> Readings:
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

    def _ledger(self) -> Ledger:
        control = self._control
        return Ledger(
            forgiven_completed=_pair(control.forgiven_completed),
            forgiven_issued=_pair(control.forgiven_issued),
            window=Window(control.window_flags),
            seen_missed_runs=control.seen_missed_runs,
            seen_overflows=control.seen_overflow,
            seen_passthroughs=control.seen_passthrough,
        )

    def _store(self, ledger: Ledger) -> None:
        control = self._control
        before = self._ledger()
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
