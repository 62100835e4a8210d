"""A relay between daemons that cuts, delays, throttles and truncates their connections, and answers for a store that is in trouble.

Called by tests/fault. It runs in a thread of its own, on loopback. Without certificates it passes on bytes that it cannot read, so any
link can be led through it; with the store's own certificate it can answer requests itself: 500, 503, or never. The trouble may be changed
at any time: connections that are open then are closed, and what is dialled anew has the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_PIECE_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Trouble:
    """``status``: answer every request with it. ``silent``: take everything, say nothing. ``refuses``: hang up on everyone at once.
    ``delay_s``: of every piece, both ways. ``bytes_per_s``: both ways. ``answer_bytes``: of each connection's answers only so many arrive.
    """

    status: int = 0
    silent: bool = False
    refuses: bool = False
    delay_s: float = 0.0
    bytes_per_s: int = 0
    answer_bytes: int = 0


NO_TROUBLE: Final = Trouble()


class FaultyRelay:
    """Made by ``faulty_relay``. ``troubled``: how many connections had a trouble."""

    def __init__(self, port: int, target_port: int, certificates: tuple[ssl.SSLContext, ssl.SSLContext] | None) -> None:
        self.troubled = 0
        self._port = port
        self._target_port = target_port
        self._accepting = None if certificates is None else certificates[0]
        self._dialling = None if certificates is None else certificates[1]
        self._trouble = NO_TROUBLE
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="faulty-relay")

    def begin(self, trouble: Trouble) -> None:
        """Close what is open; from now on every connection has ``trouble``."""
        done = threading.Event()

        def change() -> None:
            self._trouble, self.troubled = trouble, 0
            for task in self._open:
                task.cancel()
            done.set()

        self._loop.call_soon_threadsafe(change)
        done.wait()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10.0)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", self._port, ssl=self._accepting)
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                await self._carry(reader, writer, self._trouble)
        except asyncio.CancelledError:
            pass  # the trouble has changed: whoever was connected dials anew
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trouble: Trouble) -> None:
        if trouble is not NO_TROUBLE:
            self.troubled += 1
        if trouble.refuses:
            return
        if trouble.silent:
            while await reader.read(_PIECE_BYTES):
                pass
        elif trouble.status:
            await self._answer(reader, writer, trouble.status)
        else:
            await self._relay(reader, writer, trouble)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert len(head) <= _MAX_HEAD_BYTES
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if b"100-continue" not in head.lower():
            await reader.readexactly(length)
        writer.write(f"HTTP/1.1 {status} Trouble\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trouble: Trouble) -> None:
        name = None if self._dialling is None else "127.0.0.1"
        onward_reader, onward_writer = await asyncio.open_connection(
            "127.0.0.1", self._target_port, ssl=self._dialling, server_hostname=name
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                forth = tasks.create_task(self._pump(reader, onward_writer, trouble, 0))
                back = tasks.create_task(self._pump(onward_reader, writer, trouble, trouble.answer_bytes))
                await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
                forth.cancel()
                back.cancel()
        finally:
            onward_writer.transport.abort()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trouble: Trouble, at_most: int) -> None:
        left = at_most or -1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while left and (piece := await reader.read(_PIECE_BYTES)):
                if trouble.delay_s:
                    await asyncio.sleep(trouble.delay_s)
                if trouble.bytes_per_s:
                    await asyncio.sleep(len(piece) / trouble.bytes_per_s)
                if left > 0:
                    piece = piece[:left]
                    left -= len(piece)
                writer.write(piece)
                await writer.drain()


@contextlib.contextmanager
def faulty_relay(
    port: int, target_port: int, certificates: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
) -> Iterator[FaultyRelay]:
    """Listen on ``port`` and lead to ``target_port``.

    :param certificates: for accepting and for dialling; None: whatever is spoken is passed on as it is.
    """
    relay = FaultyRelay(port, target_port, certificates)
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()
