"""What an agent has promised by acting on it, held against what its files still say after a power cut (R1, R2, R4).

Used by the simulation's source machine. To act is to send a batch or a manifest, to let the tracker forget a harvest, to ask for a
generation, to record what a receipt confirmed. Each demands that something was durable before; ``judge`` reads the surviving files with
the product's own codecs and says which was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from azure_sink.core.replica_state import Position
from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.protection_record import ProtectionRecord
from mobility_agent.shipping.digest_table import DIGEST_BYTES, DigestTable
from replication.dirty_bitmap import Geometry
from replication.errors import IntegrityError
from replication.identifiers import BatchKey, DiskId, EpochKey


class PromiseBroken(AssertionError):
    """The agent acted on something that was not durable."""


@dataclass(slots=True)
class DiskPromises:
    """Of one disk. ``grants``: which generation answered which request."""

    batches: set[tuple[int, int, int]] = field(default_factory=set)
    manifests: set[tuple[int, int, bytes]] = field(default_factory=set)
    digests: dict[BatchKey, bytes] = field(default_factory=dict)
    forgotten_serial: int = 0
    asked: str = ""
    requests: set[str] = field(default_factory=set)
    grants: dict[str, int] = field(default_factory=dict)

    def sent_batch(self, key: BatchKey, digest: bytes) -> None:
        """:raises PromiseBroken: if something else was sent under this key before (R4)."""
        self.batches.add((key.generation, key.epoch, key.attempt))
        if self.digests.setdefault(key, digest) != digest:
            raise PromiseBroken(f"batch {key} is sent with other content than before")

    def sent_manifest(self, key: EpochKey, manifest_hash: bytes) -> None:
        self.manifests.add((key.generation, key.epoch, manifest_hash))

    def judge(self, directory: Path, item: str) -> None:
        """:raises PromiseBroken: if the files in ``directory`` know less than was acted on."""
        record = ProtectionRecord(directory, item)
        granted = record.state.grant
        # A duty that was never asked for yet has taken the place of the one that was: it is remembered all the same.
        is_renewed = record.state.request is not None and record.state.request not in self.requests
        if self.asked and record.state.request != self.asked and not is_renewed:
            number = self.grants.get(self.asked)
            if granted is None or number is None or granted.generation < number:
                raise PromiseBroken(f"generation request {self.asked} was made, and is not remembered")
        try:
            ledger = EpochJournal(directory).load()
        except IntegrityError as error:
            raise PromiseBroken(f"the journal was replaced, not damaged: {error}") from error
        if ledger is None:
            if self.batches or self.forgotten_serial:
                raise PromiseBroken("the journal is gone")
            return
        if ledger.serial < self.forgotten_serial:
            raise PromiseBroken(
                f"the tracker has forgotten what serial {self.forgotten_serial} held, the journal has {ledger.serial}"
            )
        self._judge_epochs(ledger)

    def _judge_epochs(self, ledger: EpochLedger) -> None:
        for generation, number, attempt in self.batches:
            if generation < ledger.generation or (generation == ledger.generation and number <= ledger.applied_epoch):
                continue
            epoch = next((each for each in ledger.epochs if each.number == number), None)
            if generation > ledger.generation or epoch is None or epoch.attempt < attempt:
                raise PromiseBroken(
                    f"a batch of {generation}/{number}/{attempt} was sent, and the journal knows {epoch} of {ledger.generation}"
                )
        for generation, number, manifest_hash in self.manifests:
            if generation < ledger.generation or (generation == ledger.generation and number <= ledger.applied_epoch):
                continue
            epoch = next((each for each in ledger.epochs if each.number == number), None)
            if generation > ledger.generation or epoch is None or epoch.fixed_as(manifest_hash) is None:
                raise PromiseBroken(f"a manifest of {generation}/{number} was sent, and the journal does not know it")


def judge_table(
    directory: Path, item: str, disk: DiskId, geometry: Geometry, content_at: Callable[[Position], bytes | None]
) -> None:
    """The digest table is not behind the ledger, and what it knows is what the sink holds (R1): ``content_at`` an epoch, if that is known.

    :raises PromiseBroken: otherwise.
    """
    grant = ProtectionRecord(directory, item).state.grant
    ledger = EpochJournal(directory).load()
    if grant is None or ledger is None or ledger.generation != grant.generation:
        return
    table = DigestTable(directory / "digests", disk, geometry, bytes.fromhex(grant.digest_key))
    try:
        # The table goes before the ledger; one that was made anew knows nothing, and is forgotten at the next start.
        is_begun = table.generation > ledger.generation and table.exact_epoch == 0
        is_begun = is_begun or (table.generation, table.exact_epoch) == (0, 0)
        if (
            ledger.applied_epoch
            and not is_begun
            and (table.generation, True)
            != (
                ledger.generation,
                ledger.applied_epoch <= table.exact_epoch,
            )
        ):
            raise PromiseBroken(
                f"the table is exact for {table.generation}/{table.exact_epoch}, the ledger at "
                f"{ledger.generation}/{ledger.applied_epoch}"
            )
        content = content_at(Position(table.generation, table.exact_epoch))
        interrupted = None if table.interrupted_epoch is None else ledger.find(table.interrupted_epoch)
        if content is None or (table.interrupted_epoch is not None and interrupted is None):
            return
        unsure = set() if interrupted is None else set(interrupted.granules.indices().tolist())
        for granule in range(geometry.granules):
            known = table.known(granule)
            if granule in unsure or known == bytes(DIGEST_BYTES):
                continue
            extent = geometry.run_extent(granule, 1)
            if table.digest(memoryview(content[extent.offset_bytes : extent.end_bytes])) != known:
                raise PromiseBroken(
                    f"the table's digest of granule {granule} is not the sink's at {table.generation}/{table.exact_epoch}"
                )
    finally:
        table.close()
