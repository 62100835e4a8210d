"""Orders to go to servers over SSH: those that the configuration server names are carried out, those that it names no more are dropped.

Built by ``daemon``, which calls ``wanted`` with each heartbeat's answer. An order is fetched when it begins, and kept in memory only while
it is carried out; with a restart it is named and fetched again. One that fails here (the configuration server does not answer, say) is
begun anew when it is named the next time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from replication.control_plane import RemoteOrderReference
from replication.errors import BlockferryError, NotFound

MOST_ORDERS: Final = 8
"""Carried out at a time; the others wait until they are named again."""

_logger = logging.getLogger(__name__)


class RemoteOrders:
    """``carriers``: for each kind of order what carries one out, given its identifier."""

    def __init__(self, carriers: Mapping[str, Callable[[str], Awaitable[None]]]) -> None:
        self._carriers = carriers
        self._named: dict[RemoteOrderReference, None] = {}
        self._running: dict[RemoteOrderReference, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    @property
    def running(self) -> int:
        return len(self._running)

    def wanted(self, references: Sequence[RemoteOrderReference]) -> None:
        """What the newest heartbeat's answer named."""
        self._named = dict.fromkeys(references)
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; then every order is broken off."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for reference, task in self._running.items():
                    if reference not in self._named:
                        task.cancel()
                for reference in self._named:
                    if reference not in self._running and len(self._running) < MOST_ORDERS:
                        self._running[reference] = tasks.create_task(self._carry_out(reference))

    async def _carry_out(self, reference: RemoteOrderReference) -> None:
        fields = {"kind": reference.kind, "identifier": reference.identifier}
        try:
            _logger.info("an order begins", extra={"fields": fields})
            await self._carriers[reference.kind](reference.identifier)
            _logger.info("an order is done", extra={"fields": fields})
        except NotFound:
            _logger.info("an order is over", extra={"fields": fields})
        except BlockferryError as error:
            _logger.warning("an order was broken off", extra={"fields": {**fields, "error": str(error)}})
        except Exception:  # whatever goes wrong on the way to a server must not end the road of the data
            _logger.exception("an order failed", extra={"fields": fields})
        finally:
            del self._running[reference]
