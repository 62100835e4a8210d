"""Leases of every ``BlobClient``: who may write, until when, and who comes next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from replication.blob_client.api import BlobClient, LeaseState
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import BlobInputRefused
from tests.harness.blob_accounts import ACCOUNTS, LabAccount, conflict

LEASE = "11111111-2222-3333-4444-555555555555"
OTHER_LEASE = "99999999-2222-3333-4444-555555555555"
PAGE = 512


@pytest.fixture(params=sorted(ACCOUNTS))
async def account(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LabAccount]:
    async with ACCOUNTS[request.param](tmp_path) as ready:
        yield ready


@pytest.fixture
def client(account: LabAccount) -> BlobClient:
    return account.client


async def content(client: BlobClient, name: str) -> bytes:
    found = await client.get_blob("lab", name, max_bytes=2**20)
    assert found is not None
    return found.content


async def test_only_the_holder_of_a_lease_writes(client: BlobClient) -> None:
    await client.create_page_blob("lab", "disk", PAGE)
    assert await client.acquire_lease("lab", "disk", 30, LEASE) == LEASE
    assert (await client.head_blob("lab", "disk")).lease_state is LeaseState.LEASED
    for code, lease_id in (
        (StorageCode.LEASE_ID_MISSING, None),
        (StorageCode.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION, OTHER_LEASE),
    ):
        with conflict(code):
            await client.put_pages("lab", "disk", 0, bytes(PAGE), lease_id=lease_id)
        with conflict(code):
            await client.set_metadata("lab", "disk", {}, lease_id=lease_id)
        with conflict(code):
            await client.delete_blob("lab", "disk", lease_id=lease_id)
    await client.put_pages("lab", "disk", 0, b"a" * PAGE, lease_id=LEASE)
    await client.set_sequence_number("lab", "disk", 1, lease_id=LEASE)
    await client.snapshot_blob("lab", "disk", lease_id=LEASE)
    assert await content(client, "disk") == b"a" * PAGE


async def test_a_lease_that_does_not_exist_opens_nothing(client: BlobClient) -> None:
    await client.put_blob("lab", "free", b"")
    with conflict(StorageCode.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION):
        await client.set_metadata("lab", "free", {}, lease_id=LEASE)


async def test_a_lease_ends_with_its_time_and_can_be_taken_over(account: LabAccount) -> None:
    client = account.client
    await client.create_page_blob("lab", "disk", PAGE)
    await client.acquire_lease("lab", "disk", 15, LEASE)
    account.clock.now += 14
    with conflict(StorageCode.LEASE_ALREADY_PRESENT):
        await client.acquire_lease("lab", "disk", 15, OTHER_LEASE)
    await client.renew_lease("lab", "disk", LEASE)
    account.clock.now += 14
    await client.put_pages("lab", "disk", 0, bytes(PAGE), lease_id=LEASE)
    account.clock.now += 1
    with conflict(StorageCode.LEASE_LOST):
        await client.put_pages("lab", "disk", 0, bytes(PAGE), lease_id=LEASE)
    assert (await client.head_blob("lab", "disk")).lease_state is LeaseState.EXPIRED
    await client.acquire_lease("lab", "disk", 60, OTHER_LEASE)
    with conflict(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION):
        await client.renew_lease("lab", "disk", LEASE)
    with conflict(StorageCode.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION):
        await client.put_pages("lab", "disk", 0, bytes(PAGE), lease_id=LEASE)


async def test_an_expired_lease_is_renewed_unless_the_blob_was_written_meanwhile(account: LabAccount) -> None:
    client = account.client
    await client.put_blob("lab", "blob", b"1")
    await client.acquire_lease("lab", "blob", 15, LEASE)
    account.clock.now += 20
    await client.renew_lease("lab", "blob", LEASE)
    account.clock.now += 20
    await client.set_metadata("lab", "blob", {"by": "another"})
    with conflict(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION):
        await client.renew_lease("lab", "blob", LEASE)


async def test_acquiring_again_with_the_same_id_succeeds(client: BlobClient) -> None:
    await client.put_blob("lab", "blob", b"")
    await client.acquire_lease("lab", "blob", None, LEASE)
    assert await client.acquire_lease("lab", "blob", 20, LEASE) == LEASE
    made_up = await client.put_blob("lab", "other", b"")
    assert made_up.etag
    assert await client.acquire_lease("lab", "other", 20) != LEASE


async def test_a_released_lease_is_free_at_once(client: BlobClient) -> None:
    await client.put_blob("lab", "blob", b"")
    await client.acquire_lease("lab", "blob", None, LEASE)
    with conflict(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION):
        await client.release_lease("lab", "blob", OTHER_LEASE)
    await client.release_lease("lab", "blob", LEASE)
    await client.acquire_lease("lab", "blob", 15, OTHER_LEASE)


async def test_a_broken_lease_ends_after_the_period(account: LabAccount) -> None:
    client = account.client
    await client.put_blob("lab", "blob", b"")
    with conflict(StorageCode.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION):
        await client.break_lease("lab", "blob")
    await client.acquire_lease("lab", "blob", 60, LEASE)
    assert await client.break_lease("lab", "blob", break_period_s=10) == 10
    assert (await client.head_blob("lab", "blob")).lease_state is LeaseState.BREAKING
    with conflict(StorageCode.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED):
        await client.renew_lease("lab", "blob", LEASE)
    await client.set_metadata("lab", "blob", {}, lease_id=LEASE)
    account.clock.now += 10
    assert (await client.head_blob("lab", "blob")).lease_state is LeaseState.BROKEN
    await client.acquire_lease("lab", "blob", 15, OTHER_LEASE)
    assert await client.break_lease("lab", "blob", break_period_s=0) == 0


@pytest.mark.parametrize("duration_s", [14, 61])
async def test_a_lease_lasts_15_to_60_seconds(client: BlobClient, duration_s: int) -> None:
    await client.put_blob("lab", "blob", b"")
    with pytest.raises(BlobInputRefused):
        await client.acquire_lease("lab", "blob", duration_s, LEASE)


async def test_a_lease_stays_with_a_replaced_blob(client: BlobClient) -> None:
    await client.put_blob("lab", "blob", b"1")
    await client.acquire_lease("lab", "blob", None, LEASE)
    with conflict(StorageCode.LEASE_ID_MISSING):
        await client.put_blob("lab", "blob", b"2")
    await client.put_blob("lab", "blob", b"2", lease_id=LEASE)
    assert (await client.head_blob("lab", "blob")).lease_state is LeaseState.LEASED
    assert await content(client, "blob") == b"2"
