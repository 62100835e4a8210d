"""Which disks are followed: one follower for each disk with a generation record, but for those that are being deleted.

Called by ``replica_writer.py`` (``discover``) and by the requests that concern one disk or all disks of an item.
"""

from __future__ import annotations

from azure_sink.replica_writer.disk_follower import DiskFollower, FollowerParts
from azure_sink.replica_writer.generation_book import GenerationBook
from azure_sink.replica_writer.replica_blob import ReplicaBlob
from replication.identifiers import DiskId, ItemId
from replication.store_documents import Receipt


class FollowerRegistry:
    """All followers of this process, by disk."""

    def __init__(self, parts: FollowerParts) -> None:
        self._parts = parts
        self._followers: dict[DiskId, DiskFollower] = {}
        self._retired: set[DiskId] = set()

    @property
    def book(self) -> GenerationBook:
        return self._parts.book

    @property
    def all(self) -> list[DiskFollower]:
        return list(self._followers.values())

    async def discover(self) -> None:
        """Read the generation records; new disks get a follower."""
        await self.book.refresh()
        new = [
            DiskFollower(disk, self._parts) for disk in sorted(self.book.disks - self._followers.keys() - self._retired)
        ]
        self._followers.update((follower.disk, follower) for follower in new)
        self._parts.metrics.disks.set(len(self._followers))

    def find(self, disk: DiskId) -> DiskFollower | None:
        return self._followers.get(disk)

    def receipted(self, disk: DiskId) -> Receipt | None:
        """The newest durable receipt of a disk that is held here."""
        follower = self._followers.get(disk)
        return None if follower is None else follower.receipted

    def disks_of(self, item: ItemId) -> set[DiskId]:
        """Disks that a usable generation record gives to ``item``."""
        return self.book.disks_of(item)

    async def retire(self, disk: DiskId) -> None:
        """Stop following a disk; on return no step of it is under way, and none begins before ``allow``."""
        self._retired.add(disk)
        follower = self._followers.pop(disk, None)
        if follower is not None:
            async with follower.lock:
                follower.retire()

    def allow(self, disk: DiskId) -> None:
        """The disk may be followed again, from its next generation record on."""
        self._retired.discard(disk)

    async def take_over(self, disk: DiskId) -> ReplicaBlob:
        """The replica of a retired disk. Raises as ``ReplicaBlob.take_over`` does."""
        parts = self._parts
        return await ReplicaBlob.take_over(parts.client, disk, parts.lease_id, parts.lease_s, parts.clock)
