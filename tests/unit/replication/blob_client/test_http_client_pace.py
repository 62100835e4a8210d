"""A client that is held back: nothing is sent that its pace has not let pass, and what the pace counted is what the line carried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.pace import on_the_wire
from replication.blob_client.transport import Outflow, paced_slices
from replication.errors import Conflict
from tests.harness.blob_site import BlobSite, blob_site
from tests.harness.metered_relay import metered_relay
from tests.harness.process_time import in_virtual_time, now_s

HANDSHAKES_BYTES = 4 * 4096
BODY = bytes(range(256)) * 4096


class Counting:
    """Lets everything pass, in slices of ``slice_bytes``, once ``open`` is set; ``at_once`` as long as it says so."""

    def __init__(self, slice_bytes: int, *, at_once: bool) -> None:
        self.slice_bytes = slice_bytes
        self.at_once = at_once
        self.taken: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.waits = asyncio.Event()

    def try_take_slice(self, wanted_bytes: int) -> int:
        return self._take_slice(wanted_bytes) if self.at_once and self.open.is_set() else 0

    async def take_slice(self, wanted_bytes: int) -> int:
        self.waits.set()
        await self.open.wait()
        return self._take_slice(wanted_bytes)

    async def take(self, amount_bytes: int) -> None:
        self.waits.set()
        await self.open.wait()
        self.taken.append(amount_bytes)

    def _take_slice(self, wanted_bytes: int) -> int:
        amount_bytes = min(wanted_bytes, self.slice_bytes)
        self.taken.append(on_the_wire(amount_bytes))
        return amount_bytes


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[BlobSite]:
    async with blob_site(tmp_path) as running:
        yield running


ALL = (0.0, float("inf"))


@pytest.mark.parametrize(("slice_bytes", "at_once"), [(3200, False), (50_000, True), (262_144, True)])
async def test_what_was_counted_is_what_went_over_the_line(site: BlobSite, slice_bytes: int, at_once: bool) -> None:
    pace = Counting(slice_bytes, at_once=at_once)
    async with metered_relay(site.endpoint()) as meter, HttpBlobClient(meter.endpoint(site.endpoint()), pace) as store:
        await store.create_container("lab")
        for number in range(4):
            await store.put_blob("lab", f"blob-{number}", [memoryview(BODY), memoryview(BODY)[:777]])
        with pytest.raises(Conflict):
            await store.put_blob("lab", "blob-0", BODY, if_none_match_any=True)
        await store.head_blob("lab", "blob-0")
        blob = await store.get_blob("lab", "blob-3", max_bytes=2**21)
        carried, counted = meter.between(*ALL), sum(pace.taken)
    assert blob is not None
    assert blob.content == BODY + BODY[:777]
    assert max(pace.taken) <= slice_bytes * 1.01 + 22
    assert carried - HANDSHAKES_BYTES <= counted <= carried * 1.001 + 1024


async def test_nothing_is_sent_before_it_is_let_pass(site: BlobSite) -> None:
    pace = Counting(50_000, at_once=False)
    async with metered_relay(site.endpoint()) as meter, HttpBlobClient(meter.endpoint(site.endpoint()), pace) as store:
        await store.create_container("lab")
        pace.open.clear()
        pace.waits.clear()
        before = meter.between(*ALL)
        putting = asyncio.create_task(store.put_blob("lab", "held", BODY))
        await pace.waits.wait()
        assert not putting.done()
        assert meter.between(*ALL) == before
        pace.open.set()
        await putting
        assert (await store.head_blob("lab", "held")).length_bytes == len(BODY)


@in_virtual_time
async def test_being_held_back_is_no_standstill_and_a_line_that_takes_nothing_is() -> None:
    pace, sent = Counting(50_000, at_once=False), 0
    pace.open.clear()
    asyncio.get_running_loop().call_later(1000, pace.open.set)

    async def send() -> None:
        nonlocal sent
        async with asyncio.timeout(30) as deadline:
            async for piece in paced_slices(BODY, Outflow(pace, deadline, 30.0)):
                sent += piece.nbytes
                if sent == len(BODY):
                    assert now_s() >= 1000
                    await asyncio.sleep(31)  # the line

    with pytest.raises(TimeoutError):
        await send()
    assert sent == len(BODY)


@in_virtual_time
async def test_how_much_goes_out_is_settled_when_it_may_go_not_when_the_wait_began() -> None:
    pace = Counting(50_000, at_once=False)
    pace.open.clear()

    async def send() -> list[int]:
        async with asyncio.timeout(30) as deadline:
            return [piece.nbytes async for piece in paced_slices(BODY[:100_000], Outflow(pace, deadline, 30.0))]

    sending = asyncio.create_task(send())
    await pace.waits.wait()
    pace.slice_bytes = 3200
    pace.open.set()
    pieces = await sending
    assert (max(pieces), sum(pieces)) == (3200, 100_000)
