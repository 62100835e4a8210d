"""The ``ebpf`` change tracker of one block device: attach to pins or start anew, harvest, reconcile, commit.

Called by the agent's disk session. Touches bpf(2), the pin directory, sysfs files of the device; never the device's data.
The decisions are elsewhere: ``core/reconciliation`` (were marks lost?) and ``halves`` (in which order to move bits).

Guarantees: killed at any point, the tracking goes on in the kernel, and the next attach loses no mark. Without pins
(``pin_directory`` None) everything ends with the process.

The device's I/O statistics (queue/iostats) must be on for losses to show. They are by default; where they are not, the
tracker switches them on (their cost is far below its own) and ``discard`` restores what was there.
"""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf import bpf_syscall, objects
from mobility_agent.change_tracker.ebpf.accounts import Accounts, TrackerStatistics
from mobility_agent.change_tracker.ebpf.halves import Halves
from mobility_agent.change_tracker.ebpf.layout import BitmapLayout
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
    Readings,
    Verdict,
    at_exact_rest,
    at_inexact_rest,
    is_exact,
    rebased,
    reconcile,
)
from replication.dirty_bitmap import DEFAULT_GRANULARITY_BYTES, DirtyBitmap, Geometry, GranuleRuns
from replication.errors import Refused
from replication.failpoint import reached

_REST_LOOKS: Final = 8
"""A busy disk rests for moments only; a window that ends soon holds fewer suspects. Each look takes some 50 microseconds."""


class _Stage(enum.Enum):
    NONE = enum.auto()
    INTERRUPTED = enum.auto()
    """The halves were flipped, but the harvest was not handed out: it cannot be committed, only begun again."""
    RETURNED = enum.auto()


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
        self._accounts = Accounts(kernel, kernel_objects, wait_for_programs)
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
        except PermissionError as error:
            kernel.close()
            bpf_syscall.refuse_without_privilege(error, f"track {device} with eBPF")
            raise
        except BaseException:
            kernel.close()
            raise

    def _begin(self, cause: Cause) -> None:
        """The programs are attached; take the base of all counts, then pin."""
        control = self._control
        control.resync_cause = cause
        statistics_on = self._kernel.statistics_on()
        if not statistics_on:
            self._kernel.switch_statistics(on=True)
            control.statistics_was_off = 1
        self._accounts.take_base(statistics_were_on=statistics_on)
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
        return self._accounts.statistics()

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
        readings = self._accounts.readings_of(accounted, self._objects.totals(), statistics_on=statistics_on)
        verdict = reconcile(self._accounts.ledger(), readings)
        self._settle(verdict)
        if not statistics_on:
            self._kernel.switch_statistics(on=True)
            accounted, counters = self._accounts.simultaneous()
            self._accounts.store(
                rebased(self._accounts.ledger(), self._accounts.readings_of(accounted, counters, statistics_on=True))
            )
        rested = self._look_for_rest()
        self._halves.collect(bitmap)
        if not rested:
            self._halves.suspect_flipped()
        self._stage = _Stage.RETURNED
        return Harvest(bitmap, self._doubt())

    @property
    def journal_serial(self) -> int:
        return int(self._control.journal_serial)

    def commit_harvest(self, journal_serial: int = 0) -> None:
        if self._stage is not _Stage.RETURNED:
            return
        if journal_serial:
            self._control.journal_serial = journal_serial  # before anything is forgotten
        reached("agent.harvest.serial-noted")
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
        self._accounts.store(verdict.ledger)

    def _look_for_rest(self) -> bool:
        """Whether all that was issued before the flip has landed and is accounted for, so that suspicion ends."""
        ledger = self._accounts.ledger()
        for _ in range(_REST_LOOKS):
            readings = self._accounts.readings()
            in_flight = self._kernel.writes_in_flight()
            # What was accounted for between the two counts of a reading could stand in for a mark that was lost.
            if not in_flight and is_exact(ledger, readings) and self._accounts.readings() == readings:
                self._accounts.store(at_exact_rest(ledger))
                self._halves.clear_suspects()
                return True
        if in_flight:
            return False
        if any(count > 0 for count in (*ledger.completion_deficit(readings), *ledger.issue_deficit(readings))):
            return False
        self._wait_for_programs()
        if self._accounts.readings() != readings or self._kernel.writes_in_flight():
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
        try:
            readings = self._accounts.readings()
            return (
                self._objects.totals().runs != self._flip.runs
                or self._kernel.accounted_sectors() != self._flip.accounted
                or self._kernel.writes_in_flight() > 0
                or not is_exact(self._accounts.ledger(), readings)
            )
        except OSError:  # the device is gone: it cannot be known
            return True

    def is_idle(self) -> bool:
        if self._closed:
            return False
        try:
            readings = self._accounts.readings()
            return self._kernel.writes_in_flight() == 0 and is_exact(self._accounts.ledger(), readings)
        except OSError:  # as above
            return False

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
            with contextlib.suppress(OSError):  # the device is gone, and its setting with it
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
