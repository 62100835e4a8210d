"""A page blob into a local file: a made disk (or a snapshot) as a raw image or as the fixed VHD that it is, sparse.

Called by ``azure-sink export``. Holes of the blob become holes of the file; what is read and what is not is decided by the blob's page
ranges. The file appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from azure_sink.core.replica_metadata import SIZE_METADATA
from azure_sink.vhd import FOOTER_BYTES, parse_footer
from replication.blob_client.api import BlobClient, BlobProperties
from replication.durable_file import sync_directory
from replication.errors import Conflict, InvalidInput, PeerProtocolError, Permanent

CHUNK_BYTES: Final = 4 * 2**20
_ZEROS: Final = bytes(CHUNK_BYTES)
_PARTIAL_SUFFIX: Final = ".partial"

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class ExportedDisk:
    """``size_bytes`` as written; ``read_bytes`` came over the wire; ``sha256`` in hex over the whole file, if asked for."""

    size_bytes: int
    read_bytes: int
    sha256: str | None


def disk_size_bytes(properties: BlobProperties) -> int | None:
    """The source's size that a replica's or made disk's metadata states."""
    known = {name.lower(): value for name, value in properties.metadata.items()}
    text = known.get(SIZE_METADATA, "")
    return int(text) if text.isdecimal() else None


class DiskExport:
    """One page blob to export. The blob must not change meanwhile; if it does, nothing is left behind."""

    def __init__(self, client: BlobClient, container: str, name: str, snapshot: str | None = None) -> None:
        self._client = client
        self._container = container
        self._name = name
        self._snapshot = snapshot

    async def run(self, target: Path, *, raw: bool, with_sha256: bool, progress: Progress) -> ExportedDisk:
        """Write ``target``: the source's bytes alone if ``raw``, else with padding and VHD footer. Durable on return.

        :raises BlobNotFound: no such blob or snapshot.
        :raises InvalidInput: ``raw`` of a blob whose metadata does not say the source's size, or no fixed VHD.
        :raises Conflict: ``target`` exists, or the blob changed while it was read.
        :raises Permanent: the file cannot be written.
        """
        properties = await self._client.head_blob(self._container, self._name, snapshot=self._snapshot)
        size_bytes = await self._size_bytes(properties, raw=raw)
        partial = target.with_name(target.name + _PARTIAL_SUFFIX)
        descriptor = _open_partial(target, partial)
        try:
            exported = await self._copy(descriptor, properties, size_bytes, with_sha256, progress)
            os.fsync(descriptor)
            partial.replace(target)
            sync_directory(target.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            if isinstance(error, OSError):
                raise Permanent(f"cannot write {partial}: {error.strerror}") from error
            raise
        finally:
            os.close(descriptor)
        return exported

    async def _size_bytes(self, properties: BlobProperties, *, raw: bool) -> int:
        length = properties.length_bytes
        if length <= FOOTER_BYTES:
            raise InvalidInput(f"cannot export {self._container}/{self._name}: {length} bytes are no fixed VHD")
        footer = bytearray(FOOTER_BYTES)
        await self._client.get_blob_into(
            self._container, self._name, footer, offset=length - FOOTER_BYTES, snapshot=self._snapshot
        )
        try:
            data_bytes = parse_footer(bytes(footer))
        except PeerProtocolError as error:
            raise InvalidInput(f"cannot export {self._container}/{self._name}: {error.message}") from error
        if not raw:
            return length
        size_bytes = disk_size_bytes(properties)
        if size_bytes is None or size_bytes > data_bytes:
            raise InvalidInput(
                f"cannot export {self._container}/{self._name} as a raw image: its metadata does not say the disk's size",
                hint="leave out --raw to get the VHD",
            )
        return size_bytes

    async def _copy(
        self, descriptor: int, properties: BlobProperties, size_bytes: int, with_sha256: bool, progress: Progress
    ) -> ExportedDisk:
        os.ftruncate(descriptor, size_bytes)
        digest = hashlib.sha256() if with_sha256 else None
        buffer = bytearray(CHUNK_BYTES)
        read_bytes = position = 0
        async for offset, length in self._chunks(size_bytes):
            if digest is not None:
                _add_zeros(digest, offset - position)
            view = memoryview(buffer)[:length]
            await self._client.get_blob_into(
                self._container, self._name, view, offset=offset, snapshot=self._snapshot, if_match=properties.etag
            )
            if digest is not None:
                digest.update(view)
            written = 0
            while written < length:
                written += os.pwrite(descriptor, view[written:], offset + written)
            read_bytes += length
            position = offset + length
            progress(position, size_bytes)
        if digest is not None:
            _add_zeros(digest, size_bytes - position)
        after = await self._client.head_blob(self._container, self._name, snapshot=self._snapshot)
        if after.etag != properties.etag:
            raise Conflict(f"cannot export {self._container}/{self._name}: it changed while it was read")
        progress(size_bytes, size_bytes)
        return ExportedDisk(size_bytes, read_bytes, None if digest is None else digest.hexdigest())

    async def _chunks(self, size_bytes: int) -> AsyncIterator[tuple[int, int]]:
        async for offset, length in self._client.get_page_ranges(self._container, self._name, snapshot=self._snapshot):
            end = min(offset + length, size_bytes)
            for start in range(offset, end, CHUNK_BYTES):
                yield start, min(CHUNK_BYTES, end - start)


def _open_partial(target: Path, partial: Path) -> int:
    if os.path.lexists(target):
        raise Conflict(f"cannot export to {target}: it exists", hint="choose another name, or remove it first")
    try:
        return os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Permanent(f"cannot write {partial}: {error.strerror}") from error


def _add_zeros(digest: hashlib._Hash, length: int) -> None:
    while length > 0:
        size = min(length, CHUNK_BYTES)
        digest.update(memoryview(_ZEROS)[:size])
        length -= size
