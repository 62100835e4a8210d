"""Free memory is given back when that is worth it, and only then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from process_server.heap import MUCH_BYTES, HeapKeeper, anonymous_bytes, trim_heap
from replication.clock import Clock

MIB = 2**20


@dataclass
class Process:
    """A process with ``used`` memory and a heap that keeps what is ``free``."""

    used: int = 40 * MIB
    free: int = 0
    quiet: bool = False
    trims: int = 0

    def resident(self) -> int:
        return self.used + self.free

    def trim(self) -> None:
        self.trims += 1
        self.free = 0

    def keeper(self) -> HeapKeeper:
        keeper = HeapKeeper(Clock(), lambda: self.quiet, resident=self.resident, trim=self.trim)
        keeper.look()
        return keeper


def test_free_memory_is_given_back_once_it_is_quiet() -> None:
    process = Process()
    keeper = process.keeper()
    process.free = 30 * MIB
    keeper.look()
    assert process.free == 30 * MIB, "while there is work it may be used again"
    process.quiet = True
    keeper.look()
    assert process.free == 0


def test_a_quiet_process_is_not_trimmed_again_and_again() -> None:
    process = Process(quiet=True)
    keeper = process.keeper()
    trims = process.trims
    for _ in range(100):
        process.quiet = not process.quiet
        keeper.look()
    assert process.trims == trims


def test_much_memory_is_given_back_under_load_too() -> None:
    process = Process(used=100 * MIB)
    keeper = process.keeper()
    process.free = MUCH_BYTES - 90 * MIB
    keeper.look()
    assert process.free == 0


def test_much_memory_that_is_in_use_is_not_walked_again_and_again() -> None:
    process = Process(used=4 * MUCH_BYTES)
    keeper = process.keeper()
    assert process.trims == 1
    for _ in range(100):
        keeper.look()
    assert process.trims == 1
    process.used -= MUCH_BYTES
    keeper.look()
    process.free = 20 * MIB
    keeper.look()
    assert (process.trims, process.free) == (2, 0), "growth counts from the least since then"


async def test_it_looks_until_it_is_cancelled() -> None:
    process, naps = Process(quiet=True, free=50 * MIB), []

    class Over(Exception):
        pass

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) > 3:
            raise Over

    keeper = HeapKeeper(Clock(sleep=sleep), lambda: process.quiet, resident=process.resident, trim=process.trim)
    with pytest.raises(Over):
        await keeper.run()
    assert process.free == 0
    assert len(set(naps)) == 1


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
