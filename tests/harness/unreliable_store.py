"""A store that fails on demand: the in-memory account, with outages, lost answers and held calls.

Called by tests of the process server. ``failing`` makes every call fail; ``lost_answers`` lets the next writes happen and then fails
them, as a cut connection does; ``held`` stops writes before they happen until it is set. Calls are counted by name, for tests of effort.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from replication.blob_client.api import BlobContent, BlobItem, BlobProperties, BlobStamp, Body
from replication.errors import BlockferryError, PeerUnavailable
from tests.harness.memory_blob_client import MemoryBlobClient


class UnreliableStore(MemoryBlobClient):
    """See the module. One object is one account; several clients may share it."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: BlockferryError | None = None
        self.refused_names: dict[str, BlockferryError] = {}
        """Blob names (or ends of names) whose writes are refused."""
        self.lost_answers = 0
        self.held = asyncio.Event()
        self.held.set()
        self.calls: Counter[str] = Counter()
        self.put_order: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0

    def _enter(self, call: str) -> None:
        self.calls[call] += 1
        if self.failing is not None:
            raise self.failing

    async def create_container(self, container: str) -> None:
        self._enter("create_container")
        await super().create_container(container)

    async def put_blob(
        self,
        container: str,
        name: str,
        body: Body,
        *,
        metadata: Mapping[str, str] | None = None,
        if_none_match_any: bool = False,
        if_match: str | None = None,
        lease_id: str | None = None,
    ) -> BlobStamp:
        self._enter("put_blob")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            await self.held.wait()
            if self.failing is not None:
                raise self.failing
            for end, error in self.refused_names.items():
                if name.endswith(end):
                    raise error
            stamp = await super().put_blob(
                container,
                name,
                body,
                metadata=metadata,
                if_none_match_any=if_none_match_any,
                if_match=if_match,
                lease_id=lease_id,
            )
            self.put_order.append(name)
        finally:
            self.in_flight -= 1
        if self.lost_answers:
            self.lost_answers -= 1
            raise PeerUnavailable(f"cannot put blob {name}: the answer was lost")
        return stamp

    async def get_blob(
        self,
        container: str,
        name: str,
        *,
        max_bytes: int,
        snapshot: str | None = None,
        if_none_match: str | None = None,
    ) -> BlobContent | None:
        self._enter("get_blob")
        return await super().get_blob(
            container, name, max_bytes=max_bytes, snapshot=snapshot, if_none_match=if_none_match
        )

    async def head_blob(self, container: str, name: str, *, snapshot: str | None = None) -> BlobProperties:
        self._enter("head_blob")
        return await super().head_blob(container, name, snapshot=snapshot)

    async def list_blobs(
        self, container: str, prefix: str, *, include_snapshots: bool = False, include_metadata: bool = False
    ) -> AsyncIterator[BlobItem]:
        self._enter("list_blobs")
        async for item in super().list_blobs(
            container, prefix, include_snapshots=include_snapshots, include_metadata=include_metadata
        ):
            yield item
