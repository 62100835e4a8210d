"""Opening a disk's ledger, digest table and tracker together: what each still vouches for beside the others, and what must be forgotten.

Called by ``disk_supervisor`` in the disk's executor before a session begins. The three are durable in three places, each of which may be
lost, damaged, or come from an older backup: what they say of one another decides.

- The ledger must be of the granted generation and of the disk's present geometry.
- The table must be exact for an epoch that the ledger knows (R1); else it is forgotten, which costs sending what differs from nothing.
- A new generation's base must have been applied with a manifest that the ledger sealed: an epoch of the same number may be of another
  history, if this state is older than the sink's.
- The tracker notes the ledger's serial with each harvest that it forgets: an older ledger shows that harvests are lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind
from mobility_agent.core.epoch_ledger import EpochLedger, HistoryDiverged
from mobility_agent.protection.disk_session import SCAN_KIND
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.shipping.digest_table import DigestTable
from replication.control_plane import GenerationGrant
from replication.dirty_bitmap import Geometry, GranuleRuns
from replication.errors import IntegrityError, ResyncRequired
from replication.identifiers import DiskId, EpochId, GenerationId
from replication.store_documents import GenerationBase


def open_ledger(
    journal: EpochJournal,
    table: DigestTable,
    grant: GenerationGrant,
    geometry: Geometry,
    *,
    is_new: bool,
    distrust_digests: bool,
    serial: int,
) -> EpochLedger:
    """The saved ledger of the granted generation, or a fresh one that seeds, on top of what the digest table still knows.

    :param serial: the newest that the tracker has noted; a fresh ledger counts on from it.
    :raises ResyncRequired: if the saved ledger cannot be gone on with.
    """
    try:
        saved = journal.load()
    except IntegrityError as error:
        if not is_new:
            raise ResyncRequired(error.message, disk=grant.disk) from error
        saved = None
    if saved is not None and (saved.disk, saved.generation) == (grant.disk, grant.generation):
        if saved.geometry != geometry:
            raise ResyncRequired("cannot go on: the epoch journal is of another size or granularity", disk=grant.disk)
        _settle_table(table, saved)
        return saved
    if not is_new:
        raise ResyncRequired("cannot go on: the epoch journal is missing or of another generation", disk=grant.disk)
    _rebase_table(table, saved, grant, distrust_digests=distrust_digests)
    ledger = EpochLedger(DiskId(grant.disk), GenerationId(grant.generation), geometry)
    ledger.serial = max(serial, 0 if saved is None else saved.serial)
    ledger.begin_seeding()
    journal.drop_digests()
    journal.save(ledger)
    return ledger


def settle_attach(tracker: ChangeTracker, ledger: EpochLedger, *, is_ordered: bool = False) -> None:
    """A tracker that could not continue knows nothing of what was written before: fine only if everything is still to be read.

    :param is_ordered: the generation begins because an operator wished it. A loss from before it is a reason of its own then, which
        has to be told (R12): everything is read anyway, but recovery points that were cut since are in doubt.
    :raises ResyncRequired: else. :raises HistoryDiverged: if the ledger is older than what the tracker has given away.
    """
    nothing_read = ledger.seed_cursor == 0 and not ledger.epochs and ledger.applied_epoch == 0
    if nothing_read and tracker.kind != SCAN_KIND:
        harvest = tracker.begin_harvest()
        if is_ordered and (not tracker.continued or harvest.doubt.kind is DoubtKind.RESYNC):
            reason = tracker.status().reason if not tracker.continued else harvest.doubt.reason
            raise ResyncRequired(
                f"cannot go on: tracking was interrupted before the ordered resync began: {reason or 'it was started anew'}",
                disk=ledger.disk,
            )
        tracker.commit_harvest(ledger.serial)
    elif not nothing_read and not tracker.continued:
        reason = tracker.status().reason or "the tracker was started anew"
        raise ResyncRequired(f"cannot go on: tracking was interrupted: {reason}", disk=ledger.disk)
    elif tracker.journal_serial > ledger.serial:
        raise HistoryDiverged(
            "cannot go on: the epoch journal is older than the tracking",
            disk=ledger.disk,
            hint="the agent's state directory was probably restored from a backup; a new generation is begun",
        )


def _settle_table(table: DigestTable, ledger: EpochLedger) -> None:
    """Before anything is skipped, the table is exact for the very epoch that the ledger says is applied (R1): what it knows of later
    ones goes, which a crash or a full disk left here before the ledger could be saved; where it cannot be told what that is, all goes.
    The receipt comes again, and with it the digests of those epochs.
    """
    interrupted = table.interrupted_epoch
    is_known = table.generation == ledger.generation and ledger.applied_epoch <= table.exact_epoch < ledger.next_epoch
    if not is_known or (interrupted is not None and ledger.find(interrupted) is None):
        table.forget_all(ledger.generation, ledger.applied_epoch)
    elif interrupted is not None or table.exact_epoch > ledger.applied_epoch:
        newest = max(table.exact_epoch, interrupted or 0)
        recorded = (epoch.granules for epoch in ledger.epochs if epoch.number <= newest)
        table.forget_since(ledger.generation, ledger.applied_epoch, recorded)


def _rebase_table(
    table: DigestTable, old: EpochLedger | None, grant: GenerationGrant, *, distrust_digests: bool
) -> None:
    """Keep what the table knows if it is exact for the new generation's base, but for what the sink may have applied since (R1)."""
    generation = GenerationId(grant.generation)
    if not distrust_digests and table.generation == generation and table.exact_epoch == 0:
        return  # done before a crash; nothing of this generation has been sent yet
    if distrust_digests or old is None or grant.base is None or not _leads_to(table, old, grant.base, torn=grant.torn):
        table.forget_all(generation, EpochId(0))
        return
    _settle_table(table, old)
    # All of them, also those beyond the base: the sink may have applied a part of the next epoch and given it up (a torn epoch).
    table.begin_generation(generation, _granules_of(old))


def _granules_of(ledger: EpochLedger) -> Iterable[GranuleRuns]:
    return (epoch.granules for epoch in ledger.epochs)


def _leads_to(table: DigestTable, old: EpochLedger, base: GenerationBase, *, torn: bool) -> bool:
    """Whether ``old`` knows the granules of every epoch that the sink applied after the table's one, up to ``base``; and, if ``torn``,
    of the one after it, which was applied in part: each must have been applied with a manifest that was sealed here.
    """
    if not table.generation == old.generation == base.generation or table.geometry != old.geometry:
        return False
    if base.manifest_hash is None or not old.applied_epoch <= table.exact_epoch <= base.epoch < old.next_epoch:
        return False
    applied_hash = bytes.fromhex(base.manifest_hash)
    try:
        old.confirmable(EpochId(base.epoch), applied_hash)
    except HistoryDiverged:
        return False
    return not torn or _sealed_after(old, base, applied_hash)


def _sealed_after(old: EpochLedger, base: GenerationBase, applied_hash: bytes) -> bool:
    """Whether the torn epoch after ``base`` is one that ``old`` sealed."""
    epoch = old.find(EpochId(base.epoch + 1))
    if epoch is None or base.torn_manifest_hash is None:
        return False
    fixed = epoch.fixed_as(bytes.fromhex(base.torn_manifest_hash))
    return fixed is not None and fixed.previous_hash == applied_hash
