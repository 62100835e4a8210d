"""A relay on loopback that notes how much went towards the target when: what an upload limit is held against, from outside.

Called by the bench (``metered_process``: a process of its own, so that it notes the time of the line and not that of a busy event loop)
and by tests that only want sums (``metered_relay``). It cannot read what it carries, so it counts what a meter on the line would: TLS with
its handshakes, heads, bodies and repetitions; not the headers of TCP and IP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from replication.blob_client.settings import BlobEndpointSettings

_PIECE_BYTES: Final = 64 * 1024
_RECORD: Final = struct.Struct("<dq")
_PRIORITY: Final = -10
Note = Callable[[float, int], object]


@dataclass(slots=True)
class Meter:
    """``passed``: (monotonic seconds, bytes), in order. ``records``: where a process notes them; ``load`` reads it."""

    port: int = 0
    passed: list[tuple[float, int]] = field(default_factory=list)
    records: Path | None = None

    def endpoint(self, store: BlobEndpointSettings) -> BlobEndpointSettings:
        """``store`` by way of this relay."""
        return dataclasses.replace(store, url=f"https://127.0.0.1:{self.port}{urlsplit(store.url).path}")

    def load(self) -> None:
        if self.records is not None:
            content = self.records.read_bytes()
            self.passed = list(_RECORD.iter_unpack(content[: len(content) // _RECORD.size * _RECORD.size]))

    def between(self, begin_s: float, end_s: float) -> int:
        return sum(amount for at_s, amount in self.passed if begin_s <= at_s < end_s)


@contextlib.asynccontextmanager
async def metered_relay(store: BlobEndpointSettings) -> AsyncIterator[Meter]:
    """Relay to ``store``, which is on loopback, until the context is left; connections are closed then."""
    meter = Meter()
    async with _relay(urlsplit(store.url).port or 0, lambda at_s, amount: meter.passed.append((at_s, amount))) as port:
        meter.port = port
        yield meter


@contextlib.contextmanager
def metered_process(store: BlobEndpointSettings, records: Path) -> Iterator[Meter]:
    """The same in a process of its own, ahead of others where that is permitted; it ends with the context."""
    command = [sys.executable, "-m", "tests.harness.metered_relay", str(urlsplit(store.url).port), str(records)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Meter(int(process.stdout.readline()), records=records)
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def _relay(target_port: int, note: Note) -> AsyncIterator[int]:
    running: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, metered: bool) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            if metered:
                note(time.monotonic(), len(piece))
            writer.write(piece)
            await writer.drain()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        onward: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError):
                answers, onward = await asyncio.open_connection("127.0.0.1", target_port)
                forth = asyncio.create_task(pump(reader, onward, metered=True))
                back = asyncio.create_task(pump(answers, writer, metered=False))
                await asyncio.wait([forth, back], return_when=asyncio.FIRST_COMPLETED)
                for each in (forth, back):
                    each.cancel()
                await asyncio.gather(forth, back, return_exceptions=True)
        except asyncio.CancelledError:
            pass
        finally:
            running.discard(task)
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _serve(target_port: int, records: Path) -> None:
    """Until standard input ends: with its parent."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    with records.open("ab", buffering=0) as file:
        async with _relay(target_port, lambda at_s, amount: file.write(_RECORD.pack(at_s, amount))) as port:
            sys.stdout.write(f"{port}\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
