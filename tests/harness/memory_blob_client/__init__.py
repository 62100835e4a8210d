"""An in-memory ``BlobClient`` for tests: a verified fake (it passes the same contract suite as the HTTP client).

Called by tests of the process server, the configuration server and the replica writer. One ``MemoryBlobClient`` is one
account; hand the same object to several users. The clock is injected: leases end when ``now()`` says so, never by sleeping.
Every operation is atomic: nothing awaits between a check and its mutation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.blob_client.api import BlobClient
from tests.harness.memory_blob_client.leases import Leases
from tests.harness.memory_blob_client.page_blobs import PageBlobs
from tests.harness.memory_blob_client.whole_blobs import WholeBlobs


class MemoryBlobClient(WholeBlobs, PageBlobs, Leases):
    """``BlobClient`` over dictionaries. ``now`` must return aware UTC times."""


if TYPE_CHECKING:
    _conforms: BlobClient = MemoryBlobClient()
