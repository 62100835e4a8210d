"""Syncs of the blob store fail, then it is killed or stopped: what was acknowledged is there, what was refused is so whole or not at all.

The failure is SQLite's own: its fdatasync returns EIO while the commit frame lies in the log. A kill is a copy of the state as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from azure_sink.blob_store import arenas, committer
from azure_sink.blob_store.blobs import Address
from azure_sink.blob_store.schema import CATALOG_NAME, LOG_NAME
from azure_sink.blob_store.store import BlobStore, StoreOptions
from azure_sink.blob_store.transaction import Transaction
from azure_sink.core.storage_fault import StorageFault
from replication.errors import Permanent, Retryable
from tests.harness.blob_store_tools import BLOCK, plain, put_blob, put_pages, read, unreferenced_blocks
from tests.harness.failing_syncs import fail_syncs_in_this_thread
from tests.harness.told_seeds import TellSeeds

BODY = b"whole" * 8192
WORKERS = 4
DISK_BYTES = 64 * 1024


def opened(directory: Path) -> BlobStore:
    return BlobStore.open(directory, StoreOptions(arena_bytes=256 * 1024, reserve_bytes=0))


async def fail_syncs(store: BlobStore, path: Path) -> None:
    """In the committer's thread, from its next group on."""
    await store._commit(lambda _transaction: fail_syncs_in_this_thread(path))


async def found(store: BlobStore, name: str) -> bytes | None:
    try:
        return await read(store, Address("lab", name))
    except StorageFault:
        return None


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize("kind", ["blob", "pages"])
async def test_what_a_failed_sync_of_the_log_left_reads_back_whole(tmp_path: Path, kind: str, end: str) -> None:
    state = tmp_path / "state"
    store = opened(state)
    try:
        await store.create_container("lab")
        await store.create_page_blob(Address("lab", "disk"), plain(), DISK_BYTES)
        await put_blob(store, Address("lab", "before"), BODY)
        await fail_syncs(store, state / LOG_NAME)
        doubtful = (
            put_blob(store, Address("lab", "doubtful"), BODY)
            if kind == "blob"
            else put_pages(store, Address("lab", "disk"), 0, BODY[:BLOCK])
        )
        with pytest.raises(Permanent):
            await doubtful  # alone in its commit, whose frame lies in the log
        assert store.failure is not None
        with pytest.raises(Permanent, match="cannot change the blob store"):
            await put_blob(store, Address("lab", "later"), BODY)
        assert await found(store, "before") == BODY
        if end == "kill":
            shutil.copytree(state, tmp_path / "killed")
            state = tmp_path / "killed"
    finally:
        store.close()
    assert (state / LOG_NAME).stat().st_size > 0, "the log is left to the next start"
    again = opened(state)
    try:
        assert await found(again, "before") == BODY
        there = await found(again, "doubtful") if kind == "blob" else (await found(again, "disk") or b"")[:BLOCK]
        assert there == (BODY if kind == "blob" else BODY[:BLOCK]), "the commit frame was in the log"
        assert await found(again, "later") is None
        assert again.wait_until_quiet(30.0)
        assert unreferenced_blocks(state) == set()
    finally:
        again.close()


async def test_a_fold_of_the_log_that_fails_to_sync_ends_the_store_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    store = opened(state)
    try:
        await store.create_container("lab")
        await put_blob(store, Address("lab", "stored"), BODY)

        def fold_in_vain(_transaction: Transaction) -> None:
            fail_syncs_in_this_thread(state / CATALOG_NAME)
            monkeypatch.setattr(committer, "FOLD_EVERY_COMMITS", 1)

        await store._commit(fold_in_vain)
        with pytest.raises(Permanent, match="could not be folded"):
            await put_blob(store, Address("lab", "later"), BODY)
        shutil.copytree(state, tmp_path / "killed")
    finally:
        store.close()
    assert (state / LOG_NAME).stat().st_size > 0
    for directory in (state, tmp_path / "killed"):
        again = opened(directory)
        try:
            assert await found(again, "stored") == BODY
            assert await found(again, "later") is None
        finally:
            again.close()


