"""What must hold, held against the source's own log of writes (P1, P2, R1, R4, R8): told of what daemons do, raises ``Broken`` at once.

Used by the simulation. It knows what no daemon knows: the medium of each disk, every write's issue, landing and completion, every bitmap
that was forgotten. It judges what lies in the store, not how it came there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from azure_sink.core.replica_metadata import decode_state
from azure_sink.core.replica_state import Phase, Position
from replication.blob_client.failures import BlobNotFound
from replication.documents import WriterPublicKey
from replication.identifiers import DiskId, EpochKey, GenerationId, GenerationKey
from replication.store_documents import Receipt, RecoveryPoint
from replication.store_layout import (
    KEYS_PREFIX,
    RECOVERY_POINTS_CONTAINER,
    REPLICAS_CONTAINER,
    REPLICATION_CONTAINER,
    generation_record_name,
)
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.simulation.network import StoreWatch
from tests.simulation.source_disk import SECTOR_BYTES, SectorWrite, SourceDisk
from tests.simulation.store_promises import StorePromises
from tests.simulation.virtual_loop import drive


class Broken(AssertionError):
    """A promise of the product does not hold."""


@dataclass(slots=True)
class CutTaken:
    """One try of the coordinator at a cut: when its last flip was, and what the disks held then."""

    flip_s: float
    media: dict[DiskId, bytes]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What was stated in the store up to some time."""

    points: dict[str, RecoveryPoint]
    applied: dict[DiskId, dict[Position, bytes]]
    newest_receipt: dict[DiskId, Receipt]


