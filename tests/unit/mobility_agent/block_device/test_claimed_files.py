"""Claims on plain files: a lease of the kernel tells of whoever opens, maps or cuts the file, before a byte is written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from mobility_agent.block_device.claim import Claim
from mobility_agent.block_device.standstill import QUIET
from replication.errors import Conflict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(65536))
    return made


def open_to_write(path: Path) -> None:
    """Without waiting until the lease is given up: the attempt breaks it all the same."""
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def test_readers_do_not_disturb(path: Path) -> None:
    with Claim(path) as claim:
        assert claim.watch() == QUIET
        assert path.read_bytes() == bytes(65536)
        assert claim.look() == QUIET


def test_whoever_opens_it_for_writing_is_told_of(path: Path) -> None:
    with Claim(path) as claim:
        assert claim.watch() == QUIET
        open_to_write(path)
        assert claim.look().state == "written"
        assert "opened for writing" in claim.look().reason


def test_the_writer_gets_it_when_the_claim_is_released(path: Path) -> None:
    with Claim(path) as claim:
        open_to_write(path)
        assert claim.look().state == "written"
    path.write_bytes(b"free")


def test_a_mapping_whose_descriptor_is_closed_keeps_it_from_being_claimed(path: Path) -> None:
    """It can store to the file for ever, and no descriptor shows that."""
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, 4096) as mapped:
        os.close(descriptor)
        mapped[:1] = b"m"
        with pytest.raises(Conflict, match="open for writing, or mapped"):
            Claim(path)
    with Claim(path) as claim:
        assert claim.look() == QUIET


def test_without_a_lease_it_cannot_tell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on network file systems; and without CAP_LEASE on another user's file."""
    real = fcntl.fcntl

    def no_leases(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", no_leases)
    with Claim(path) as claim:
        assert (claim.watch().state, claim.look().state) == ("unknown", "unknown")
        assert "no lease" in claim.watch().reason
        with contextlib.closing(path.open("r+b")):
            pass  # nobody is kept waiting