async def test_a_body_that_could_not_be_synced_is_refused_and_the_store_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    store = opened(state)
    try:
        await store.create_container("lab")
        await put_blob(store, Address("lab", "before"), BODY)
        await fail_syncs(store, state / "arenas")
        with pytest.raises(Retryable):
            await put_blob(store, Address("lab", "refused"), BODY)
        await put_blob(store, Address("lab", "refused"), BODY[::-1])  # into another arena
        assert store.failure is None
        shutil.copytree(state, tmp_path / "killed")
    finally:
        store.close()
    for directory in (state, tmp_path / "killed"):
        again = opened(directory)
        try:
            assert await found(again, "before") == BODY
            assert await found(again, "refused") == BODY[::-1]
        finally:
            again.close()


async def test_an_arena_whose_entry_could_not_be_synced_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_directory: Path) -> None:
        raise OSError(5, "Input/output error")

    store = opened(tmp_path)
    try:
        await store.create_container("lab")
        with monkeypatch.context() as patched:
            patched.setattr(arenas, "sync_directory", failing)
            with pytest.raises(Retryable):
                await put_blob(store, Address("lab", "refused"), BODY)
        await put_blob(store, Address("lab", "stored"), BODY)
    finally:
        store.close()
    (tmp_path / "arenas" / "00000001").unlink()  # what the power cut may do
    again = opened(tmp_path)
    try:
        assert await found(again, "stored") == BODY
    finally:
        again.close()


# -- any schedule ---------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What one worker was promised; ``doubt`` is (name, before, after) of what it was refused at the end."""

    stored: dict[str, bytes] = field(default_factory=dict)
    doubt: tuple[str, bytes | None, bytes | None] | None = None


async def work(store: BlobStore, number: int, known: Known, chance: random.Random) -> None:
    disk = f"disk-{number}"
    while True:
        name = f"{number}/{chance.randrange(5)}"
        before = known.stored.get(name)
        after: bytes | None = None
        change: Awaitable[object]
        match chance.choice(("put", "put", "pages", "pages", "delete")):
            case "put":
                after = chance.randbytes(chance.choice((10, 5_000, 150_000)))
                change = put_blob(store, Address("lab", name), after)
            case "pages":
                name, image = disk, known.stored[disk]
                start = chance.randrange(DISK_BYTES // 512) * 512
                piece = chance.randbytes(min(DISK_BYTES - start, chance.choice((512, 8192, 20480))))
                before, after = image, image[:start] + piece + image[start + len(piece) :]
                change = put_pages(store, Address("lab", disk), start, piece)
            case _ if before is not None:
                change = store.delete_blob(Address("lab", name))
            case _:
                continue
        try:
            await change
        except Permanent:
            known.doubt = (name, before, after)
            return
        if after is None:
            del known.stored[name]
        else:
            known.stored[name] = after


async def check(directory: Path, everything: list[Known]) -> int:
    """Returns how many of the refused changes have happened."""
    store = opened(directory)
    happened = 0
    try:
        for number, known in enumerate(everything):
            assert known.doubt is not None
            doubtful, before, after = known.doubt
            names = {f"disk-{number}", *(f"{number}/{which}" for which in range(5))}
            for name in names - {doubtful}:
                assert await found(store, name) == known.stored.get(name), name
            content = await found(store, doubtful)
            assert content in (before, after), doubtful
            happened += content == after
        assert store.wait_until_quiet(30.0)
        assert unreferenced_blocks(directory) == set()
    finally:
        store.close()
    return happened


async def test_whatever_syncs_fail_what_exists_afterwards_is_what_was_put(
    tmp_path: Path, tell_seeds: TellSeeds
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    tell_seeds("failing syncs of the Blob service", seed)
    chance = random.Random(seed)
    happened = 0
    for life in range(6):
        state, killed = tmp_path / f"state-{life}", tmp_path / f"killed-{life}"
        everything = [Known() for _ in range(WORKERS)]
        store = opened(state)
        try:
            await store.create_container("lab")
            for number, known in enumerate(everything):
                await store.create_page_blob(Address("lab", f"disk-{number}"), plain(), DISK_BYTES)
                known.stored[f"disk-{number}"] = bytes(DISK_BYTES)
            async with asyncio.TaskGroup() as tasks:
                for number, known in enumerate(everything):
                    tasks.create_task(work(store, number, known, random.Random(chance.random())))
                for _ in range(chance.randrange(60)):
                    await store.get_container("lab")  # let them work on
                with contextlib.suppress(Permanent):  # if its own group is the first that fails
                    await fail_syncs(store, state / LOG_NAME)
            assert store.failure is not None
            shutil.copytree(state, killed)
        finally:
            store.close()
        happened += await check(killed, everything)
        await check(state, everything)
    assert happened, "no commit frame was left in any log: the schedule tests nothing"
