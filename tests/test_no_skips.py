"""With ``BLOCKFERRY_NO_SKIPS=1`` (CI) a skip fails, by whatever way a test says it; what is withheld from root itself is excused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.requirements import WITHHELD
from tests.harness.source_tree import REPOSITORY

SKIPPING = f"""
import pytest

@pytest.fixture
def lacking():
    pytest.skip("no fixture")

def test_by_fixture(lacking): pass
def test_by_call(): pytest.skip("no program")
@pytest.mark.skipif(True, reason="no reason")
def test_by_mark(): pass
@pytest.mark.requires("no-such-program-anywhere")
def test_by_requirement(): pass
@pytest.mark.xfail(strict=True, reason="known")
def test_expected_failure(): assert False
def test_withheld(): pytest.skip("{WITHHELD}a capability")
def test_passes(): pass
"""


@pytest.mark.parametrize(
    ("no_skips", "outcome"),
    [("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 3 errors"), ("", "1 passed, 5 skipped, 1 xfailed")],
)
def test_skips_fail_where_nothing_may_be_lacking(tmp_path: Path, no_skips: str, outcome: str) -> None:
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-c", str(REPOSITORY / "pyproject.toml")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            f"--basetemp={tmp_path / 'base'}",
            str(tmp_path / "test_skipping.py"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "BLOCKFERRY_NO_SKIPS": no_skips},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f" {outcome} in " in done.stdout, done.stdout + done.stderr
