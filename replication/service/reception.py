"""Between a connection's transport and aiohttp's handler of it: large bodies go from TLS straight into the caller's memory.

Made by ``connections.Listener`` for each connection; ``DirectBody`` is used by handlers that take in large bodies of known length. On
aiohttp's own way a body is copied by TLS layer, parser, stream and caller; measured, that makes receiving it over TLS cost 1.6 times as
much. Here the handler gets everything but the rest of such a body: what of it came with the head is taken from
aiohttp's stream, the rest is decrypted into the caller's buffer, and then the connection goes on with a parser as new.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import web
from aiohttp.http import HttpRequestParser

SCRATCH_BYTES: Final = 256 * 1024
"""What uvloop takes from a socket at a time."""


class Reception(asyncio.BufferedProtocol):
    """The protocol that the transport knows. ``scratch`` may be shared by all connections of a loop: it is in use within one call only."""

    __slots__ = ("_body", "_handler", "_scratch")

    def __init__(self, handler: web.RequestHandler, scratch: memoryview) -> None:
        self._handler = handler
        self._scratch = scratch
        self._body: DirectBody | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._handler.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the transport's call
        return self._scratch if self._body is None else self._body.room(self._scratch)

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            self._handler.data_received(bytes(self._scratch[:nbytes]))
        else:
            self._body.arrived(nbytes, self._scratch)

    def eof_received(self) -> None:
        self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.cut()
        self._handler.connection_lost(exc)

    def divert(self, body: DirectBody) -> None:
        """What arrives from now on is ``body``'s, until ``restore``."""
        self._body = body

    def restore(self) -> None:
        """The body is over: the next byte begins a request. Its parser still waits for the body, so another takes its place."""
        self._body = None
        handler = self._handler
        handler._parser = HttpRequestParser(
            handler,
            handler._loop,
            handler._read_bufsize,
            max_line_size=handler.max_line_size,
            max_field_size=handler.max_field_size,
            max_headers=handler.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=handler._max_msg_queue_size,
        )


class DirectBody:
    """The body of a request, ``length`` bytes as its head says, of which nothing has been read. Use as a context manager.

    Leaving it before the end lets the rest of the body come and go unseen.
    """

    def __init__(self, request: web.BaseRequest, length: int) -> None:
        reception = getattr(request.protocol, "reception", None)
        if not isinstance(reception, Reception):
            raise TypeError("cannot take a body directly from a connection that connections.Listener did not accept")
        self._reception = reception
        self._handler = request.protocol
        self._content: aiohttp.StreamReader = request.content
        self._left = length
        """What has neither been handed out nor arrived here."""
        self._loop = asyncio.get_running_loop()
        self._diverted = False
        self._given_up = False
        self._target: memoryview | None = None
        self._filled = 0
        self._early = bytearray()
        self._moved_at_s = 0.0
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._give_up()

    @property
    def filled_bytes(self) -> int:
        """How much of the present buffer, or of the last one, has arrived."""
        return self._filled

    async def fill(self, buffer: memoryview, standstill_s: float) -> None:
        """Fill ``buffer``, which is no longer than what is left of the body. On raise or cancel the rest of the body is given up.

        :raises TimeoutError: nothing came for ``standstill_s``.
        :raises ConnectionError: (or what aiohttp's stream raises) the connection ended.
        """
        try:
            self._take_what_is_here(buffer)
            if self._filled < buffer.nbytes:
                await self._rest(buffer, standstill_s)
        except BaseException:
            self._give_up()
            raise

    def _take_what_is_here(self, buffer: memoryview) -> None:
        taken = min(len(self._early), buffer.nbytes)
        buffer[:taken] = self._early[:taken]
        del self._early[:taken]
        self._filled = taken
        while not self._diverted and self._filled < buffer.nbytes:
            # Each read may let aiohttp's parser go on with what it has: only when nothing more comes is there nothing left in it.
            piece = self._content.read_nowait(buffer.nbytes - self._filled)
            if not piece:
                return
            buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            self._left -= len(piece)

    async def _rest(self, buffer: memoryview, standstill_s: float) -> None:
        if self._handler.transport is None:
            raise ConnectionResetError("the connection is closed")
        if self._content.is_eof() or buffer.nbytes - self._filled > self._left:
            raise ValueError("more was asked for than the body has")
        self._target = buffer
        self._waiter = self._loop.create_future()
        self._moved_at_s = self._loop.time()
        if not self._diverted:
            self._diverted = True
            self._reception.divert(self)
        self._handler._resume_transport_reading()
        while not self._waiter.done():
            patience_s = self._moved_at_s + standstill_s - self._loop.time()
            if patience_s <= 0:
                raise TimeoutError
            await asyncio.wait([self._waiter], timeout=patience_s)
        self._waiter.result()

    def _give_up(self) -> None:
        self._target = self._waiter = None
        if self._diverted and self._left and not self._given_up:
            self._handler._resume_transport_reading()
        self._given_up = True

    # -- called by Reception ----------------------------------------------------------------------------------

    def room(self, scratch: memoryview) -> memoryview:
        """Where what arrives goes, never more than the body."""
        return scratch[: self._left] if self._target is None else self._target[self._filled :]

    def arrived(self, count: int, scratch: memoryview) -> None:
        """``count`` bytes are in what ``room`` gave."""
        self._left -= count
        self._moved_at_s = self._loop.time()
        if self._target is not None:
            self._filled += count
            if self._filled == self._target.nbytes:
                self._target = None
                if self._left:
                    self._handler._pause_transport_reading()
                self._wake()
        elif not self._given_up:  # on its way already when reading was paused
            self._early += scratch[:count]
        if not self._left:
            self._reception.restore()
            self._content.feed_eof()

    def cut(self) -> None:
        """The connection is lost."""
        self._given_up = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionResetError("the connection was cut off in the middle of a body"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
