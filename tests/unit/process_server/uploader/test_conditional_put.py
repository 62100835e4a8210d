"""The first content under a name decides, and a missing container is made."""

from __future__ import annotations

import pytest

from process_server.uploader.conditional_put import put_first
from replication.errors import Conflict, PeerUnavailable
from replication.store_layout import REPLICATION_CONTAINER
from tests.harness.unreliable_store import UnreliableStore


async def content(store: UnreliableStore, name: str) -> bytes:
    blob = await store.get_blob(REPLICATION_CONTAINER, name, max_bytes=100)
    assert blob is not None
    return blob.content


async def test_the_first_one_stays() -> None:
    store = UnreliableStore()
    await put_first(store, "a", b"first", {"key": "value"})
    for again in (b"first", b"second"):
        with pytest.raises(Conflict):
            await put_first(store, "a", again, {})
    assert await content(store, "a") == b"first"
    assert (await store.head_blob(REPLICATION_CONTAINER, "a")).metadata == {"key": "value"}


async def test_a_container_that_somebody_removed_is_made_again() -> None:
    store = UnreliableStore()
    await put_first(store, "a", b"1", {})
    await put_first(store, "b", b"2", {})
    assert store.calls["create_container"] == 1


async def test_a_failure_is_the_callers() -> None:
    store = UnreliableStore()
    store.failing = PeerUnavailable("cannot reach it")
    with pytest.raises(PeerUnavailable):
        await put_first(store, "a", b"1", {})
