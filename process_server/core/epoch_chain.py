"""When a manifest may be put to the store: the chain of a generation's epochs, and the verdict over a pending manifest (R5).

Called by the uploader (before a put and after every answer of the store) and the intake (what it may answer at once).

A manifest may be put only after every segment it names is stored *and* its predecessor is decided as the one it chains to: that
manifest is in the store with the same hash, or the receipt says that it is applied. The first manifest of an epoch decides it: one with
another hash is superseded, whatever attempt it is of. Invariant: what ``decided`` holds was seen in the store or in a receipt, so it
never changes, unless the store itself is put back to an older state (``step_back``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from process_server.core.places import RecordPlace
from replication.identifiers import NO_EPOCH, AttemptNumber, BatchNumber, EpochId, EpochKey

REMEMBERED_EPOCHS: Final = 16
"""Decided epochs whose hashes are kept per generation; of older ones the store is asked."""

_FIRST_EPOCH: Final = 1
_CHAIN_START: Final = bytes(32)
"""What the first manifest chains to (``epoch_manifest.NO_MANIFEST``)."""


@dataclass(frozen=True, slots=True)
class ReceiptFacts:
    """What the newest receipt says: applied up to ``epoch`` (0: nothing), whose manifest has ``manifest_hash``."""

    epoch: EpochId
    manifest_hash: bytes
    closed: bool

    def is_behind(self, known: ReceiptFacts) -> bool:
        """Whether a store that said ``known`` and says this afterwards was put back to an older state: applied epochs only grow, and the
        manifest of one never changes.
        """
        return self.epoch < known.epoch or (self.epoch == known.epoch and self.manifest_hash != known.manifest_hash)


NOTHING_APPLIED: Final = ReceiptFacts(NO_EPOCH, _CHAIN_START, closed=False)
"""As a receipt that is not there would say."""


@dataclass(slots=True)
class PendingManifest:
    """A manifest that is durable in the spool and not yet decided. ``missing``: batches it names that are not stored yet."""

    key: EpochKey
    attempt: AttemptNumber
    manifest_hash: bytes
    previous_hash: bytes
    place: RecordPlace
    accepted_unix_ns: int
    missing: set[BatchNumber]
    unverified: bool = False
    """Some segments it names are unknown here (their spool files are gone): the store must be asked before it is put."""
    lost: set[BatchNumber] = field(default_factory=set)
    """Batches it names that will never be stored as named: damaged in the spool, or decided otherwise in the store."""


@dataclass(slots=True)
class EpochChain:
    """What is known of a generation's decided epochs."""

    receipt: ReceiptFacts | None = None
    decided: OrderedDict[EpochId, bytes] = field(default_factory=OrderedDict)
    decided_through: EpochId = NO_EPOCH

    def decide(self, epoch: EpochId, manifest_hash: bytes) -> None:
        """Note that the store holds (or the sink has applied) this manifest of ``epoch``."""
        self.decided[epoch] = manifest_hash
        self.decided_through = max(self.decided_through, epoch)
        while len(self.decided) > REMEMBERED_EPOCHS:
            del self.decided[min(self.decided)]

    def learn(self, receipt: ReceiptFacts) -> None:
        """Take over a newer receipt; an older one (two readers crossing) changes nothing."""
        if self.receipt is not None and receipt.epoch < self.receipt.epoch:
            return
        self.receipt = receipt
        if receipt.epoch:
            self.decide(receipt.epoch, receipt.manifest_hash)

    def step_back(self, receipt: ReceiptFacts) -> None:
        """The store is an older one than it was: nothing is known any more of what was decided after ``receipt``."""
        self.receipt, self.decided_through = receipt, NO_EPOCH
        self.decided.clear()
        if receipt.epoch:
            self.decide(receipt.epoch, receipt.manifest_hash)

    def hash_of(self, epoch: EpochId) -> bytes | None:
        """The decided manifest's hash, if it is known."""
        return _CHAIN_START if epoch < _FIRST_EPOCH else self.decided.get(epoch)

    def is_over(self, epoch: EpochId) -> bool:
        """Whether nothing new of ``epoch`` can count any more: it is decided, or the generation was closed."""
        return epoch <= self.decided_through or (self.receipt is not None and self.receipt.closed)

    @property
    def applied_epoch(self) -> EpochId:
        return NO_EPOCH if self.receipt is None else self.receipt.epoch


@dataclass(frozen=True, slots=True)
class Put:
    """Every condition holds: put it."""


@dataclass(frozen=True, slots=True)
class AwaitSegments:
    """Segments it names are still on their way to the store."""


@dataclass(frozen=True, slots=True)
class VerifySegments:
    """Ask the store whether the segments that are unknown here are there."""


@dataclass(frozen=True, slots=True)
class AskPredecessor:
    """Ask the store which manifest decided ``epoch``."""

    epoch: EpochId


@dataclass(frozen=True, slots=True)
class Decided:
    """This very manifest is the one that decided its epoch: nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """It will never be put: drop it. ``reason`` is for the log and for the agent that asks again."""

    reason: str


Verdict = Put | AwaitSegments | VerifySegments | AskPredecessor | Decided | Superseded


def judge(manifest: PendingManifest, chain: EpochChain) -> Verdict:
    """What to do with a pending manifest, given what is known of its generation's chain."""
    epoch = manifest.key.epoch
    known = decided_otherwise(epoch, manifest.manifest_hash, manifest.previous_hash, chain)
    if known is not None:
        return known
    if manifest.lost:
        return Superseded(f"{len(manifest.lost)} of its segments are lost or were decided otherwise")
    if manifest.missing:
        return AwaitSegments()
    if manifest.unverified:
        return VerifySegments()
    if chain.hash_of(EpochId(epoch - 1)) is None:
        return AskPredecessor(EpochId(epoch - 1))
    return Put()


def decided_otherwise(
    epoch: EpochId, manifest_hash: bytes, previous_hash: bytes, chain: EpochChain
) -> Decided | Superseded | None:
    """Whether the chain alone settles the fate of a manifest; None while it is open."""
    decided = chain.hash_of(epoch)
    if decided is not None:
        return Decided() if decided == manifest_hash else Superseded("another manifest decided this epoch")
    if epoch < chain.applied_epoch:
        return Superseded(f"the sink has applied epoch {chain.applied_epoch} already")
    if chain.receipt is not None and chain.receipt.closed:
        return Superseded(f"the generation was closed at epoch {chain.applied_epoch}")
    previous = chain.hash_of(EpochId(epoch - 1))
    if previous is not None and previous != previous_hash:
        return Superseded("it does not chain to the manifest that decided the epoch before")
    return None


def replaces(newer: AttemptNumber, pending: PendingManifest | None) -> bool:
    """Whether a manifest of attempt ``newer`` takes the place of the one that is pending for the same epoch."""
    return pending is None or newer > pending.attempt
