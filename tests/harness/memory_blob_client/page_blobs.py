"""Operations on page blobs: writing, clearing, ranges, size, sequence number. A part of ``MemoryBlobClient``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from replication.blob_client.api import MAX_PUT_PAGES_BYTES, PAGE_BYTES, BlobStamp, BlobType, Body, PageRange
from replication.blob_client.codes import StorageCode
from tests.harness.memory_blob_client.account import (
    CHUNK_BYTES,
    CHUNK_PAGES,
    Blob,
    Chunk,
    MemoryAccount,
    failure,
    joined,
)


class PageBlobs(MemoryAccount):
    """What is particular to page blobs."""

    async def create_page_blob(
        self,
        container: str,
        name: str,
        size_bytes: int,
        *,
        metadata: Mapping[str, str] | None = None,
        sequence_number: int = 0,
        if_none_match_any: bool = True,
    ) -> BlobStamp:
        if size_bytes % PAGE_BYTES or size_bytes < 0:
            raise failure(StorageCode.INVALID_HEADER_VALUE, f"create page blob {container}/{name}")
        blob = Blob(BlobType.PAGE, size_bytes, dict(metadata or {}), sequence_number=sequence_number)
        return self._replace(container, name, blob, if_none_match_any=if_none_match_any)

    def _checked_for_pages(
        self,
        where: tuple[str, str],
        offset: int,
        length: int,
        lease_id: str | None,
        if_match: str | None,
        if_eq: int | None,
        if_le: int | None,
    ) -> Blob:
        what = f"write pages of {where[0]}/{where[1]} at {offset}"
        if offset % PAGE_BYTES or length % PAGE_BYTES or length <= 0 or offset < 0:
            raise failure(StorageCode.INVALID_PAGE_RANGE, what)
        blob = self._page_blob(*where)
        self._check_write(blob, lease_id, if_match, what)
        if (if_eq is not None and blob.sequence_number != if_eq) or (
            if_le is not None and blob.sequence_number > if_le
        ):
            raise failure(StorageCode.SEQUENCE_NUMBER_CONDITION_NOT_MET, what)
        if offset + length > blob.size_bytes:
            raise failure(StorageCode.INVALID_PAGE_RANGE, what)
        return blob

    @staticmethod
    def _store(blob: Blob, offset: int, length: int, content: bytes | None) -> None:
        position = offset
        while position < offset + length:
            index, inner = divmod(position, CHUNK_BYTES)
            size = min(CHUNK_BYTES - inner, offset + length - position)
            old = blob.chunks.get(index, Chunk())
            done = position - offset
            piece = bytes(size) if content is None else content[done : done + size]
            mask = ((1 << (size // PAGE_BYTES)) - 1) << (inner // PAGE_BYTES)
            written = old.written & ~mask if content is None else old.written | mask
            if written:
                blob.chunks[index] = Chunk(old.content[:inner] + piece + old.content[inner + size :], written)
            else:
                blob.chunks.pop(index, None)
            position += size

    async def put_pages(
        self,
        container: str,
        name: str,
        offset_bytes: int,
        body: Body,
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
        if_sequence_number_eq: int | None = None,
        if_sequence_number_le: int | None = None,
    ) -> BlobStamp:
        content = joined(body)
        if len(content) > MAX_PUT_PAGES_BYTES:
            raise failure(StorageCode.REQUEST_BODY_TOO_LARGE, f"write pages of {container}/{name}")
        blob = self._checked_for_pages(
            (container, name),
            offset_bytes,
            len(content),
            lease_id,
            if_match,
            if_sequence_number_eq,
            if_sequence_number_le,
        )
        self._store(blob, offset_bytes, len(content), content)
        return self._touch(blob)

    async def clear_pages(
        self,
        container: str,
        name: str,
        offset_bytes: int,
        length_bytes: int,
        *,
        lease_id: str | None = None,
        if_match: str | None = None,
        if_sequence_number_eq: int | None = None,
        if_sequence_number_le: int | None = None,
    ) -> BlobStamp:
        blob = self._checked_for_pages(
            (container, name),
            offset_bytes,
            length_bytes,
            lease_id,
            if_match,
            if_sequence_number_eq,
            if_sequence_number_le,
        )
        self._store(blob, offset_bytes, length_bytes, None)
        return self._touch(blob)

    async def get_page_ranges(
        self, container: str, name: str, *, snapshot: str | None = None, previous_snapshot: str | None = None
    ) -> AsyncIterator[PageRange]:
        blob = self._page_blob(container, name, snapshot)
        before: Blob | None = None
        if previous_snapshot is not None:
            before = self._snapshots.get((container, name), {}).get(previous_snapshot)
            if before is None:
                raise failure(StorageCode.PREVIOUS_SNAPSHOT_NOT_FOUND, f"compare snapshots of {container}/{name}")
        start: int | None = None
        end = 0
        for index in sorted(blob.chunks):
            chunk = blob.chunks[index]
            for page in range(CHUNK_PAGES):
                if not chunk.written >> page & 1 or (before is not None and _same_page(before, blob, index, page)):
                    continue
                position = index * CHUNK_BYTES + page * PAGE_BYTES
                if start is not None and position != end:
                    yield PageRange(start, end - start)
                    start = None
                start = position if start is None else start
                end = position + PAGE_BYTES
        if start is not None:
            yield PageRange(start, end - start)

    async def resize_page_blob(
        self, container: str, name: str, size_bytes: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        what = f"resize page blob {container}/{name}"
        if size_bytes % PAGE_BYTES or size_bytes < 0:
            raise failure(StorageCode.INVALID_HEADER_VALUE, what)
        blob = self._page_blob(container, name)
        self._check_write(blob, lease_id, if_match, what)
        if size_bytes < blob.size_bytes:
            for index in [index for index in blob.chunks if index * CHUNK_BYTES >= size_bytes]:
                del blob.chunks[index]
            tail = size_bytes % CHUNK_BYTES
            if tail:
                self._store(blob, size_bytes, CHUNK_BYTES - tail, None)
        blob.size_bytes = size_bytes
        return self._touch(blob)

    async def set_sequence_number(
        self, container: str, name: str, number: int, *, lease_id: str | None = None, if_match: str | None = None
    ) -> BlobStamp:
        blob = self._page_blob(container, name)
        self._check_write(blob, lease_id, if_match, f"set the sequence number of {container}/{name}")
        blob.sequence_number = number
        return self._touch(blob)


def _same_page(before: Blob, now: Blob, index: int, page: int) -> bool:
    old, new = before.chunks.get(index), now.chunks.get(index)
    if old is None or new is None or not old.written >> page & 1:
        return False
    if old is new:
        return True
    inside = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    return old.content[inside] == new.content[inside]
