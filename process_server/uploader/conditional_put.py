"""One conditional put to the store: the first content under a name decides (If-None-Match:*), a missing container is made.

Called by the segment uploader and the manifest courier.
"""

from __future__ import annotations

from collections.abc import Mapping

from replication.blob_client.api import BlobClient, Body
from replication.errors import NotFound
from replication.store_layout import REPLICATION_CONTAINER


async def put_first(client: BlobClient, name: str, body: Body, metadata: Mapping[str, str]) -> None:
    """Put ``body`` unless something is there already; durable on return.

    :raises Conflict: if something is there, this very content included. Raises as ``BlobClient.put_blob`` does.
    """
    try:
        await client.put_blob(REPLICATION_CONTAINER, name, body, metadata=metadata, if_none_match_any=True)
    except NotFound:
        await client.create_container(REPLICATION_CONTAINER)
        await client.put_blob(REPLICATION_CONTAINER, name, body, metadata=metadata, if_none_match_any=True)
