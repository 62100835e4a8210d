"""The demo's own proofs, made with tools that know nothing of the product: compare bytes, check the file system, ask SQLite.

Called by ``road``. Each function raises ``DemoError`` with what did not hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.demo.lab_server import run
from deploy.demo.operator import DemoError
from deploy.demo.workload import RECORD_BYTES, read_ledger

_SLICE_BYTES: Final = 4 * 1024 * 1024


def first_difference(one: Path, other: Path, size_bytes: int) -> int | None:
    """Offset of the first byte in which both differ within ``size_bytes``; None if they are identical there."""
    try:
        sha256_if_identical(one, other, size_bytes)
    except DifferenceError as difference:
        return difference.offset
    return None


class DifferenceError(DemoError):
    """Two disks differ at ``offset``."""

    def __init__(self, one: Path, other: Path, offset: int) -> None:
        super().__init__(f"{other} differs from {one} at byte {offset}")
        self.offset = offset


def sha256_if_identical(one: Path, other: Path, size_bytes: int) -> str:
    """Compare the first ``size_bytes`` of both byte by byte, reading each once; their SHA-256.

    :raises DifferenceError: at the first byte in which they differ, also where one ends.
    """
    digest = hashlib.sha256()
    with one.open("rb") as first, other.open("rb") as second:
        for offset in range(0, size_bytes, _SLICE_BYTES):
            length = min(_SLICE_BYTES, size_bytes - offset)
            a, b = first.read(length), second.read(length)
            if a != b or len(a) != length:
                common = min(len(a), len(b))
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), common)
                raise DifferenceError(one, other, offset + at)
            digest.update(a)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DrillVerdict:
    """``expected`` commits were acknowledged before the cut; all were there, of ``found`` in the copy."""

    expected: int
    found: int


@contextlib.contextmanager
def attached(image: Path) -> Iterator[Path]:
    """A loop device over a copy of a disk; detached in any case."""
    device = Path(run("losetup", "--find", "--show", image))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def check_file_system(device: Path) -> None:
    """``fsck -fn`` finds nothing to repair."""
    done = subprocess.run(["fsck.ext4", "-fn", str(device)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"fsck -fn finds errors (exit code {done.returncode}):\n{done.stdout}{done.stderr}")


def check_database(device: Path, mount_point: Path, ledger: Path, cut_time_ns: int) -> DrillVerdict:
    """The database passes ``integrity_check`` and holds every commit that was acknowledged before the cut."""
    mount_point.mkdir(exist_ok=True)
    run("mount", device, mount_point)
    try:
        connection = sqlite3.connect(mount_point / "ledger.sqlite")
        try:
            verdict = connection.execute("PRAGMA integrity_check").fetchall()
            if verdict != [("ok",)]:
                raise DemoError(f"the database fails integrity_check: {verdict[:3]}")
            total = connection.execute("SELECT SUM(balance) FROM account").fetchone()[0]
            if total != 200_000:
                raise DemoError(f"a transaction is half there: balances add up to {total}, not 200000")
            found = {row[0] for row in connection.execute("SELECT sequence FROM entry")}
        finally:
            connection.close()
    finally:
        run("umount", mount_point)
    return _all_there(ledger, cut_time_ns, found)


def check_records(image: Path, ledger: Path, cut_time_ns: int) -> DrillVerdict:
    """Every ledger record acknowledged before the cut is in its slot of the plain file, or a later one that took its slot."""
    slots = image.stat().st_size // 2 // RECORD_BYTES
    found: set[int] = set()
    with image.open("rb") as file:
        for sequence in read_ledger(ledger):
            file.seek((slots + sequence % slots) * RECORD_BYTES)
            head = file.read(25)
            there = int.from_bytes(head[:8], "big")
            if head[8:] == b"BLOCKFERRY-LEDGER" and there >= sequence and there % slots == sequence % slots:
                found.add(sequence)
    return _all_there(ledger, cut_time_ns, found)


def _all_there(ledger: Path, cut_time_ns: int, found: set[int]) -> DrillVerdict:
    expected = {sequence for sequence, moment_ns in read_ledger(ledger).items() if moment_ns < cut_time_ns}
    missing = expected - found
    if missing:
        raise DemoError(f"{len(missing)} acknowledged commits are missing, the first is {min(missing)}")
    if not expected:
        raise DemoError("no commit was acknowledged before the cut: the drill proves nothing")
    return DrillVerdict(len(expected), len(found))


def allocated_bytes(path: Path) -> int:
    """Bytes that the files below ``path`` take on disk."""
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(directory) / name).stat().st_blocks * 512
    return total
