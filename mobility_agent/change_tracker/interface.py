"""What every change tracker promises, whatever its mechanism. Values and Protocols only: no I/O.

Called by the agent's epochs (harvest, commit, mark), its point epochs (``wrote_since_flip``, ``is_idle``) and by the
resync (``scan``). Implemented by ``ebpf``, ``scan``, and a fake in ``tests/harness``; made so that a write-ordered
tracker (``nbd``) fits. One contract suite runs over all of them: tests/contract/test_change_tracker_contract.py.

The order that loses nothing (rule R2):

    begin_harvest   flip; wait until no marker still writes to the flipped half; reconcile; return a copy of it
    the caller      persists the copy (fsync), or merges it into something persisted
    commit_harvest  clears the flipped half: only now may bits be forgotten

A tracker never clears on its own. Killed anywhere in between, it finds the bits again at the next attach. The caller
reads the harvested granules only after ``begin_harvest`` returned: a block written later is in the next harvest.

Trackers are not thread-safe: one caller at a time (the agent's executor of that disk). They block; none is a coroutine.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.extents import Extent


class TrackerState(enum.StrEnum):
    """Exported as a metric and to the operator, together with the reason."""

    TRACKING = "tracking"
    """Every write is seen, and losses would be noticed."""
    DEGRADED = "degraded"
    """Writes are seen, but something is wrong that the operator should know or that the agent must act upon."""
    BLIND = "blind"
    """Writes are not seen. Nothing that this disk's replica holds can be vouched for until a resync."""


@dataclass(frozen=True, slots=True)
class TrackerStatus:
    """``reason`` is one sentence for the operator; empty if and only if the state is TRACKING."""

    state: TrackerState
    reason: str = ""


class DoubtKind(enum.StrEnum):
    NONE = "none"
    REDIRTIED = "redirtied"
    """Marks were lost; all that they can have covered is already merged in the bitmap. Nothing else to do.

    It is no obstacle to a point: what is dirty again is read in the frozen round like the rest. On some kernels it is common
    under load, so refusing points for it would starve them.
    """
    RESYNC = "resync"
    """Marks were lost and what they covered is unknown: every granule must be compared with the digest table."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """``reason`` is one sentence for the operator; empty if and only if the kind is NONE."""

    kind: DoubtKind
    reason: str = ""


NO_DOUBT = Doubt(DoubtKind.NONE)


class ExtentSource(Protocol):
    """Something that a disk's bytes can be read from: the live device, or the image of a cut."""

    def read_into(self, buffer: memoryview, extent: Extent) -> None:
        """Fill ``buffer`` (exactly ``extent.length_bytes`` long) with the bytes of ``extent``.

        :raises Retryable: if the device reports an error; ``offset_bytes`` says where.
        :raises ResyncRequired: if the disk ends before the extent does: it was resized.
        """
        ...


@dataclass(frozen=True, slots=True)
class Harvest:
    """What may have changed since the last committed harvest.

    ``doubt`` of kind RESYNC is repeated by every harvest until one that carried it is committed: by committing, the
    caller says that the duty to compare everything is persisted.

    ``cut`` is None for trackers that see *that* blocks change, not *when*: the harvested granules are read from the
    live device, later writes included. A tracker with ``captures_order`` gives the image of the instant of the flip,
    valid until ``commit_harvest``; then each epoch is a point without a freeze.
    """

    bitmap: DirtyBitmap
    doubt: Doubt = NO_DOUBT
    cut: ExtentSource | None = None


class ChangeTracker(Protocol):
    """Feeds the dirty bitmap of one disk."""

    @property
    def kind(self) -> str:
        """``ebpf``, ``scan``, ``nbd``: the name in settings, metrics and status."""
        ...

    @property
    def geometry(self) -> Geometry: ...

    @property
    def captures_order(self) -> bool:
        """True if every write passes through the tracker in order, so that a harvest has a ``cut`` image."""
        ...

    @property
    def proves_quiet(self) -> bool:
        """False if ``wrote_since_flip`` can only ever answer "cannot know" (True): points then need quiesce hooks."""
        ...

    @property
    def continued(self) -> bool:
        """True if this attach found its own tracking still going on, or needs none (``scan``).

        False: what was written before is unknown, and the first harvest is a RESYNC doubt.
        """
        ...

    def status(self) -> TrackerStatus:
        """Present state and its reason. Reads a few small files at most; never raises for a missing device (BLIND)."""
        ...

    def begin_harvest(self, into: DirtyBitmap | None = None) -> Harvest:
        """Flip and return what may have changed since the last committed harvest. Clears nothing.

        ``into`` is a bitmap of this geometry to reuse (its content is replaced): then nothing of note is allocated,
        and the call may be made while file systems are frozen (R9). A second call without a commit in between flips
        again and returns the union of both, which one commit then covers.

        ``scan`` reads the disk inside this call; it reports progress and can be cancelled as its constructor says.

        :raises Refused: if another device has taken the disk's place (R11).
        :raises OSError: if the device or the kernel's counters cannot be read. Nothing is lost: call again.
        """
        ...

    @property
    def journal_serial(self) -> int:
        """What the newest ``commit_harvest`` was told, over restarts of the agent; 0 if none was, or if nothing is remembered (``scan``).

        An agent whose journal is older has lost harvests that were forgotten here: its state directory comes from a backup.
        """
        ...

    def commit_harvest(self, journal_serial: int = 0) -> None:
        """Forget what the last harvest returned, since it is durable elsewhere. Without an open harvest: no-op.

        ``journal_serial`` grows with each saving of where it is durable; 0 leaves what was told before.
        """
        ...

    def wrote_since_flip(self) -> bool:
        """Whether any write was issued, in flight or completed since the last flip; True when that cannot be known.

        Never False wrongly. Writes no file, logs nothing and allocates nothing of note: callable while frozen (R9).
        True before the first harvest.
        """
        ...

    def is_idle(self) -> bool:
        """Whether no write is in flight now and no loss is suspected; False when that cannot be known. As above (R9)."""
        ...

    def mark(self, runs: GranuleRuns) -> None:
        """Make ``runs`` part of the next harvest. As durable as what feeds the tracker: with pins it survives the agent."""
        ...

    def close(self) -> None:
        """Let go of it. Where the mechanism outlives the process (``ebpf`` with pins), tracking goes on. Idempotent."""
        ...

    def discard(self) -> None:
        """Stop tracking and leave nothing behind; close. Idempotent."""
        ...


class ReferenceDigests(Protocol):
    """What ``scan`` compares with: the digests of each granule as applied at the sink (the digest table)."""

    def changed_in(self, first_granule: int, data: memoryview) -> GranuleRuns:
        """Return the granules, numbered on the disk, whose bytes in ``data`` differ from what the sink holds.

        ``data`` starts at ``first_granule`` and is a whole number of granules, the disk's short last one excepted.
        A granule without a confirmed digest counts as changed (R1).
        """
        ...

    def changed_in_hole(self, first_granule: int, granule_count: int) -> GranuleRuns:
        """As ``changed_in`` for granules that are known to read as zeros, without their bytes."""
        ...
