"""A request's body: its announced length checked before anything is allocated, its bytes read into memory of the caller's.

Called by the batch and manifest handlers. A body that stands still for the deadline, or takes ten times as long as a whole, gives its
buffer back.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import ClientPayloadError, HttpVersion11, web

from replication.errors import InvalidInput, PeerUnavailable
from replication.service.reception import DirectBody

DEFAULT_DEADLINE_S: Final = 60.0
TIMES_AS_A_WHOLE: Final = 10
"""A body may take so many times its deadline as long as it moves: a slow line is slow and not broken."""
_CONTINUE: Final = "100-continue"


def awaits_leave(request: web.Request) -> bool:
    """Whether the client sends its body only once it is told to (RFC 9110, 10.1.1; HTTP/1.0 has no such thing)."""
    return request.version >= HttpVersion11 and request.headers.get("Expect", "").strip().lower() == _CONTINUE


async def leave_is_given_later(request: web.Request) -> None:
    """The routes' ``expect_handler``: leave to send a body is given when there is room for it, not before.

    :raises HTTPExpectationFailed: for any other expectation.
    """
    if request.version >= HttpVersion11 and not awaits_leave(request):
        raise web.HTTPExpectationFailed(text="only 100-continue can be met")


class Body:
    """The body of ``request``, to be read once."""

    def __init__(self, request: web.Request, deadline_s: float = DEFAULT_DEADLINE_S) -> None:
        self._request = request
        self._deadline_s = deadline_s
        self._direct: DirectBody | None = None

    @property
    def received_bytes(self) -> int:
        """How much of it is here."""
        return 0 if self._direct is None else self._direct.filled_bytes

    def length(self, *, at_least: int, at_most: int) -> int:
        """The announced length.

        :raises InvalidInput: if there is none, if it is out of range, or if the body is encoded in some way.
        """
        length = self._request.content_length
        if length is None or "Content-Encoding" in self._request.headers:
            raise InvalidInput(
                "cannot accept a body of unknown length", hint="send Content-Length and no Content-Encoding"
            )
        if not at_least <= length <= at_most:
            raise InvalidInput(f"cannot accept a body of {length} bytes", hint=f"{at_least} to {at_most} bytes")
        return length

    async def receive_into(self, view: memoryview) -> None:
        """Fill ``view``, which is as long as announced; a client that waits for leave to send (Expect: 100-continue) gets it now.

        :raises PeerUnavailable: if it is cut off or too slow.
        """
        with DirectBody(self._request, view.nbytes) as body:
            self._direct = body
            try:
                async with asyncio.timeout(TIMES_AS_A_WHOLE * self._deadline_s):
                    if awaits_leave(self._request) and self._request.transport is not None:
                        self._request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    await body.fill(view, self._deadline_s)
            except TimeoutError as error:
                raise PeerUnavailable(
                    f"cannot wait any longer for a body: it stands still after {body.filled_bytes} of {view.nbytes} bytes"
                ) from error
            except (ClientPayloadError, web.RequestPayloadError, ConnectionError) as error:
                raise PeerUnavailable(
                    f"cannot receive a body: cut off after {body.filled_bytes} of {view.nbytes} bytes"
                ) from error