@dataclass(slots=True)
class Oracle(StoreWatch):
    """``disks`` by identifier, all of one item; ``now_s`` is the simulation's time; ``moment_of`` tells when the agent's clock said so."""

    account: MemoryBlobClient
    writer: WriterPublicKey
    disks: Mapping[DiskId, SourceDisk]
    now_s: Callable[[], float]
    moment_of: Callable[[int], float | None]
    note: Callable[..., None]
    cuts: dict[str, list[CutTaken]] = field(default_factory=dict)
    points: dict[str, RecoveryPoint] = field(default_factory=dict)
    applied: dict[DiskId, dict[Position, bytes]] = field(default_factory=dict)
    """The replica after each (generation, epoch) that a receipt stated."""
    newest_receipt: dict[DiskId, Receipt] = field(default_factory=dict)
    began_s: dict[str, float] = field(default_factory=dict)
    """When the record of each generation was stored, by its name: all that is read for the generation is read later."""
    store: StorePromises = field(init=False)
    checked_points: int = 0
    checked_receipts: int = 0

    def __post_init__(self) -> None:
        self.store = StorePromises(self._is_over)

    # ---- what is put into the store

    def happened(self, who: str, call: str, arguments: tuple[object, ...], named: dict[str, Any]) -> None:
        container, name = str(arguments[0]), str(arguments[1])
        if call == "delete_blob":
            self._judge_deletion(container, name, named.get("snapshot"))
            if container == REPLICATION_CONTAINER:
                self.store.deleted(name)
        if call in ("put_pages", "clear_pages"):
            self._judge_rest(DiskId(name))
        if call == "set_metadata" and container == REPLICAS_CONTAINER:
            self._judge_beginning(DiskId(name))
        if call != "put_blob":
            return
        content = bytes(arguments[2]) if isinstance(arguments[2], bytes) else b""
        if container == RECOVERY_POINTS_CONTAINER:
            self._judge_point(self.writer.open_signed(RecoveryPoint, content))
        elif container == REPLICATION_CONTAINER and name.endswith("/receipt"):
            self._judge_receipt(self.writer.open_signed(Receipt, content))
        elif container == REPLICATION_CONTAINER and name.startswith(KEYS_PREFIX):
            self.began_s.setdefault(name, self.now_s())
        elif container == REPLICATION_CONTAINER:
            self.store.put(name, content, named.get("metadata") or {})

    def _is_over(self, key: EpochKey) -> bool:
        receipt = self.newest_receipt.get(key.disk)
        return receipt is not None and (
            (receipt.generation, receipt.epoch) >= (key.generation, key.epoch)
            or (receipt.generation == key.generation and receipt.closed)
        )

    def _judge_beginning(self, disk: DiskId) -> None:
        """R7: an epoch is begun only when the point before it has its snapshot."""
        metadata = drive(self.account.head_blob(REPLICAS_CONTAINER, disk)).metadata
        if "applying" not in metadata or "applied" not in metadata:
            return
        generation, epoch, _ = metadata["applied"].split("/")
        if (disk, int(generation), int(epoch)) in self.store.points:
            snapshots = self.account._snapshots.get((REPLICAS_CONTAINER, disk), {})
            if all(each.metadata.get("applied") != metadata["applied"] for each in snapshots.values()):
                raise Broken(f"an epoch is begun over point {generation}/{epoch}, of which there is no snapshot")

    def _judge_rest(self, disk: DiskId) -> None:
        """R7: to a replica that is not being applied to, nothing may be written but what is there."""
        metadata = drive(self.account.head_blob(REPLICAS_CONTAINER, disk)).metadata
        if "applying" in metadata or "opening" in metadata or disk not in self.applied:
            return
        applied = decode_state(metadata).applied
        known = self.applied[disk].get(applied)
        if known is not None and self.bytes_of(disk) != known:
            raise Broken(f"the replica at {applied} is written to")

    def _judge_point(self, point: RecoveryPoint) -> None:
        if point.cut not in self.cuts:
            raise Broken(f"recovery point {point.cut} was never cut")
        parts = sorted(part.disk for part in point.disks)
        if parts != sorted(self.disks):
            raise Broken(
                f"recovery point {point.cut} has {len(parts)} parts that are not its item's {len(self.disks)} disks"
            )
        held = {DiskId(part.disk): self.bytes_of(DiskId(part.disk), part.snapshot) for part in point.disks}
        failures = []
        for taken in self.cuts[point.cut]:
            try:
                for disk, content in held.items():
                    what = f"recovery point {point.cut}"
                    self._judge_sectors(disk, content, taken.media[disk], taken.flip_s, taken.flip_s, what)
            except Broken as failure:
                failures.append(f"at {taken.flip_s:.4f}: {failure}")
            else:
                self.note("oracle", f"point {point.cut[:8]} is the source at {taken.flip_s:.4f}")
                break
        else:
            raise Broken(f"recovery point {point.cut} is the source at no cut: " + "\n".join(failures))
        self.points[point.cut] = point
        self.checked_points += 1

    def _judge_deletion(self, container: str, name: str, snapshot: object) -> None:
        """P5: the last good recovery point is never deleted."""
        if not self.points:
            return
        newest = max(self.points.values(), key=_order)
        if container == RECOVERY_POINTS_CONTAINER and name.endswith(newest.cut):
            raise Broken(f"the newest recovery point {newest.cut} is deleted")
        if container == REPLICAS_CONTAINER and any(
            part.disk == name and snapshot in (None, part.snapshot) for part in newest.disks
        ):
            raise Broken(f"the newest recovery point {newest.cut} loses a snapshot")
        if container == RECOVERY_POINTS_CONTAINER:
            self.points.pop(name.rpartition("/")[2], None)

    def _judge_receipt(self, receipt: Receipt) -> None:
        disk = DiskId(receipt.disk)
        is_refusal = receipt.problem is not None and receipt.epoch == 0
        if is_refusal and not self.stores(REPLICAS_CONTAINER, disk):
            return
        state = decode_state(drive(self.account.head_blob(REPLICAS_CONTAINER, disk)).metadata)
        if is_refusal and receipt.generation > state.applied.generation:
            return
        stated = Position(receipt.generation, receipt.epoch)
        if state.applied != stated:
            raise Broken(f"a receipt states {stated} where the replica is at {state.applied}")
        if receipt.closed != (state.phase is Phase.CLOSED):
            raise Broken(f"a receipt says closed={receipt.closed} of a replica that is {state.phase.value}")
        before = self.newest_receipt.get(disk)
        if before is not None and (before.generation, before.epoch) > (receipt.generation, receipt.epoch):
            raise Broken(f"a receipt states {stated} after {before.generation}/{before.epoch}")
        self.newest_receipt[disk] = receipt
        if state.applying_epoch is not None:
            return
        held = self.bytes_of(disk)
        known = self.applied.setdefault(disk, {})
        if known.setdefault(stated, held) != held:
            raise Broken(f"the replica at {stated} is not what it was when this was first stated")
        cut_s = self.moment_of(receipt.cut_time_ns) if receipt.cut_time_ns else None
        if cut_s is not None:
            medium, what = self.disks[disk].medium, f"epoch {stated}, cut at {cut_s:.3f}"
            excused_from_s = self._excused_from_s(disk, stated)
            self._judge_sectors(disk, held, medium, cut_s, self.now_s(), what, excused_from_s)
        self.checked_receipts += 1

    def _excused_from_s(self, disk: DiskId, stated: Position) -> float:
        """An epoch that is no point is excused if it lacks what was written unseen since: what is in flight may hide from the kernel's
        counters that both marks of a write were lost, until they are exact again, which is before the next point, and then everything
        is compared in a new generation. Whatever a generation is to hold from its beginning was written before its first read.
        """
        if (disk, stated.generation, stated.epoch) in self.store.points:
            return inf
        return self.began_s[generation_record_name(GenerationKey(disk, GenerationId(stated.generation)))]

    # ---- a store that is put back

    def remembered(self) -> Remembered:
        """What the store says now, for ``revert``."""
        applied = {disk: dict(known) for disk, known in self.applied.items()}
        return Remembered(dict(self.points), applied, dict(self.newest_receipt))

    def revert(self, before: Remembered) -> None:
        """An older copy took the place of the store: what was stated since is not so any more."""
        self.points, self.newest_receipt = dict(before.points), dict(before.newest_receipt)
        self.applied = {disk: dict(known) for disk, known in before.applied.items()}
        self.store.was_put_back()

    # ---- bytes

    def content_at(self, disk: DiskId, position: Position) -> bytes | None:
        """The replica after an epoch that a receipt stated, or at the beginning of a generation of which nothing is applied yet."""
        known = self.applied.get(disk, {}).get(position)
        if known is not None or position.epoch or not self.stores(REPLICAS_CONTAINER, disk):
            return known
        state = decode_state(drive(self.account.head_blob(REPLICAS_CONTAINER, disk)).metadata)
        is_at_base = state.applied.generation < position.generation or (
            state.applied == position and state.applying_epoch is None
        )
        return self.bytes_of(disk) if is_at_base else None

    def stores(self, container: str, name: str) -> bool:
        try:
            drive(self.account.head_blob(container, name))
        except BlobNotFound:
            return False
        return True

    def bytes_or_none(self, disk: DiskId) -> bytes | None:
        return self.bytes_of(disk) if self.stores(REPLICAS_CONTAINER, disk) else None

    def bytes_of(self, disk: DiskId, snapshot: str | None = None) -> bytes:
        """The replica, or a snapshot of it, over the source's size."""
        buffer = bytearray(self.disks[disk].geometry.size_bytes)
        drive(self.account.get_blob_into(REPLICAS_CONTAINER, disk, buffer, snapshot=snapshot))
        return bytes(buffer)

    def _judge_sectors(
        self,
        disk: DiskId,
        held: bytes,
        medium: bytes | bytearray,
        cut_s: float,
        until_s: float,
        what: str,
        excused_from_s: float = inf,
    ) -> None:
        """``medium``: what the disk held at ``until_s``, which is allowed for any cut until then: only what differs from it is judged.
        ``excused_from_s``: as ``allowed``.
        """
        if held == medium:
            return
        source = self.disks[disk]
        for sector in range(source.sectors):
            at = sector * SECTOR_BYTES
            content = held[at : at + SECTOR_BYTES]
            if content != medium[at : at + SECTOR_BYTES] and content not in allowed(
                source.history[sector], cut_s, until_s, excused_from_s
            ):
                raise Broken(
                    f"{what}: sector {sector} (granule {at // source.geometry.granularity_bytes}) of disk {disk[:8]} holds "
                    f"{content[:16].hex()}; its writes: {told(source.history[sector])}"
                )

    def judge_end(self) -> None:
        """At rest: every replica is its disk, bit by bit."""
        for disk, source in self.disks.items():
            held = self.bytes_of(disk)
            if held != source.medium:
                self._judge_sectors(disk, held, source.medium, self.now_s(), self.now_s(), "the end")
                raise Broken(f"the replica of {disk} is not its disk")


