"""Very large disks: memory that is bounded, and work that goes with what changed; nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.harness.huge_disk_probe
from mobility_agent.protection.journal_codec import count_runs
from replication.dirty_bitmap import DirtyBitmap, Geometry

TIB = 2**40
MIB = 2**20
ROOT = Path(tests.harness.huge_disk_probe.__file__).parents[2]


def test_the_agent_s_own_memory_stays_bounded_for_a_disk_of_8_tib(tmp_path: Path) -> None:
    """RssAnon at most 160 MiB: the digest table is a mapped file, buffers are shared mappings, bitmaps take 2 MiB a TiB."""
    command = [sys.executable, "-m", "tests.harness.huge_disk_probe", str(tmp_path), "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert max(steps.values()) <= 160 * MIB, {step: size // MIB for step, size in steps.items()}


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that were unpacked to bits, eight times as many as they are."""
    counted: list[int] = []
    real = np.unpackbits

    def unpackbits(array: Any, **named: Any) -> Any:
        counted.append(array.nbytes)
        return real(array, **named)

    monkeypatch.setattr(np, "unpackbits", unpackbits)
    return counted


def test_few_dirty_granules_of_a_huge_disk_cost_few_granules(unpacked: list[int]) -> None:
    """Also under a freeze, where it counts: 64 TiB have 2,048 slices, and unpacking one takes milliseconds."""
    bitmap = DirtyBitmap(Geometry(64 * TIB).granules)
    chosen = sorted({int(granule) for granule in np.random.default_rng(3).integers(0, bitmap.granules - 1, 500)})
    for granule in chosen:
        bitmap.mark(granule, 1)
    assert bitmap.runs().indices().tolist() == chosen
    assert sum(unpacked) <= 8 * len(chosen)
    assert count_runs(bitmap.words) == len(bitmap.runs())


@pytest.mark.parametrize("offset", range(0, 64, 9))
def test_sparse_runs_that_touch_at_words_and_slices_are_one(offset: int) -> None:
    bitmap = DirtyBitmap(3 * 8192 * 64)
    starts = [0, 64 * 100 - 32 + offset, 8192 * 64 - 64 + offset, 2 * 8192 * 64 - 1, bitmap.granules - 70]
    for start in starts:
        bitmap.mark(start, 70)
    assert [start for start, _ in bitmap.runs()] == starts
    assert {count for _, count in bitmap.runs()} == {70}
    assert list(bitmap.runs(75, starts[1])) == [(starts[1], 70), (starts[2], 5)]
