"""Changes bytes of a replica behind everybody's back, through the Blob API as anything else in the account could.

Called by end-to-end tests of what a proof of identity finds. Neither the agent's digest table nor the writer's metadata learns of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from replication.blob_client.failures import BlobConflict
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.identifiers import DiskId
from replication.store_layout import REPLICAS_CONTAINER, replica_name

PAGE_BYTES: Final = 512
_DEADLINE_S: Final = 60.0


def flip_pages(endpoint: BlobEndpointSettings, disk: str, offsets_bytes: list[int]) -> None:
    """Invert the pages at these offsets. The writer's lease is broken for it, which it takes back by itself."""
    asyncio.run(_flip_pages(endpoint, DiskId(disk), offsets_bytes))


async def _flip_pages(endpoint: BlobEndpointSettings, disk: DiskId, offsets_bytes: list[int]) -> None:
    name = replica_name(disk)
    async with HttpBlobClient(endpoint) as client, asyncio.timeout(_DEADLINE_S):
        for offset in offsets_bytes:
            page = bytearray(PAGE_BYTES)
            await client.get_blob_into(REPLICAS_CONTAINER, name, page, offset=offset, length=PAGE_BYTES)
            flipped = bytes(byte ^ 0xFF for byte in page)
            while True:
                with contextlib.suppress(BlobConflict):
                    await client.break_lease(REPLICAS_CONTAINER, name, break_period_s=0)
                with contextlib.suppress(BlobConflict):  # the writer was faster: it has its lease again
                    await client.put_pages(REPLICAS_CONTAINER, name, offset, flipped)
                    break


def offset_of(content: bytes, image: Path) -> int:
    """Where ``content`` begins in the image of a disk."""
    found = image.read_bytes().find(content)
    assert found >= 0, "the file system has not written it yet"
    return found
