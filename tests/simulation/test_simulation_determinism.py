"""The same seed is the same story, whatever the process: only so can a failure be replayed.

Called by pytest. Each story is told by processes of their own, under different hash seeds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest

from tests.harness.source_tree import REPOSITORY

_TELL: Final = """
from tests.simulation.simulation import simulate
for seed in ({first}, {first} + 1, {first} + 2):
    print(simulate(seed))
"""


def told(first: int, hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    process = subprocess.run(
        [sys.executable, "-c", _TELL.format(first=first)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("first", [0, 1000])
def test_same_seed_has_the_same_trace_in_every_process(first: int) -> None:
    assert told(first, "0") == told(first, "4711")
