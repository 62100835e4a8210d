"""A server's disk and a site beside it, for tests that need no other ones; a module's own fixtures of these names come first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from deploy.demo.lab_server import LabDisk
from tests.harness.forked_site import forked_site
from tests.harness.running_site import RunningSite

DISK_BYTES: Final = 64 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LabDisk]:
    """Attached, with a mounted file system."""
    made = LabDisk(tmp_path / "lab", DISK_BYTES, 0)
    try:
        made.create()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def site(tmp_path: Path, disk: LabDisk) -> Iterator[RunningSite]:
    """Running, and stopped before its disk goes; nothing is protected yet."""
    with forked_site(tmp_path) as running:
        yield running
