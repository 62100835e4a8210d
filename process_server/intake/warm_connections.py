"""How much memory idle connections may hold: one that has carried a body keeps TLS and socket buffers for as long as it is open.

Called by ``http_surface`` after each body. Measured: 45 KiB for a connection that was only opened, up to 0.5 MiB more once a body of
256 KiB or larger came through it (uvloop's and OpenSSL's buffers, which only closing gives back). Beyond the budget a connection is
closed after its answer, and its agent opens another when it has something to ship: with few agents nobody notices, with hundreds memory
stays bounded.
"""

from __future__ import annotations

from typing import Final, Protocol

DEFAULT_BUDGET_BYTES: Final = 64 * 2**20
OPEN_BYTES: Final = 45 * 1024
BUFFER_BYTES: Final = 256 * 1024
_BUFFERS: Final = 2
_LOOK_FOR_CLOSED_FROM: Final = 64


class OpenConnection(Protocol):
    """A server connection; its ``transport`` is None once it is closed."""

    @property
    def transport(self) -> object | None: ...


class WarmConnections:
    """Connections that have carried bodies, and what they are reckoned to hold.

    Nobody tells of a closed connection: closed ones are looked for when the budget is used up, or when as many again were added as
    were open the last time. So at most half of what is remembered (or ``_LOOK_FOR_CLOSED_FROM``) is closed.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._held: dict[int, tuple[OpenConnection, int]] = {}
        self._total_bytes = 0
        self._look_at = _LOOK_FOR_CLOSED_FROM

    @property
    def held_bytes(self) -> int:
        return self._total_bytes

    def __len__(self) -> int:
        return len(self._held)

    def carried(self, connection: OpenConnection, body_bytes: int) -> bool:
        """Note a body; False if the connection should be closed after its answer."""
        cost = OPEN_BYTES + _BUFFERS * min(body_bytes, BUFFER_BYTES)
        _, known = self._held.get(id(connection), (connection, 0))
        if cost > known:
            self._held[id(connection)] = (connection, cost)
            self._total_bytes += cost - known
        if self._total_bytes > self._budget_bytes or len(self._held) > self._look_at:
            self._forget_closed()
        if self._total_bytes <= self._budget_bytes:
            return True
        if id(connection) in self._held:
            self._drop(id(connection))
        return False

    def _forget_closed(self) -> None:
        for key in [key for key, (connection, _) in self._held.items() if connection.transport is None]:
            self._drop(key)
        self._look_at = max(_LOOK_FOR_CLOSED_FROM, 2 * len(self._held))

    def _drop(self, key: int) -> None:
        self._total_bytes -= self._held.pop(key)[1]
