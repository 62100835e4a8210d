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
from mobility_agent.block_device.standstill import QUIET, FileWatch, write_back
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


def fail_syncs(monkeypatch: pytest.MonkeyPatch, path: Path, *, only_under_a_lease: bool) -> None:
    """The disk below ``path`` takes no sync any more, from now on or from the moment that a lease is granted."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        is_leased = fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path) and (is_leased or not only_under_a_lease):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


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


def test_what_was_written_before_is_on_the_disk_though_no_lease_is_granted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that cannot tell of writes is compared all the same, past the cache: what cannot be synced is told."""
    with path.open("r+b") as writing:  # so that no lease is granted
        writing.write(b"late")
        writing.flush()
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fail_syncs(monkeypatch, path, only_under_a_lease=False)
            with pytest.raises(OSError, match="Input/output"):
                FileWatch(descriptor, path).begin()
        finally:
            os.close(descriptor)


def test_what_the_last_writer_wrote_before_the_lease_is_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He may have come after the first sync and be gone again when the lease is granted."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fail_syncs(monkeypatch, path, only_under_a_lease=True)
        with pytest.raises(OSError, match="Input/output"):
            FileWatch(descriptor, path).begin()
    finally:
        os.close(descriptor)


def test_every_node_of_a_disk_is_written_back_and_a_failure_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition, gone = path.with_name("part.img"), path.with_name("gone.img")
    partition.write_bytes(bytes(512))
    write_back([path, gone, partition])  # a partition that is gone has nothing to write
    fail_syncs(monkeypatch, partition, only_under_a_lease=False)
    with pytest.raises(OSError, match="Input/output"):
        write_back([path, gone, partition])
    with pytest.raises(FileNotFoundError):
        write_back([gone])
