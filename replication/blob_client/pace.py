"""How a Blob client is held back: every byte that it sends is asked for first, the heads of requests and every repetition included.

Handed to ``HttpBlobClient`` by a daemon that limits its uploads (the process server's ``throttle.py``); without one nothing is held back.
What counts is what goes over the connection: heads, bodies and what TLS adds to them. Not counted are TLS handshakes (about 2 KB for
each new connection) and what lies below: TCP/IP headers, about 4 % at full-sized packets, and packets that TCP repeats.
"""

from __future__ import annotations

from typing import Final, Protocol

TLS_RECORD_BYTES: Final = 2**14
TLS_RECORD_OVERHEAD_BYTES: Final = 5 + 1 + 16
"""RFC 8446, 5.2: header, content type, AEAD tag."""


class Pace(Protocol):
    """Used on one event loop. What was taken is never given back."""

    async def take(self, amount_bytes: int) -> None:
        """Return when ``amount_bytes`` may be sent. On cancel nothing was taken."""
        ...

    def try_take_slice(self, wanted_bytes: int) -> int:
        """How much of a body of which ``wanted_bytes`` are left may be sent at once, 0 for none; what it becomes on the wire is taken."""
        ...

    async def take_slice(self, wanted_bytes: int) -> int:
        """The same, when something may be sent: at least 1. How much is settled then, not when one began to wait: the limit may have
        changed meanwhile. On cancel nothing was taken.
        """
        ...


def on_the_wire(payload_bytes: int) -> int:
    """What one write of ``payload_bytes`` becomes in TLS records."""
    return payload_bytes + -(-payload_bytes // TLS_RECORD_BYTES) * TLS_RECORD_OVERHEAD_BYTES
