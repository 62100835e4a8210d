"""HTTP sessions over TLS whose identity may change while they are used. Called by the agent's and the process server's clients.

Requests that begin after ``use_tls`` go over new connections, which show the new certificate; those under way end on theirs. A
connection is never carried over: a server refuses requests on one whose certificate has ended, however long it has been open.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(slots=True)
class _Used:
    session: aiohttp.ClientSession
    requests: int = 0


class TlsSession:
    """``make`` builds a session for a context; it needs a running loop. ``close`` when done."""

    def __init__(self, make: Callable[[ssl.SSLContext], aiohttp.ClientSession], tls: ssl.SSLContext) -> None:
        self._make = make
        self._current = _Used(make(tls))
        self._closed = False

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        """Requests that begin from now on use ``tls``. Idle connections are closed on return, busy ones after their requests."""
        if self._closed:
            return
        before, self._current = self._current, _Used(self._make(tls))
        if not before.requests:
            await before.session.close()

    async def close(self) -> None:
        """End everything, requests under way included."""
        self._closed = True
        await self._current.session.close()

    @contextlib.asynccontextmanager
    async def request(self, method: str, url: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """As ``aiohttp.ClientSession.request``."""
        used = self._current
        used.requests += 1
        try:
            async with used.session.request(method, url, **options) as response:
                yield response
        finally:
            used.requests -= 1
            if used is not self._current and not used.requests:
                await used.session.close()
