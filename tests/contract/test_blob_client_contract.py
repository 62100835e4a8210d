"""What every ``BlobClient`` does: the HTTPS client against the real service over TLS, and the fake in memory, by the same facts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from replication.blob_client.api import BlobClient, BlobType, PageRange
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import BlobInputRefused, BlobNotFound
from replication.errors import PeerProtocolError
from tests.harness.blob_accounts import ACCOUNTS, LabAccount, conflict

LEASE = "11111111-2222-3333-4444-555555555555"
PAGE = 512


@pytest.fixture(params=sorted(ACCOUNTS))
async def account(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LabAccount]:
    async with ACCOUNTS[request.param](tmp_path) as ready:
        yield ready


@pytest.fixture
def client(account: LabAccount) -> BlobClient:
    return account.client


async def names(client: BlobClient, prefix: str = "") -> list[str]:
    return [item.name async for item in client.list_blobs("lab", prefix)]


async def content(client: BlobClient, name: str, snapshot: str | None = None) -> bytes:
    found = await client.get_blob("lab", name, max_bytes=2**24, snapshot=snapshot)
    assert found is not None
    return found.content


async def ranges(client: BlobClient, name: str, **choice: str) -> list[PageRange]:
    return [found async for found in client.get_page_ranges("lab", name, **choice)]


# -- whole blobs ----------------------------------------------------------------------------------------------------


async def test_creating_a_container_that_exists_succeeds(client: BlobClient) -> None:
    await client.put_blob("lab", "kept", b"kept")
    await client.create_container("lab")
    assert await names(client) == ["kept"]


@pytest.mark.parametrize("size", [0, 1, 511, 65_537, 3 * 2**20 + 17])
async def test_a_blob_comes_back_byte_for_byte(client: BlobClient, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    stamp = await client.put_blob("lab", "name with blanks/ünï?#%25", body[:size], metadata={"epoch": "7"})
    found = await client.get_blob("lab", "name with blanks/ünï?#%25", max_bytes=size)
    assert found is not None
    assert found.content == body[:size]
    assert found.properties.etag == stamp.etag
    assert found.properties.length_bytes == found.properties.transferred_bytes == size
    assert found.properties.metadata == {"epoch": "7"}
    assert found.properties.blob_type is BlobType.BLOCK


async def test_slices_are_sent_in_order_as_one_body(client: BlobClient) -> None:
    parts = [bytearray([number]) * (number * 70_001) for number in range(1, 6)]
    await client.put_blob("lab", "sliced", [memoryview(part) for part in parts])
    assert await content(client, "sliced") == b"".join(parts)


async def test_a_blob_larger_than_the_bound_is_refused(client: BlobClient) -> None:
    await client.put_blob("lab", "large", bytes(1000))
    with pytest.raises(PeerProtocolError):
        await client.get_blob("lab", "large", max_bytes=999)
    assert await content(client, "large") == bytes(1000)


async def test_an_unchanged_blob_is_not_read_again(client: BlobClient) -> None:
    first = await client.put_blob("lab", "watched", b"one")
    assert await client.get_blob("lab", "watched", max_bytes=9, if_none_match=first.etag) is None
    await client.put_blob("lab", "watched", b"two")
    found = await client.get_blob("lab", "watched", max_bytes=9, if_none_match=first.etag)
    assert found is not None
    assert found.content == b"two"


async def test_only_the_first_of_two_creates_wins(client: BlobClient) -> None:
    await client.put_blob("lab", "manifest", b"first", if_none_match_any=True)
    with conflict(StorageCode.BLOB_ALREADY_EXISTS):
        await client.put_blob("lab", "manifest", b"second", if_none_match_any=True)
    assert await content(client, "manifest") == b"first"


async def test_if_match_lets_only_the_known_state_be_replaced(client: BlobClient) -> None:
    first = await client.put_blob("lab", "record", b"1")
    await client.put_blob("lab", "record", b"2", if_match=first.etag)
    with conflict(StorageCode.CONDITION_NOT_MET):
        await client.put_blob("lab", "record", b"3", if_match=first.etag)
    with conflict(StorageCode.CONDITION_NOT_MET):
        await client.put_blob("lab", "absent", b"3", if_match=first.etag)
    assert await content(client, "record") == b"2"


async def test_what_is_not_there_is_not_found(client: BlobClient) -> None:
    for attempt in (
        client.get_blob("lab", "absent", max_bytes=1),
        client.head_blob("lab", "absent"),
        client.delete_blob("lab", "absent"),
        client.set_metadata("lab", "absent", {}),
        client.snapshot_blob("lab", "absent"),
        client.put_pages("lab", "absent", 0, bytes(PAGE)),
        client.put_blob("nowhere", "absent", b""),
        client.get_blob_into("lab", "absent", bytearray(1)),
        client.renew_lease("lab", "absent", LEASE),
    ):
        with pytest.raises(BlobNotFound):
            await attempt
    with pytest.raises(BlobNotFound):
        _ = [item async for item in client.list_blobs("nowhere", "")]


async def test_a_part_is_read_into_the_callers_buffer(client: BlobClient) -> None:
    body = bytes(range(256)) * 4
    await client.put_blob("lab", "parts", body)
    buffer = bytearray(b"\xff" * 100)
    found = await client.get_blob_into("lab", "parts", buffer, offset=50, length=30)
    assert (found.transferred_bytes, found.length_bytes) == (30, len(body))
    assert buffer == body[50:80] + b"\xff" * 70
    found = await client.get_blob_into("lab", "parts", memoryview(buffer), offset=len(body) - 10)
    assert found.transferred_bytes == 10
    assert buffer[:10] == body[-10:]
    with pytest.raises(BlobInputRefused):
        await client.get_blob_into("lab", "parts", buffer, offset=len(body))


async def test_an_empty_blob_is_read_into_nothing(client: BlobClient) -> None:
    await client.put_blob("lab", "empty", b"")
    found = await client.get_blob_into("lab", "empty", bytearray(5))
    assert (found.transferred_bytes, found.length_bytes) == (0, 0)


async def test_metadata_is_replaced_whole(client: BlobClient) -> None:
    await client.put_blob("lab", "tagged", b"x", metadata={"a": "1", "b": "2"})
    before = await client.head_blob("lab", "tagged")
    stamp = await client.set_metadata("lab", "tagged", {"c": "3"}, if_match=before.etag)
    after = await client.head_blob("lab", "tagged")
    assert after.metadata == {"c": "3"}
    assert after.etag == stamp.etag != before.etag
    with conflict(StorageCode.CONDITION_NOT_MET):
        await client.set_metadata("lab", "tagged", {}, if_match=before.etag)


async def test_delete_honours_its_condition(client: BlobClient) -> None:
    first = await client.put_blob("lab", "doomed", b"1")
    second = await client.put_blob("lab", "doomed", b"2")
    with conflict(StorageCode.CONDITION_NOT_MET):
        await client.delete_blob("lab", "doomed", if_match=first.etag)
    await client.delete_blob("lab", "doomed", if_match=second.etag)
    with pytest.raises(BlobNotFound):
        await client.head_blob("lab", "doomed")


async def test_last_modified_is_the_clocks_whole_second(account: LabAccount) -> None:
    account.clock.now += 0.75
    stamp = await account.client.put_blob("lab", "timed", b"")
    assert stamp.last_modified == datetime.fromtimestamp(int(account.clock.now), UTC)


# -- listing --------------------------------------------------------------------------------------------------------


async def test_a_listing_has_all_names_with_the_prefix_in_order(client: BlobClient) -> None:
    for name in ("b/2", "a/1", "b/10", "b", "c", "b/1"):
        await client.put_blob("lab", name, b"")
    assert await names(client, "b/") == ["b/1", "b/10", "b/2"]
    assert await names(client) == ["a/1", "b", "b/1", "b/10", "b/2", "c"]
    assert await names(client, "x") == []


async def test_a_listing_shows_properties_metadata_and_snapshots_on_request(client: BlobClient) -> None:
    stamp = await client.create_page_blob("lab", "disk", 4 * PAGE, metadata={"applied": "3"}, sequence_number=9)
    snapshot = await client.snapshot_blob("lab", "disk", metadata={"cut": "1"})
    found = [item async for item in client.list_blobs("lab", "", include_snapshots=True, include_metadata=True)]
    assert [(item.name, item.snapshot) for item in found] == [("disk", snapshot), ("disk", None)]
    assert [dict(item.properties.metadata) for item in found] == [{"cut": "1"}, {"applied": "3"}]
    live = found[1].properties
    assert (live.etag, live.length_bytes, live.sequence_number) == (stamp.etag, 4 * PAGE, 9)
    assert live.blob_type is BlobType.PAGE
    plain = [item async for item in client.list_blobs("lab", "")]
    assert [(item.snapshot, dict(item.properties.metadata)) for item in plain] == [(None, {})]


# -- page blobs -----------------------------------------------------------------------------------------------------


async def test_unwritten_pages_read_as_zeros(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 8 * PAGE)
    await client.put_pages("lab", "disk", 2 * PAGE, b"\x11" * PAGE)
    assert await content(client, "disk") == bytes(2 * PAGE) + b"\x11" * PAGE + bytes(5 * PAGE)
    assert await ranges(client, "disk") == [(2 * PAGE, PAGE)]


async def test_later_pages_replace_earlier_ones_where_they_overlap(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 8 * PAGE)
    await client.put_pages("lab", "disk", 0, b"a" * 4 * PAGE)
    await client.put_pages("lab", "disk", PAGE, [memoryview(b"b" * PAGE), memoryview(b"c" * PAGE)])
    await client.put_pages("lab", "disk", 3 * PAGE, b"d" * 3 * PAGE)
    assert await content(client, "disk") == b"".join(
        letter * PAGE for letter in (b"a", b"b", b"c", b"d", b"d", b"d", b"\0", b"\0")
    )
    assert await ranges(client, "disk") == [(0, 6 * PAGE)]


async def test_cleared_pages_are_zeros_and_no_range(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 8 * PAGE)
    await client.put_pages("lab", "disk", 0, b"a" * 8 * PAGE)
    await client.clear_pages("lab", "disk", 2 * PAGE, 3 * PAGE)
    assert await content(client, "disk") == b"a" * 2 * PAGE + bytes(3 * PAGE) + b"a" * 3 * PAGE
    assert await ranges(client, "disk") == [(0, 2 * PAGE), (5 * PAGE, 3 * PAGE)]


async def test_pages_outside_or_across_are_refused(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 4 * PAGE)
    for offset, body in ((4 * PAGE, bytes(PAGE)), (3 * PAGE, bytes(2 * PAGE)), (100, bytes(PAGE)), (0, bytes(100))):
        with pytest.raises(BlobInputRefused):
            await client.put_pages("lab", "disk", offset, body)
    with pytest.raises(BlobInputRefused):
        await client.put_pages("lab", "disk", 0, bytes(4 * 2**20 + PAGE))
    with pytest.raises(BlobInputRefused):
        await client.create_page_blob("lab", "odd", 100)
    assert await ranges(client, "disk") == []


async def test_four_mebibytes_are_written_by_one_call(client: BlobClient) -> None:
    body = bytes(range(256)) * (4 * 2**20 // 256)
    await client.create_page_blob("lab", "disk", 2**40)
    await client.put_pages("lab", "disk", 2**39, body)
    buffer = bytearray(len(body))
    await client.get_blob_into("lab", "disk", buffer, offset=2**39)
    assert buffer == body


async def test_an_existing_page_blob_is_not_created_again(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 4 * PAGE)
    await client.put_pages("lab", "disk", 0, b"a" * PAGE)
    with conflict(StorageCode.BLOB_ALREADY_EXISTS):
        await client.create_page_blob("lab", "disk", 8 * PAGE)
    await client.create_page_blob("lab", "disk", 8 * PAGE, if_none_match_any=False)
    assert await content(client, "disk") == bytes(8 * PAGE)


async def test_sequence_numbers_fence_writers(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 4 * PAGE, sequence_number=5)
    stamp = await client.put_pages("lab", "disk", 0, b"a" * PAGE, if_sequence_number_eq=5, if_sequence_number_le=5)
    assert stamp.sequence_number == 5
    assert (await client.set_sequence_number("lab", "disk", 6)).sequence_number == 6
    with conflict(StorageCode.SEQUENCE_NUMBER_CONDITION_NOT_MET):
        await client.put_pages("lab", "disk", 0, b"b" * PAGE, if_sequence_number_eq=5)
    with conflict(StorageCode.SEQUENCE_NUMBER_CONDITION_NOT_MET):
        await client.clear_pages("lab", "disk", 0, PAGE, if_sequence_number_le=5)
    await client.put_pages("lab", "disk", PAGE, b"c" * PAGE, if_sequence_number_le=7)
    assert await content(client, "disk") == b"a" * PAGE + b"c" * PAGE + bytes(2 * PAGE)
    assert (await client.head_blob("lab", "disk")).sequence_number == 6


async def test_page_operations_are_refused_on_block_blobs(client: BlobClient) -> None:
    await client.put_blob("lab", "blocks", bytes(PAGE))
    with conflict(StorageCode.INVALID_BLOB_TYPE):
        await client.put_pages("lab", "blocks", 0, bytes(PAGE))
    with conflict(StorageCode.INVALID_BLOB_TYPE):
        await client.resize_page_blob("lab", "blocks", PAGE)
    with conflict(StorageCode.INVALID_BLOB_TYPE):
        await ranges(client, "blocks")


async def test_what_a_smaller_size_cut_off_stays_gone(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 8 * PAGE)
    await client.put_pages("lab", "disk", 0, b"a" * 8 * PAGE)
    await client.resize_page_blob("lab", "disk", 3 * PAGE)
    assert await content(client, "disk") == b"a" * 3 * PAGE
    await client.resize_page_blob("lab", "disk", 8 * PAGE)
    assert await content(client, "disk") == b"a" * 3 * PAGE + bytes(5 * PAGE)


# -- snapshots and copies -------------------------------------------------------------------------------------------


async def test_a_snapshot_keeps_what_later_writes_change(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 4 * PAGE, metadata={"applied": "1"})
    await client.put_pages("lab", "disk", 0, b"a" * 2 * PAGE)
    snapshot = await client.snapshot_blob("lab", "disk")
    await client.put_pages("lab", "disk", PAGE, b"b" * 2 * PAGE)
    await client.set_metadata("lab", "disk", {"applied": "2"})
    assert await content(client, "disk", snapshot) == b"a" * 2 * PAGE + bytes(2 * PAGE)
    assert await content(client, "disk") == b"a" * PAGE + b"b" * 2 * PAGE + bytes(PAGE)
    assert (await client.head_blob("lab", "disk", snapshot=snapshot)).metadata == {"applied": "1"}
    assert await ranges(client, "disk", snapshot=snapshot) == [(0, 2 * PAGE)]
    assert await ranges(client, "disk", previous_snapshot=snapshot) == [(PAGE, 2 * PAGE)]


async def test_snapshots_taken_within_one_instant_have_ids_of_their_own(client: BlobClient) -> None:
    await client.put_blob("lab", "blob", b"")
    taken = [await client.snapshot_blob("lab", "blob") for _ in range(3)]
    assert taken == sorted(set(taken))


async def test_a_blob_with_snapshots_is_deleted_only_with_them(client: BlobClient) -> None:
    await client.put_blob("lab", "blob", b"1")
    first = await client.snapshot_blob("lab", "blob")
    second = await client.snapshot_blob("lab", "blob")
    with conflict(StorageCode.SNAPSHOTS_PRESENT):
        await client.delete_blob("lab", "blob")
    await client.delete_blob("lab", "blob", snapshot=first)
    assert await content(client, "blob", second) == b"1"
    await client.delete_blob("lab", "blob", with_snapshots=True)
    with pytest.raises(BlobNotFound):
        await client.head_blob("lab", "blob", snapshot=second)


async def test_a_snapshot_is_taken_only_of_the_expected_state(client: BlobClient) -> None:
    stamp = await client.create_page_blob("lab", "disk", PAGE)
    await client.snapshot_blob("lab", "disk", if_match=stamp.etag)
    await client.put_pages("lab", "disk", 0, bytes(PAGE), if_match=stamp.etag)
    with conflict(StorageCode.CONDITION_NOT_MET):
        await client.snapshot_blob("lab", "disk", if_match=stamp.etag)


async def test_a_copy_of_a_snapshot_lives_on_its_own(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", 4 * PAGE, metadata={"k": "v"})
    await client.put_pages("lab", "disk", 0, b"a" * 3 * PAGE)
    snapshot = await client.snapshot_blob("lab", "disk")
    await client.copy_from_snapshot("lab", "disk", snapshot, "lab", "disk-Test")
    await client.copy_from_snapshot("lab", "disk", snapshot, "lab", "named", metadata={"of": "disk"})
    await client.put_pages("lab", "disk-Test", PAGE, b"t" * PAGE)
    await client.clear_pages("lab", "disk-Test", 2 * PAGE, PAGE)
    await client.delete_blob("lab", "disk", with_snapshots=True)
    assert await content(client, "disk-Test") == b"a" * PAGE + b"t" * PAGE + bytes(2 * PAGE)
    assert await ranges(client, "disk-Test") == [(0, 2 * PAGE)]
    assert await content(client, "named") == b"a" * 3 * PAGE + bytes(PAGE)
    assert (await client.head_blob("lab", "disk-Test")).metadata == {"k": "v"}
    assert (await client.head_blob("lab", "named")).metadata == {"of": "disk"}


async def test_a_copy_does_not_replace_what_exists_unless_told(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", PAGE)
    snapshot = await client.snapshot_blob("lab", "disk")
    await client.put_blob("lab", "there", b"kept")
    with conflict(StorageCode.BLOB_ALREADY_EXISTS):
        await client.copy_from_snapshot("lab", "disk", snapshot, "lab", "there")
    assert await content(client, "there") == b"kept"
    await client.copy_from_snapshot("lab", "disk", snapshot, "lab", "there", if_none_match_any=False)
    assert await content(client, "there") == bytes(PAGE)
    with pytest.raises(BlobNotFound):
        await client.copy_from_snapshot("lab", "absent", snapshot, "lab", "new")
