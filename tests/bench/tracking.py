"""What tracking costs the server: fio's random writes with and without the tracker, in alternating pairs; and the harvest of huge disks.

Called by ``__main__``. Needs root, BPF and fio.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Final

from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from replication.dirty_bitmap import DirtyBitmap
from tests.bench.images import MIB
from tests.bench.measure import Figures, median
from tests.harness.loop_disk import loop_disk

_PIN_ROOT: Final = Path("/sys/fs/bpf")
_FIO_S: Final = 6
_DISK_BYTES: Final = 1024 * MIB
_TIB: Final = 2**40
_HARVESTS: Final = 15
_WRITES: Final = 512
_GRANULARITY_BYTES: Final = 64 * 1024


def random_write_iops(directory: Path, seed: int) -> Figures:
    """One pair: 4 KiB random writes at depth 16 for some seconds, without and with the tracker; which comes first alternates."""
    directory.mkdir(parents=True, exist_ok=True)
    backing = directory / "iops.img"
    if not backing.exists():
        backing.write_bytes(bytes(_DISK_BYTES))
    with loop_disk(backing, _DISK_BYTES) as disk:
        _fio(disk.device, seed)  # allocated and warm
        figures = {}
        for tracked in (False, True) if seed % 2 else (True, False):
            if not tracked:
                figures["iops_without"] = _fio(disk.device, seed)
                continue
            tracker = EbpfTracker.attach(
                disk.device,
                granularity_bytes=_GRANULARITY_BYTES,
                pin_directory=_PIN_ROOT / f"blockferry-bench-{disk.name}",
            )
            try:
                figures["iops_with"] = _fio(disk.device, seed)
            finally:
                tracker.discard()
    return figures | {"iops_ratio": figures["iops_with"] / figures["iops_without"]}


def _fio(device: Path, seed: int) -> float:
    options = {
        "filename": device, "rw": "randwrite", "bs": "4k", "direct": 1, "ioengine": "libaio", "iodepth": 16,
        "runtime": _FIO_S, "time_based": 1, "randseed": seed, "name": "iops", "output-format": "json",
    }  # fmt: skip
    command = ["fio", *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["jobs"][0]["write"]["iops"])


def harvest(size_tib: int) -> Figures:
    """Median milliseconds of an empty harvest, and of one after a 4 KiB write in each of 512 places all over the disk.

    The disk is a sparse file in memory: no other file system here holds 64 TiB.
    """
    size_bytes = size_tib * _TIB
    backing = Path(f"/dev/shm/blockferry-bench-{size_tib}.img")
    try:
        with loop_disk(backing, size_bytes) as disk:
            pins = _PIN_ROOT / f"blockferry-bench-{disk.name}"
            tracker = EbpfTracker.attach(disk.device, granularity_bytes=_GRANULARITY_BYTES, pin_directory=pins)
            try:
                bitmap = DirtyBitmap(size_bytes // _GRANULARITY_BYTES)
                empty = [_harvest_ms(tracker, bitmap) for _ in range(_HARVESTS)]
                dirty = []
                for _ in range(_HARVESTS):
                    _write_everywhere(disk.device, size_bytes)
                    dirty.append(_harvest_ms(tracker, bitmap))
            finally:
                tracker.discard()
    finally:
        backing.unlink(missing_ok=True)
    name = f"harvest_{size_tib}_tib"
    return {f"{name}_empty_ms": median(empty), f"{name}_dirty_ms": median(dirty)}


def _write_everywhere(device: Path, size_bytes: int) -> None:
    step = size_bytes // _WRITES // 4096 * 4096
    with device.open("r+b", buffering=0) as file:
        for write in range(_WRITES):
            file.seek(write * step)
            file.write(b"x" * 4096)
        os.fsync(file.fileno())


def _harvest_ms(tracker: EbpfTracker, bitmap: DirtyBitmap) -> float:
    started_s = time.perf_counter()
    tracker.begin_harvest(bitmap)
    elapsed_ms = (time.perf_counter() - started_s) * 1e3
    tracker.commit_harvest()
    return elapsed_ms
