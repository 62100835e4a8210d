"""The demo's road as a test, on smaller disks: every check of the demo, with four real daemons, kills included."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from deploy.demo.road import Road
from deploy.demo.source import FileSystemSource
from tests.harness.source_tree import REPOSITORY

MIB = 2**20


@pytest.mark.timeout(600)
@pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4")
def test_a_live_file_system_is_replicated_killed_drilled_and_cut_over_bit_identical(tmp_path: Path) -> None:
    source = FileSystemSource(tmp_path / "lab-server", disk_bytes=512 * MIB, fill_bytes=160 * MIB)
    output = io.StringIO()
    road = Road(tmp_path, source, Console(file=output, width=160), keep=False)
    try:
        road.walk()
    finally:
        road.end(failed=False)
        print(output.getvalue())
    assert "Every check held." in output.getvalue()


@pytest.mark.heavy("the demo once more, without root")
@pytest.mark.timeout(600)
@pytest.mark.requires("unshare")
def test_the_demo_without_root_migrates_a_plain_file(tmp_path: Path) -> None:
    """As another user would run it: in a user namespace where this one is not root."""
    done = subprocess.run(
        ["unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-m", "deploy.demo"],
        cwd=REPOSITORY,
        env={**os.environ, "DEMO_DIR": str(tmp_path / "demo")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Without root" in done.stdout
    assert "Every check held." in done.stdout
