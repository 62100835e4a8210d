"""The Blob clients that the contract suites run over, each on an account of its own with the container ``lab`` and a clock to set.

Called by tests/contract/test_blob_client_contract.py and test_blob_lease_contract.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from azure_sink.blob_store.store import BlobStore, StoreOptions
from azure_sink.local_blob_client import LocalBlobClient
from replication.blob_client.api import BlobClient
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import BlobConflict
from replication.blob_client.http_client import HttpBlobClient
from tests.harness.blob_site import blob_site
from tests.harness.blob_store_tools import SettableClock
from tests.harness.memory_blob_client import MemoryBlobClient


@dataclass
class LabAccount:
    """The client under test and the clock that its leases follow."""

    client: BlobClient
    clock: SettableClock


@contextlib.asynccontextmanager
async def over_https(directory: Path) -> AsyncIterator[LabAccount]:
    """The HTTPS client against the real service over TLS."""
    clock = SettableClock()
    async with blob_site(directory, clock=clock) as site, HttpBlobClient(site.endpoint()) as client:
        await client.create_container("lab")
        yield LabAccount(client, clock)


@contextlib.asynccontextmanager
async def in_process(directory: Path) -> AsyncIterator[LabAccount]:
    """The client of a store in the same process."""
    clock = SettableClock()
    store = BlobStore.open(directory / "store", StoreOptions(clock=clock))
    try:
        client = LocalBlobClient(store)
        await client.create_container("lab")
        yield LabAccount(client, clock)
    finally:
        store.close()


@contextlib.asynccontextmanager
async def in_memory(_directory: Path) -> AsyncIterator[LabAccount]:
    """The fake."""
    clock = SettableClock()
    client = MemoryBlobClient(lambda: datetime.fromtimestamp(clock.now, UTC))
    await client.create_container("lab")
    yield LabAccount(client, clock)


ACCOUNTS: Final[dict[str, Callable[[Path], contextlib.AbstractAsyncContextManager[LabAccount]]]] = {
    "https": over_https,
    "memory": in_memory,
    "process": in_process,
}


@contextlib.contextmanager
def conflict(code: StorageCode) -> Iterator[None]:
    """What is done inside fails with a conflict of exactly this code."""
    with pytest.raises(BlobConflict) as caught:
        yield
    assert caught.value.storage_code == code
