"""The ledger of a disk's epochs: what is pending, which epochs are unconfirmed, which attempt of each counts. Pure values.

Called by ``disk_session`` (decides with it) and ``epoch_journal`` (keeps it durable). Theory of operation:

Every granule that may differ from the replica is in exactly one place that survives a crash: the tracker's own bits, ``pending``,
or the granules of an unconfirmed epoch (R2). A *cut* moves granules from ``pending`` to a new OPEN epoch. Its *attempt* number is
durable before the attempt's first read (R4); a new attempt makes a point epoch an ordinary one. *Sealed* means that the manifest of
that attempt was fixed and is durable here; it is put, and put again, until a receipt says that the epoch is applied. Only the
receipt removes it (P1). Manifests chain, so epochs are sealed in order; when one must be opened again, all later ones must too.

Every manifest that was ever sealed for an epoch stays known (``Epoch.fixed``), since it may have been put and may decide. What decides
must be one of them: a manifest that this ledger never sealed shows that the agent's state, or the whole machine, is older than the
history at the sink (R4). Its granules are unknown then, so nothing that is known of the replica can be trusted any more.

Invariant: epochs are numbered without gaps from ``applied_epoch`` + 1, and no SEALED epoch follows an OPEN one.

One thread at a time changes the ledger; others may read it meanwhile and see each epoch as it was before or after.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.epoch_manifest import NO_MANIFEST, ConsistentCut, EpochFlag, manifest_hash
from replication.errors import BlockferryError, ResyncRequired
from replication.identifiers import AttemptNumber, CutId, DiskId, EpochId, GenerationId


class HistoryDiverged(ResyncRequired):
    """What the sink holds is not what this agent knows of it: one of the two was reverted. The digest table must be forgotten too."""


class EpochState(enum.StrEnum):
    """An epoch's life at the agent; CONFIRMED and VOIDED ones have left the ledger."""

    OPEN = "open"
    SEALED = "sealed"
    CONFIRMED = "confirmed"
    VOIDED = "voided"


class EpochEvent(enum.StrEnum):
    """What happens to an epoch."""

    ATTEMPT_BEGUN = "attempt-begun"
    MANIFEST_FIXED = "manifest-fixed"
    RECEIPT_ARRIVED = "receipt-arrived"
    VOID_DECIDED = "void-decided"


TRANSITIONS: Final[dict[tuple[EpochState, EpochEvent], EpochState]] = {
    (EpochState.OPEN, EpochEvent.ATTEMPT_BEGUN): EpochState.OPEN,
    # Of the present attempt, or of an earlier one whose manifest has turned out to have decided the epoch.
    (EpochState.OPEN, EpochEvent.MANIFEST_FIXED): EpochState.SEALED,
    (EpochState.SEALED, EpochEvent.MANIFEST_FIXED): EpochState.SEALED,
    # An earlier attempt's manifest, put before a crash, may decide the epoch while a later attempt is being read.
    (EpochState.OPEN, EpochEvent.RECEIPT_ARRIVED): EpochState.CONFIRMED,
    (EpochState.OPEN, EpochEvent.VOID_DECIDED): EpochState.VOIDED,
    (EpochState.SEALED, EpochEvent.ATTEMPT_BEGUN): EpochState.OPEN,
    (EpochState.SEALED, EpochEvent.RECEIPT_ARRIVED): EpochState.CONFIRMED,
    (EpochState.SEALED, EpochEvent.VOID_DECIDED): EpochState.VOIDED,
}

_POINT_FLAGS: Final = EpochFlag.POINT | EpochFlag.FINAL | EpochFlag.APP_CONSISTENT


@dataclass(frozen=True, slots=True)
class FixedManifest:
    """A manifest that was sealed for an epoch, and so may have been put: which attempt it names and what it chains to."""

    attempt: AttemptNumber
    hash: bytes
    previous_hash: bytes


