"""The disks that are replicated in the bench: incompressible, realistic, four fifths holes; made once per run.

Called by ``__main__``. Needs root for the realistic one (a file system made and filled on a loop device).
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Final

from deploy.demo.lab_server import LabDisk

MIB: Final = 2**20
DISK_BYTES: Final = 2048 * MIB
GRANULE_BYTES: Final = 64 * 1024
NAMES: Final = ("incompressible", "realistic", "holes")
_PIECE_BYTES: Final = 4 * MIB


def make_images(directory: Path, names: tuple[str, ...], size_bytes: int = DISK_BYTES) -> dict[str, Path]:
    """Name → image. The one with holes has the realistic one's content in every fifth piece."""
    directory.mkdir(parents=True, exist_ok=True)
    made = {name: directory / f"{name}.img" for name in names}
    if "incompressible" in made:
        with made["incompressible"].open("wb") as image:
            for _ in range(size_bytes // _PIECE_BYTES):
                image.write(os.urandom(_PIECE_BYTES))
    if {"realistic", "holes"} & set(names):
        realistic = made.get("realistic", directory / "realistic.img")
        _make_realistic(realistic, directory / "filling", size_bytes)
        if "holes" in made:
            _keep_every_fifth_piece(realistic, made["holes"], size_bytes)
    os.sync()
    return made


def _make_realistic(image: Path, work: Path, size_bytes: int) -> None:
    """An ext4 file system with as many of the machine's files as fit into nine tenths."""
    disk = LabDisk(work, size_bytes, fill_bytes=size_bytes * 9 // 10)
    try:
        disk.create()
        try:
            disk.fill(lambda _done, _total: None)
        except OSError as error:
            if error.errno != 28:  # full enough
                raise
    finally:
        disk.destroy()
    shutil.move(disk.image, image)


def _keep_every_fifth_piece(source: Path, target: Path, size_bytes: int) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.truncate(size_bytes)
        for piece in range(0, size_bytes // _PIECE_BYTES, 5):
            reading.seek(piece * _PIECE_BYTES)
            writing.seek(piece * _PIECE_BYTES)
            writing.write(reading.read(_PIECE_BYTES))


class Delta:
    """Random granules overwritten with random bytes; ``undo`` brings the old ones back, so that every round begins alike."""

    def __init__(self, size_bytes: int, changed_bytes: int, seed: int) -> None:
        rng = random.Random(seed)
        self._granules = sorted(rng.sample(range(size_bytes // GRANULE_BYTES), changed_bytes // GRANULE_BYTES))
        self._old: list[bytes] = []

    def apply(self, disk: Path) -> None:
        with disk.open("r+b", buffering=0) as file:
            for granule in self._granules:
                file.seek(granule * GRANULE_BYTES)
                self._old.append(file.read(GRANULE_BYTES))
                file.seek(granule * GRANULE_BYTES)
                file.write(os.urandom(GRANULE_BYTES))
            os.fsync(file.fileno())

    def undo(self, disk: Path) -> None:
        with disk.open("r+b", buffering=0) as file:
            for granule, old in zip(self._granules, self._old, strict=False):
                file.seek(granule * GRANULE_BYTES)
                file.write(old)
            os.fsync(file.fileno())
        self._old.clear()