def _order(point: RecoveryPoint) -> tuple[int, int]:
    return max((part.generation, part.epoch) for part in point.disks)


def allowed(history: Sequence[SectorWrite], cut_s: float, until_s: float, excused_from_s: float = inf) -> set[bytes]:
    """What a sector may hold: the last write completed before the cut, or any that was in flight then, or issued since and until. One
    that nobody saw may be there or not if it completed at ``excused_from_s`` or later.
    """
    contents: set[bytes] = set()
    newest: SectorWrite | None = None
    for write in history:
        is_over = write.completed_s is not None and write.completed_s <= cut_s
        if is_over and not (write.is_unseen and (write.completed_s or 0.0) >= excused_from_s):
            if newest is None or (write.landed_s or 0.0) >= (newest.landed_s or 0.0):
                newest = write
        elif write.issued_s <= until_s:
            contents.add(write.content)
    if newest is not None:
        contents.add(newest.content)
    return contents


def told(history: Sequence[SectorWrite]) -> str:
    def moment(when_s: float | None) -> str:
        return "-" if when_s is None else f"{when_s:.4f}"

    return "; ".join(
        f"{write.content[:16].hex()} {write.issued_s:.4f}/{moment(write.landed_s)}/{moment(write.completed_s)}"
        for write in history[-6:]
    )
