"""The set-up where nothing is installed: a debootstrapped Debian 12, its own Python 3.11.2, and what the README names.

Slow: a minute for the root when it is not in the cache, another for the packages, then the demo and some unit tests. Needs root,
debootstrap and the package registries. Deselect it with ``-m 'not fresh'``. ``make fresh FRESH_TARGETS="demo test"`` proves both commands.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness.source_tree import REPOSITORY

SCRIPT = REPOSITORY / "deploy" / "setup" / "prove-fresh-debian.sh"


@pytest.mark.fresh
@pytest.mark.heavy("set-up and demo on a bare Debian")
@pytest.mark.requires("root", "mount", "debootstrap")
@pytest.mark.timeout(900)
def test_clone_on_a_bare_debian_builds_and_walks_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        # Its temporary files have no name that this machine's tests may have: loop devices are everybody's.
        [SCRIPT, "venv", "demo", "unit", "UNIT=tests/unit/replication", "PYTEST_ARGS=--basetemp=/root/pytest"],
        # What is not installed there is skipped there: that is the point.
        env={name: value for name, value in os.environ.items() if name != "BLOCKFERRY_NO_SKIPS"}
        | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "\nPython 3.11.2\n" in done.stdout
    assert "\nvenv: ready\n" in done.stdout
    assert "\nEvery check held.\n" in done.stdout
    assert re.search(r"^=* ?[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout[-5000:]
    assert os.listdir(tmp_path) == []
