"""What passing tests tell of their seeds is printed at the end of the run, also when workers ran them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.source_tree import REPOSITORY

TELLING = """
import pytest

@pytest.mark.parametrize("first", range(0, 200, 50))
def test_of_a_range(first, tell_seeds): tell_seeds("simulation", first, first + 49)
def test_apart(tell_seeds): tell_seeds("simulation", 300, 309)
def test_by_chance(tell_seeds):
    tell_seeds("random kills", 4242)
    assert tell_seeds is None
def test_without(): pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_seeds_of_all_tests_are_told_in_the_summary(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_telling.py").write_text(TELLING)
    options = [
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-c",
        str(REPOSITORY / "pyproject.toml"),
        "-n",
        workers,
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            f"--basetemp={tmp_path / 'base'}",
            str(tmp_path / "test_telling.py"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout.splitlines()
    assert "simulation: 210 seeds, 0 to 199, 300 to 309" in told, done.stdout + done.stderr
    assert "random kills: seed 4242" in told, "a test that fails tells its seed too"
