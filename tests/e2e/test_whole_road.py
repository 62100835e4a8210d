"""The demo's road as a test, on smaller disks: every check of the demo, with four real daemons, kills included."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from deploy.demo.road import Road
from deploy.demo.source import FileSystemSource, PlainFileSource, Source

MIB = 2**20


def _walk(directory: Path, source: Source) -> str:
    output = io.StringIO()
    road = Road(directory, source, Console(file=output, width=160), keep=False)
    try:
        road.walk()
    finally:
        road.end(failed=False)
        print(output.getvalue())
    return output.getvalue()


@pytest.mark.timeout(600)
@pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4")
def test_a_live_file_system_is_replicated_killed_drilled_and_cut_over_bit_identical(tmp_path: Path) -> None:
    source = FileSystemSource(tmp_path / "lab-server", disk_bytes=512 * MIB, fill_bytes=160 * MIB)
    assert "Every check held." in _walk(tmp_path, source)


@pytest.mark.timeout(600)
def test_a_plain_file_is_migrated_with_the_scan_tracker_and_quiesce_hooks(tmp_path: Path) -> None:
    source = PlainFileSource(tmp_path / "lab-server", disk_bytes=96 * MIB, fill_bytes=24 * MIB)
    assert "Every check held." in _walk(tmp_path, source)