@dataclass(frozen=True, slots=True)
class Epoch:
    """One unconfirmed epoch. While SEALED, ``manifest`` is its encoded manifest and ``sealed`` says what is fixed by it."""

    number: EpochId
    granules: GranuleRuns
    attempt: AttemptNumber
    flags: EpochFlag
    cut_time_ns: int
    cut: ConsistentCut | None
    state: EpochState
    manifest: bytes = b""
    sealed: FixedManifest | None = None
    fixed: tuple[FixedManifest, ...] = ()

    def after(self, event: EpochEvent) -> EpochState:
        """:raises BlockferryError: for a pair that is no transition: a defect, never an input."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise BlockferryError(f"cannot take {event} in an epoch that is {self.state}", epoch=self.number)
        return state

    def fixed_as(self, hash_of_manifest: bytes) -> FixedManifest | None:
        """The manifest with this hash, if it was ever sealed for this epoch."""
        return next((fixed for fixed in self.fixed if fixed.hash == hash_of_manifest), None)

    def sealed_as(self, fixed: FixedManifest, manifest: bytes) -> Epoch:
        known = self.fixed if fixed in self.fixed else (*self.fixed, fixed)
        state = self.after(EpochEvent.MANIFEST_FIXED)
        return replace(self, state=state, manifest=manifest, sealed=fixed, fixed=known)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """An epoch that the sink has applied, and the manifest that decided it. ``cut``: of which consistent cut it was the part."""

    epoch: Epoch
    applied: FixedManifest
    cut: CutId | None


class EpochLedger:
    """Mutable; the owner persists it after each method that changes it, before acting on the change."""

    def __init__(self, disk: DiskId, generation: GenerationId, geometry: Geometry) -> None:
        self.disk = disk
        self.generation = generation
        self.geometry = geometry
        self.serial = 0
        """Counted up by each saving, over all generations: tells an older copy of the ledger from the newest."""
        self.applied_epoch = EpochId(0)
        self.applied_hash = NO_MANIFEST
        self.applied_cut_time_ns = 0
        self.epochs: list[Epoch] = []
        self.seed_cursor: int | None = None
        """Next granule that initial replication or resync will take; None once every granule was taken."""
        self.last_seed_epoch = EpochId(0)
        self._pending = DirtyBitmap(geometry.granules)
        self._pending_version = 0
        self._counted = (0, 0)
        """(version of ``_pending``, its granules): a count that a change overtook names an older version."""

    # ---- what is to do

    @property
    def pending(self) -> DirtyBitmap:
        """To be read only: it is changed through this ledger's methods."""
        return self._pending

    @property
    def pending_granules(self) -> int:
        """Number of pending granules. Counted when asked for the first time after a change: a few ms for a very large disk."""
        version, count = self._counted
        if version != self._pending_version:
            version = self._pending_version
            count = self._pending.count()
            self._counted = (version, count)
        return count

    def _pending_changed(self) -> None:
        """Called after each change."""
        self._pending_version += 1

    @property
    def next_epoch(self) -> EpochId:
        return EpochId(self.applied_epoch + len(self.epochs) + 1)

    @property
    def open_epoch(self) -> Epoch | None:
        """The first epoch that must be (re-)shipped."""
        return next((epoch for epoch in self.epochs if epoch.state is EpochState.OPEN), None)

    @property
    def sealed_epochs(self) -> list[Epoch]:
        return [epoch for epoch in self.epochs if epoch.state is EpochState.SEALED]

    @property
    def sealed_epoch(self) -> EpochId:
        """The newest sealed epoch, or the applied one."""
        return max((epoch.number for epoch in self.sealed_epochs), default=self.applied_epoch)

    @property
    def is_seeding(self) -> bool:
        """Until every granule has been taken *and* the last epoch that took one is applied."""
        return self.seed_cursor is not None or self.applied_epoch < self.last_seed_epoch

    @property
    def is_clean(self) -> bool:
        """Nothing but what the tracker may hold differs from the replica."""
        return not self.epochs and not self.pending_granules

    def find(self, number: EpochId) -> Epoch | None:
        """The unconfirmed epoch ``number``, or None."""
        return next((epoch for epoch in self.epochs if epoch.number == number), None)

    def unconfirmed_bytes(self) -> int:
        return sum(epoch.granules.byte_count(self.geometry) for epoch in self.epochs)

    def pending_bytes(self) -> int:
        return self.pending_granules * self.geometry.granularity_bytes

    def granules_not_to_skip(self, number: EpochId) -> list[GranuleRuns]:
        """Granules of other unconfirmed epochs: their digest at the sink is not known yet (R1)."""
        return [epoch.granules for epoch in self.epochs if epoch.number != number and epoch.granules]

    def chain_hash(self, number: EpochId) -> bytes:
        """The hash that the manifest of epoch ``number`` chains to. Its predecessor is sealed or applied."""
        if number == self.applied_epoch + 1:
            return self.applied_hash
        before = self._epoch(EpochId(number - 1))
        if before.sealed is None:
            raise BlockferryError("cannot chain to an epoch that is not sealed", disk=self.disk, epoch=number)
        return before.sealed.hash

    # ---- what happens

    def begin_seeding(self) -> None:
        """Initial replication or resync: every granule is to be compared, then sent if it differs."""
        self._pending.mark_all()
        self._pending_changed()
        self.seed_cursor = 0

    def absorb(self, harvested: DirtyBitmap) -> None:
        self._pending.mark_words(harvested.words)
        self._pending_changed()

    @property
    def covered_time_ns(self) -> int:
        """The instant whose every earlier write is in the replica once all known epochs are applied; 0 if there is none."""
        return self.epochs[-1].cut_time_ns if self.epochs else self.applied_cut_time_ns

    def cut(self, *, limit_granules: int, harvest_time_ns: int | None) -> Epoch | None:
        """Move up to ``limit_granules`` from ``pending`` to a new OPEN epoch; None if nothing is pending.

        ``harvest_time_ns`` is when the tracker was flipped just now, None if it was not. It becomes the epoch's cut time only
        if nothing stays pending: a cut time says that every write completed before it is covered.

        While seeding, granules are taken in ascending order from the cursor: what changes behind it waits for the delta,
        so that a hot block is not sent over and over.
        """
        flags = EpochFlag(0)
        runs = GranuleRuns.of(())
        if self.seed_cursor is not None:
            runs = self._pending.runs(limit_granules, self.seed_cursor)
            self.seed_cursor = self._cursor_after(runs) if runs.granule_count == limit_granules else None
            flags = EpochFlag.SEEDING if runs else flags
        runs = runs or self._pending.runs(limit_granules)
        if not runs:
            return None
        covered_time_ns = self.covered_time_ns
        epoch = self._add(runs, flags, covered_time_ns, None)
        if harvest_time_ns is not None and not self.pending_granules:
            epoch = self.epochs[-1] = replace(epoch, cut_time_ns=harvest_time_ns)
        if flags & EpochFlag.SEEDING:
            self.last_seed_epoch = epoch.number
        return epoch

    def _cursor_after(self, runs: GranuleRuns) -> int | None:
        start, count = (int(value) for value in runs.pairs[-1])
        return start + count if start + count < self.geometry.granules else None

    def add_point(self, runs: GranuleRuns, flags: EpochFlag, cut_time_ns: int, cut: ConsistentCut) -> Epoch:
        """A point epoch over ``runs``, which are all that differs from the replica and have been read already."""
        return self._add(runs, flags | EpochFlag.POINT, cut_time_ns, cut)

    def _add(self, runs: GranuleRuns, flags: EpochFlag, cut_time_ns: int, cut: ConsistentCut | None) -> Epoch:
        self._pending.clear_runs(runs)
        self._pending_changed()
        epoch = Epoch(self.next_epoch, runs, AttemptNumber(1), flags, cut_time_ns, cut, EpochState.OPEN)
        self.epochs.append(epoch)
        return epoch

    def begin_attempt(self, number: EpochId) -> Epoch:
        """Open the next attempt of ``number`` and of every later epoch. A point that has to be re-read is no point any more."""
        self._epoch(number)
        for index, epoch in enumerate(self.epochs):
            if epoch.number >= number:
                self.epochs[index] = replace(
                    epoch,
                    state=epoch.after(EpochEvent.ATTEMPT_BEGUN),
                    attempt=AttemptNumber(epoch.attempt + 1),
                    flags=epoch.flags & ~_POINT_FLAGS,
                    cut=None,
                    manifest=b"",
                    sealed=None,
                )
        return self._epoch(number)

    def seal(self, number: EpochId, manifest: bytes) -> Epoch:
        """Fix the manifest of the present attempt, which chains to ``chain_hash(number)``; epochs are sealed in order."""
        index = self._index(number)
        if any(epoch.state is EpochState.OPEN for epoch in self.epochs[:index]):
            raise BlockferryError("cannot seal an epoch before the one it chains to", disk=self.disk, epoch=number)
        epoch = self.epochs[index]
        if epoch.state is not EpochState.OPEN:
            raise BlockferryError("cannot seal an epoch twice", disk=self.disk, epoch=number)
        fixed = FixedManifest(epoch.attempt, manifest_hash(manifest), self.chain_hash(number))
        self.epochs[index] = epoch.sealed_as(fixed, manifest)
        return self.epochs[index]

    def adopt(self, number: EpochId, manifest: bytes) -> None:
        """An earlier attempt's manifest decided this epoch (R5): it is sealed with that one; later epochs are opened again.

        :raises HistoryDiverged: if this ledger never sealed it.
        """
        index = self._index(number)
        fixed = self.epochs[index].fixed_as(manifest_hash(manifest))
        if fixed is None or fixed.previous_hash != self.chain_hash(number):
            raise self._diverged("another agent's manifest decided an epoch", number)
        if index + 1 < len(self.epochs):
            self.begin_attempt(EpochId(number + 1))
        self.epochs[index] = self.epochs[index].sealed_as(fixed, manifest)

    def adopt_void(self, number: EpochId, manifest: bytes, previous_hash: bytes) -> None:
        """A *void* manifest decided this epoch: it carries nothing, so the epoch's granules are pending again.

        :raises HistoryDiverged: if it does not chain to what is known here.
        """
        index = self._index(number)
        epoch = self.epochs[index]
        epoch.after(EpochEvent.VOID_DECIDED)
        if previous_hash != self.chain_hash(number):
            raise self._diverged("a void manifest of another history decided an epoch", number)
        fixed = FixedManifest(epoch.attempt, manifest_hash(manifest), previous_hash)
        if index + 1 < len(self.epochs):
            self.begin_attempt(EpochId(number + 1))
        self._pending.mark_runs(epoch.granules)
        self._pending_changed()
        nothing = replace(epoch, granules=GranuleRuns.of(()), flags=EpochFlag(0), cut=None)
        self.epochs[index] = nothing.sealed_as(fixed, manifest)

    def confirmable(self, number: EpochId, applied_hash: bytes) -> list[Confirmation]:
        """What a receipt that ``number`` is applied with ``applied_hash`` confirms; changes nothing. An older one is late and confirms
        nothing: that the sink itself has become older is told otherwise (``sink_standing``).

        :raises HistoryDiverged: if the sink is ahead of this ledger (a reverted machine, R4) or has another history.
        """
        if number < self.applied_epoch or (number == self.applied_epoch and applied_hash == self.applied_hash):
            return []
        if number == self.applied_epoch:
            raise self._diverged("the sink applied another manifest", number)
        if number >= self.next_epoch:
            raise self._diverged(
                f"the sink has applied epoch {number}, this agent knows only up to {self.next_epoch - 1}", number
            )
        confirmed: list[Confirmation] = []
        wanted = applied_hash
        for epoch in reversed(self.epochs[: number - self.applied_epoch]):
            applied = epoch.fixed_as(wanted)
            if applied is None:
                raise self._diverged("the sink applied a manifest that was never sealed here", epoch.number)
            cut = epoch.cut.cut if epoch.cut is not None and applied == epoch.sealed else None
            confirmed.insert(
                0, Confirmation(replace(epoch, state=epoch.after(EpochEvent.RECEIPT_ARRIVED)), applied, cut)
            )
            wanted = applied.previous_hash
        if wanted != self.applied_hash:
            raise self._diverged("the sink's manifests do not chain to what was applied before", number)
        return confirmed

    def confirm(self, number: EpochId, applied_hash: bytes, cut_time_ns: int) -> list[Confirmation]:
        """What is ``confirmable`` leaves the ledger.

        :raises HistoryDiverged: as there.
        """
        confirmed = self.confirmable(number, applied_hash)
        if not confirmed:
            return []
        is_present = confirmed[-1].applied == confirmed[-1].epoch.sealed
        self.epochs = self.epochs[number - self.applied_epoch :]
        self.applied_epoch, self.applied_hash, self.applied_cut_time_ns = number, applied_hash, cut_time_ns
        if not is_present and self.epochs:
            self.begin_attempt(self.epochs[0].number)
        return confirmed

    def _diverged(self, why: str, epoch: EpochId) -> HistoryDiverged:
        return HistoryDiverged(
            f"cannot go on: {why}",
            disk=self.disk,
            epoch=epoch,
            hint="the agent's state or the machine was probably reverted to an older state; a new generation is begun",
        )

    def _index(self, number: EpochId) -> int:
        index = number - self.applied_epoch - 1
        if not 0 <= index < len(self.epochs):
            raise BlockferryError("cannot find an epoch in the ledger", disk=self.disk, epoch=number)
        return index

    def _epoch(self, number: EpochId) -> Epoch:
        return self.epochs[self._index(number)]

    # ---- for the journal

    def restore_pending(self, pending: DirtyBitmap) -> None:
        """Replace what is pending, when the ledger is read back."""
        self._pending = pending
        self._pending_changed()
