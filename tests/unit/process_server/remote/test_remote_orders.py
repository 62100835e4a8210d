"""Orders to go to servers: begun when they are named, dropped when they are named no more; what fails ends nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

from process_server.remote.remote_orders import MOST_ORDERS, RemoteOrders
from replication.control_plane import RemoteOrderReference
from replication.errors import PeerUnavailable
from replication.remote_access import DISCOVERIES


def reference() -> RemoteOrderReference:
    return RemoteOrderReference(kind=DISCOVERIES, identifier=str(uuid.uuid4()))


class Carrier:
    """Notes what begins and what is broken off; an order goes on until ``release``."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.broken_off: list[str] = []
        self.release = asyncio.Event()
        self.error: Exception | None = None

    async def carry_out(self, identifier: str) -> None:
        self.begun.append(identifier)
        if self.error is not None:
            raise self.error
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.broken_off.append(identifier)
            raise


@contextlib.asynccontextmanager
async def running(carrier: Carrier) -> AsyncIterator[RemoteOrders]:
    orders = RemoteOrders({DISCOVERIES: carrier.carry_out})
    task = asyncio.create_task(orders.run())
    try:
        yield orders
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_order_is_carried_out_once_however_often_it_is_named() -> None:
    carrier, order = Carrier(), reference()
    async with running(carrier) as orders:
        for _ in range(3):
            orders.wanted([order])
            await settle()
        assert carrier.begun == [order.identifier]
        carrier.release.set()
        await settle()
        assert orders.running == 0


async def test_order_that_is_named_no_more_is_dropped_and_a_stop_drops_the_rest() -> None:
    carrier, one, other = Carrier(), reference(), reference()
    async with running(carrier) as orders:
        orders.wanted([one, other])
        await settle()
        orders.wanted([other])
        await settle()
        assert carrier.broken_off == [one.identifier]
    assert carrier.broken_off == [one.identifier, other.identifier]


async def test_order_that_fails_is_begun_anew_when_it_is_named_again() -> None:
    carrier, order = Carrier(), reference()
    async with running(carrier) as orders:
        for error in (PeerUnavailable("cannot reach anybody"), ValueError("unforeseen")):
            carrier.error = error
            orders.wanted([order])
            await settle()
        carrier.error = None
        orders.wanted([order])
        await settle()
        assert carrier.begun == [order.identifier] * 3
        assert orders.running == 1


async def test_orders_are_bounded() -> None:
    carrier, named = Carrier(), [reference() for _ in range(MOST_ORDERS + 3)]
    async with running(carrier) as orders:
        orders.wanted(named)
        await settle()
        assert orders.running == MOST_ORDERS
        carrier.release.set()
        await settle()
        orders.wanted(named[MOST_ORDERS:])
        await settle()
        assert set(carrier.begun) == {each.identifier for each in named}
