"""``BlobStore`` without HTTP: blocks, shared bytes, bodies that come to nothing, one process a directory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from azure_sink.blob_store import readers
from azure_sink.blob_store.blobs import Address, CopyRequest, Guard
from azure_sink.blob_store.block_blobs import BlockChoice
from azure_sink.blob_store.readers import StateChanged
from azure_sink.blob_store.schema import CATALOG_NAME
from azure_sink.blob_store.store import STALE_BLOCK_S, BlobStore, StoreOptions
from azure_sink.blob_store.values import MAX_LINEAGE
from azure_sink.core.conditions import Conditions
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.api import BlobType
from replication.blob_client.codes import StorageCode
from replication.errors import InvalidInput, Permanent, SettingsError
from tests.harness.blob_store_tools import (
    BLOCK,
    SettableClock,
    data_blocks,
    plain,
    put_blob,
    put_block,
    put_pages,
    read,
    unreferenced_blocks,
)

PAGE = 512
BLOB = Address("lab", "blob")
DISK = Address("lab", "disk")
QUIET_S = 30.0


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def store(tmp_path: Path, clock: SettableClock) -> AsyncIterator[BlobStore]:
    opened = BlobStore.open(tmp_path, StoreOptions(arena_bytes=256 * 1024, reserve_bytes=0, clock=clock))
    await opened.create_container("lab")
    yield opened
    opened.close()


def nothing_left(store: BlobStore, directory: Path) -> bool:
    return store.wait_until_quiet(QUIET_S) and not unreferenced_blocks(directory)


def occupied_bytes(directory: Path) -> int:
    return sum(len(list(data_blocks(path))) * BLOCK for path in (directory / "arenas").iterdir())


async def commit_blocks(store: BlobStore, *choices: tuple[str, str]) -> None:
    picked = [BlockChoice(block_id, look_in) for block_id, look_in in choices]  # type: ignore[arg-type]  # literals
    await store.put_block_list(BLOB, plain(), picked)


def refused(code: StorageCode) -> pytest.RaisesExc[StorageFault]:
    return pytest.RaisesExc(StorageFault, check=lambda fault: fault.storage_code is code)


async def test_a_blob_is_made_of_the_chosen_blocks_in_order(store: BlobStore) -> None:
    for block_id, content in (("b1", b"one"), ("b2", b"two"), ("b3", b"three")):
        await put_block(store, BLOB, block_id, content)
    await commit_blocks(store, ("b3", "uncommitted"), ("b1", "latest"), ("b3", "latest"))
    assert await read(store, BLOB) == b"threeonethree"
    assert await read(store, BLOB, 4, 7) == b"eon"


async def test_blocks_of_the_old_blob_can_be_used_again(store: BlobStore, tmp_path: Path) -> None:
    await put_block(store, BLOB, "b1", b"one")
    await put_block(store, BLOB, "b2", b"two")
    await commit_blocks(store, ("b1", "latest"), ("b2", "latest"))
    await put_block(store, BLOB, "b1", b"ONE")
    await commit_blocks(store, ("b1", "committed"), ("b2", "committed"), ("b1", "latest"))
    assert await read(store, BLOB) == b"onetwoONE"
    await put_block(store, BLOB, "b1", b"ONE")
    await commit_blocks(store, ("b1", "latest"), ("b2", "latest"))
    assert await read(store, BLOB) == b"ONEtwo"
    assert nothing_left(store, tmp_path)


async def test_a_block_that_is_nowhere_refuses_the_list_and_keeps_the_rest(store: BlobStore) -> None:
    await put_block(store, BLOB, "b1", b"one")
    with refused(StorageCode.INVALID_BLOCK_LIST):
        await commit_blocks(store, ("b1", "latest"), ("b9", "latest"))
    with refused(StorageCode.INVALID_BLOCK_LIST):
        await commit_blocks(store, ("b1", "committed"))
    await commit_blocks(store, ("b1", "latest"))
    assert await read(store, BLOB) == b"one"


async def test_uncommitted_blocks_are_no_blob(store: BlobStore) -> None:
    await put_block(store, BLOB, "b1", b"one")
    with refused(StorageCode.BLOB_NOT_FOUND):
        await store.get_blob(BLOB)
    lists = await store.get_block_lists(BLOB)
    assert lists.record is None
    assert [(block.block_id, block.length) for block in lists.uncommitted] == [("b1", 3)]


async def test_block_ids_of_a_blob_have_one_length(store: BlobStore) -> None:
    await put_block(store, BLOB, "b1", b"one")
    with refused(StorageCode.INVALID_BLOB_OR_BLOCK):
        await put_block(store, BLOB, "b10", b"ten")


async def test_a_whole_put_discards_uncommitted_blocks(store: BlobStore, tmp_path: Path) -> None:
    await put_block(store, BLOB, "b1", b"x" * 9000)
    await put_blob(store, BLOB, b"whole")
    assert (await store.get_block_lists(BLOB)).uncommitted == []
    assert nothing_left(store, tmp_path)


async def test_blocks_left_for_a_week_are_discarded(store: BlobStore, clock: SettableClock, tmp_path: Path) -> None:
    await put_block(store, BLOB, "b1", b"x" * 9000)
    clock.now += STALE_BLOCK_S
    await put_block(store, Address("lab", "newer"), "b1", b"kept")
    await store.drop_stale_blocks()
    assert (await store.get_block_lists(Address("lab", "newer"))).uncommitted
    clock.now += 1
    await store.drop_stale_blocks()
    with refused(StorageCode.BLOB_NOT_FOUND):
        await store.get_block_lists(BLOB)
    assert nothing_left(store, tmp_path)


async def test_blocks_on_a_page_blob_are_refused(store: BlobStore) -> None:
    await store.create_page_blob(BLOB, plain(), PAGE)
    with refused(StorageCode.INVALID_BLOB_TYPE):
        await put_block(store, BLOB, "b1", b"one")
    with refused(StorageCode.INVALID_BLOB_TYPE):
        await commit_blocks(store)


async def test_a_block_blobs_snapshot_and_copy_share_its_bytes(store: BlobStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 400
    await put_blob(store, BLOB, content)
    space = occupied_bytes(tmp_path)
    taken = await store.snapshot_blob(BLOB)
    await store.copy_blob(Address("lab", "copy"), CopyRequest(BLOB, "source", "id"))
    assert occupied_bytes(tmp_path) == space
    await put_blob(store, BLOB, b"new")
    assert await read(store, Address("lab", "blob", taken.snapshot)) == content
    await store.delete_blob(BLOB, "include")
    assert await read(store, Address("lab", "copy")) == content
    await store.delete_blob(Address("lab", "copy"))
    assert nothing_left(store, tmp_path)
    await put_blob(store, Address("lab", "next"), b"x")
    await put_blob(store, Address("lab", "filling"), b"x" * 250 * 1024)
    assert store.wait_until_quiet(QUIET_S)


async def test_a_snapshot_and_a_copy_cost_no_pages(store: BlobStore, tmp_path: Path) -> None:
    await store.create_page_blob(DISK, plain(), 2**40)
    for at in range(8):
        await put_pages(store, DISK, at * 2**30, b"d" * 16 * 1024)
    space = occupied_bytes(tmp_path)
    taken = await store.snapshot_blob(DISK)
    snapshot = Address("lab", "disk", taken.snapshot)
    await store.copy_blob(Address("lab", "disk-Test"), CopyRequest(snapshot, "source", "id"))
    assert occupied_bytes(tmp_path) == space
    await put_pages(store, DISK, 0, b"n" * 16 * 1024)
    assert occupied_bytes(tmp_path) == space + 16 * 1024
    await store.delete_blob(Address("lab", "disk-Test"))
    await store.delete_blob(snapshot)
    assert store.wait_until_quiet(QUIET_S)
    assert occupied_bytes(tmp_path) == space


async def test_copies_of_copies_end_somewhere(store: BlobStore) -> None:
    await store.create_page_blob(Address("lab", "disk-0"), plain(), PAGE)
    await put_pages(store, Address("lab", "disk-0"), 0, b"o" * PAGE)
    for number in range(MAX_LINEAGE):
        source = Address("lab", f"disk-{number}")
        await store.copy_blob(Address("lab", f"disk-{number + 1}"), CopyRequest(source, "source", "id"))
        await store.delete_blob(source)
    last = Address("lab", f"disk-{MAX_LINEAGE}")
    assert await read(store, last) == b"o" * PAGE
    with refused(StorageCode.INVALID_OPERATION):
        await store.copy_blob(DISK, CopyRequest(last, "source", "id"))


async def test_a_deleted_container_returns_its_space_and_its_name(store: BlobStore, tmp_path: Path) -> None:
    for number in range(150):
        await put_blob(store, Address("lab", f"blob-{number}"), b"x" * 100)
    await store.create_page_blob(DISK, plain(), 64 * PAGE)
    await put_pages(store, DISK, 0, b"p" * 64 * PAGE)
    await store.snapshot_blob(DISK)
    await put_block(store, Address("lab", "waiting"), "b1", b"x")
    await store.delete_container("lab")
    await store.create_container("lab")
    with refused(StorageCode.BLOB_NOT_FOUND):
        await store.get_blob(DISK)
    assert nothing_left(store, tmp_path)
    catalog = sqlite3.connect(tmp_path / CATALOG_NAME)
    for table in ("blobs", "contents", "pages", "chunks", "parts", "uncommitted", "holders", "reclaims"):
        assert catalog.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table  # noqa: S608 - constants
    catalog.close()


async def test_a_body_that_nobody_takes_over_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    async with store.receive(600_000) as body:
        await body.write(b"x" * 600_000)
        await body.finish()
    with refused(StorageCode.CONDITION_NOT_MET):
        await put_blob(store, BLOB, b"x" * 9000, Guard(Conditions(if_match="0x1")))
    await put_blob(store, BLOB, b"")
    assert nothing_left(store, tmp_path)


@pytest.mark.parametrize("sent", [4, 6])
async def test_a_body_of_another_length_is_refused(store: BlobStore, sent: int) -> None:
    async with store.receive(5) as body:
        with pytest.raises(InvalidInput):  # noqa: PT012 - the longer one at once, the shorter one at its end
            await body.write(b"x" * sent)
            await store.put_block_blob(BLOB, plain(), body)


async def test_many_bodies_at_once_are_each_whole(store: BlobStore) -> None:
    contents = [bytes([number]) * (number * 31_337) for number in range(40)]
    await asyncio.gather(
        *(put_blob(store, Address("lab", f"b{number}"), content) for number, content in enumerate(contents))
    )
    for number, content in enumerate(contents):
        assert await read(store, Address("lab", f"b{number}")) == content


async def test_a_changed_blob_ends_a_stream_instead_of_mixing_states(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PIECES_AT_ONCE", 2)
    monkeypatch.setattr(readers.plan, "__defaults__", (2,))
    await store.create_page_blob(DISK, plain(), 16 * PAGE)
    for page in range(16):
        await put_pages(store, DISK, page * PAGE, bytes([page + 1]) * PAGE)
    taken = await store.snapshot_blob(DISK)
    live = (await store.read_blob(DISK)).stream(0, 16 * PAGE)
    kept = (await store.read_blob(Address("lab", "disk", taken.snapshot))).stream(0, 16 * PAGE)
    assert await anext(live) == await anext(kept) == b"\1" * PAGE
    await put_pages(store, DISK, 8 * PAGE, b"\xff" * PAGE)
    with pytest.raises(StateChanged):
        _ = [piece async for piece in live]
    assert b"".join([bytes(piece) async for piece in kept])[7 * PAGE : 8 * PAGE] == b"\x09" * PAGE


async def test_a_reader_still_sees_what_is_deleted_meanwhile(store: BlobStore) -> None:
    content = bytes(range(256)) * 4096
    await put_blob(store, BLOB, content)
    stream = (await store.read_blob(BLOB)).stream(0, len(content))
    first = await anext(stream)
    await store.delete_blob(BLOB)
    assert bytes(first) + b"".join([bytes(piece) async for piece in stream]) == content


async def test_sequence_numbers_are_set_raised_and_counted(store: BlobStore) -> None:
    await store.create_page_blob(DISK, plain(), PAGE, sequence_number=5)
    assert (await store.change_sequence_number(DISK, "max", 3)).sequence_number == 5
    assert (await store.change_sequence_number(DISK, "max", 9)).sequence_number == 9
    assert (await store.change_sequence_number(DISK, "increment", None)).sequence_number == 10
    assert (await store.change_sequence_number(DISK, "update", 2**63 - 1)).sequence_number == 2**63 - 1
    with refused(StorageCode.SEQUENCE_NUMBER_INCREMENT_TOO_LARGE):
        await store.change_sequence_number(DISK, "increment", None)
    for action, number in (("increment", 1), ("update", None), ("update", 2**63)):
        with refused(StorageCode.INVALID_HEADER_VALUE):
            await store.change_sequence_number(DISK, action, number)  # type: ignore[arg-type]  # a literal
    await put_blob(store, BLOB, b"")
    with refused(StorageCode.INVALID_BLOB_TYPE):
        await store.change_sequence_number(BLOB, "update", 1)


async def test_a_put_replaces_the_type_too(store: BlobStore) -> None:
    await put_blob(store, BLOB, b"block")
    await store.create_page_blob(BLOB, plain(), PAGE)
    assert (await store.get_blob(BLOB)).blob_type is BlobType.PAGE
    await put_blob(store, BLOB, b"block again")
    assert await read(store, BLOB) == b"block again"


def test_only_one_process_opens_a_directory(tmp_path: Path) -> None:
    first = BlobStore.open(tmp_path)
    with pytest.raises(SettingsError):
        BlobStore.open(tmp_path)
    first.close()
    BlobStore.open(tmp_path).close()


async def test_a_catalog_of_the_first_version_is_brought_up_to_date_and_goes_on_reclaiming(tmp_path: Path) -> None:
    opened = BlobStore.open(tmp_path, StoreOptions(reserve_bytes=0))
    await opened.create_container("lab")
    await put_blob(opened, BLOB, b"x" * 10_000)
    opened.close()
    catalog = sqlite3.connect(tmp_path / CATALOG_NAME, isolation_level=None)
    catalog.execute("INSERT INTO parts SELECT 999, start, chunk, length, block_id FROM parts")  # of a blob that is gone
    catalog.execute("UPDATE chunks SET references_ = 2")
    catalog.execute("ALTER TABLE parts RENAME TO segments")
    catalog.execute("INSERT INTO reclaims (kind, target, version) VALUES ('segments', 999, 0)")
    catalog.execute("PRAGMA user_version = 1")
    catalog.close()
    again = BlobStore.open(tmp_path, StoreOptions(reserve_bytes=0))
    assert await read(again, BLOB) == b"x" * 10_000
    assert again.wait_until_quiet(QUIET_S)
    again.close()
    catalog = sqlite3.connect(tmp_path / CATALOG_NAME)
    assert catalog.execute("SELECT count(*) FROM parts WHERE content = 999").fetchone() == (0,)
    assert catalog.execute("SELECT references_ FROM chunks").fetchall() == [(1,)]
    catalog.close()


def test_a_catalog_of_another_version_is_refused(tmp_path: Path) -> None:
    BlobStore.open(tmp_path).close()
    catalog = sqlite3.connect(tmp_path / CATALOG_NAME)
    catalog.execute("PRAGMA user_version = 99")
    catalog.close()
    with pytest.raises(Permanent):
        BlobStore.open(tmp_path)


@pytest.fixture
def directory_with_a_blob(tmp_path: Path) -> Path:
    async def fill() -> None:
        opened = BlobStore.open(tmp_path, StoreOptions(reserve_bytes=0))
        await opened.create_container("lab")
        await put_blob(opened, BLOB, b"x" * 10_000)
        opened.close()

    asyncio.run(fill())
    return tmp_path


def test_a_missing_or_short_arena_is_noticed_at_start(directory_with_a_blob: Path) -> None:
    arena = directory_with_a_blob / "arenas" / "00000001"
    with arena.open("r+b") as stream:
        stream.truncate(9_999)
    with pytest.raises(Permanent):
        BlobStore.open(directory_with_a_blob)
    arena.unlink()
    with pytest.raises(Permanent):
        BlobStore.open(directory_with_a_blob)


def test_what_a_crash_left_unreferenced_is_returned_at_the_next_start(directory_with_a_blob: Path) -> None:
    arenas = directory_with_a_blob / "arenas"
    with (arenas / "00000001").open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"left over" * 1000)
    (arenas / "00000007").write_bytes(b"a whole arena of leftovers" * 1000)

    async def reopen() -> bytes:
        store = BlobStore.open(directory_with_a_blob, StoreOptions(reserve_bytes=0))
        try:
            assert nothing_left(store, directory_with_a_blob)
            return await read(store, BLOB)
        finally:
            store.close()

    assert asyncio.run(reopen()) == b"x" * 10_000
    assert sorted(path.name for path in arenas.iterdir()) == ["00000001"]
