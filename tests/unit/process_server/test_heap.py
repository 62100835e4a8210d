"""Free memory is given back when that is worth it, and only then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from process_server.heap import EVERY_S, MUCH_BYTES, SELDOM_S, HeapKeeper, anonymous_bytes, trim_heap
from tests.harness.process_time import in_virtual_time, virtual_clock

MIB = 2**20


@dataclass
class Process:
    """A process with ``used`` memory and a heap that keeps what is ``free``."""

    used: int = 50 * MIB
    free: int = 0
    quiet: bool = False
    trims: int = 0

    def resident(self) -> int:
        return self.used + self.free

    def trim(self) -> None:
        self.trims += 1
        self.free = 0


@contextlib.asynccontextmanager
async def kept(process: Process) -> AsyncIterator[Process]:
    keeper = HeapKeeper(virtual_clock(), lambda: process.quiet, resident=process.resident, trim=process.trim)
    task = asyncio.create_task(keeper.run())
    yield process
    task.cancel()
    await asyncio.wait([task])


@in_virtual_time
async def test_free_memory_is_given_back_once_it_is_quiet() -> None:
    async with kept(Process(free=30 * MIB)) as process:
        await asyncio.sleep(600)
        assert process.free == 30 * MIB, "while there is work it may be used again"
        process.quiet = True
        await asyncio.sleep(2 * EVERY_S)
        assert process.free == 0


@in_virtual_time
async def test_an_idle_process_is_not_trimmed_at_all() -> None:
    async with kept(Process(quiet=True)) as process:
        await asyncio.sleep(86400)
        assert process.trims == 0


@in_virtual_time
async def test_much_memory_is_given_back_under_load_too() -> None:
    async with kept(Process(used=100 * MIB, free=MUCH_BYTES)) as process:
        await asyncio.sleep(2 * EVERY_S)
        assert process.free == 0


@in_virtual_time
async def test_memory_that_is_in_use_is_walked_seldom_and_freed_at_last() -> None:
    async with kept(Process(used=4 * MUCH_BYTES)) as process:
        await asyncio.sleep(3600)
        assert process.trims <= 3600 / SELDOM_S + 8
        process.used, process.free = MUCH_BYTES, 3 * MUCH_BYTES
        await asyncio.sleep(SELDOM_S + EVERY_S)
        assert process.free == 0


@in_virtual_time
async def test_after_a_trim_that_gave_something_back_the_next_one_comes_soon() -> None:
    async with kept(Process(used=60 * MIB, quiet=True)) as process:
        await asyncio.sleep(3600)
        process.free = 20 * MIB
        async with asyncio.timeout(SELDOM_S + EVERY_S):
            while process.free:
                await asyncio.sleep(0.1)
        process.free = 20 * MIB
        await asyncio.sleep(2 * EVERY_S)
        assert process.free == 0


def test_resident_memory_is_read_from_procfs(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmRSS:\t  9000 kB\nRssAnon:\t    1234 kB\n")
    assert anonymous_bytes(status) == 1234 * 1024
    status.write_text("VmRSS:\t  9000 kB\n")
    assert anonymous_bytes(status) == 0
    assert anonymous_bytes(tmp_path / "none") == 0
    assert anonymous_bytes() > MIB


def test_trimming_this_process_is_harmless() -> None:
    trim_heap()
