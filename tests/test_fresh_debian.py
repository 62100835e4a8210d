"""The set-up where nothing is installed: a debootstrapped Debian 12, its own Python 3.11.2, and what the README names.

Slow: a minute for the root when it is not in the cache, another for the packages, then the unit tests. Needs root, debootstrap and the
package registries. Deselect it with ``-m 'not fresh'``.
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
@pytest.mark.requires("root", "mount", "debootstrap")
@pytest.mark.timeout(900)
def test_clone_on_a_bare_debian_builds_and_passes_its_unit_tests(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, "venv", "unit", "UNIT=tests/unit"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "\nPython 3.11.2\n" in done.stdout
    assert "\nvenv: ready\n" in done.stdout
    assert re.search(r"^=* ?[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout[-5000:]
    assert os.listdir(tmp_path) == []
