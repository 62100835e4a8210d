"""The smallest agent: harvests, reads the harvested granules O_DIRECT, writes them to a replica file, syncs, commits.

Called by the tracker's tests in their own process, or as ``python -m tests.harness.replicating_agent DEVICE REPLICA PINS``
to be killed: it prints a line per harvest (continued, doubt, granules) and runs until then. In the end the replica must be
the disk, whatever was killed when: a lost mark, or one harvested in the wrong order, leaves a granule that differs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind, Harvest
from replication.extents import split

_BUFFER_BYTES = 4 * 2**20


@dataclass
class Replicator:
    tracker: ChangeTracker
    reader: DiskReader
    replica: int
    pool: BufferPool = field(default_factory=lambda: BufferPool(1, _BUFFER_BYTES))

    @classmethod
    def open(cls, tracker: ChangeTracker, device: Path, replica: Path) -> Replicator:
        reader = DiskReader(device)
        descriptor = os.open(replica, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, reader.size_bytes)
        return cls(tracker, reader, descriptor)

    def replicate_once(self) -> Harvest:
        harvest = self.tracker.begin_harvest()
        if harvest.doubt.kind is DoubtKind.RESYNC:
            harvest.bitmap.mark_all()
        with self.pool.acquire(0) as buffer:
            for extent in split(harvest.bitmap.runs().extents(self.tracker.geometry), _BUFFER_BYTES):
                view = buffer.view[: extent.length_bytes]
                self.reader.read_into(view, extent)
                os.pwrite(self.replica, view, extent.offset_bytes)
        os.fdatasync(self.replica)
        self.tracker.commit_harvest()
        return harvest

    def replicate_until_clean(self, at_most: int = 200) -> None:
        for _ in range(at_most):
            if not self.replicate_once().bitmap.any() and self.tracker.is_idle():
                return
        raise AssertionError(f"still dirty after {at_most} harvests: {self.tracker.status()}")

    def close(self) -> None:
        self.tracker.close()
        self.reader.close()
        os.close(self.replica)


def main() -> None:
    device, replica, pins = (Path(argument) for argument in sys.argv[1:4])
    tracker = EbpfTracker.attach(device, granularity_bytes=4096, pin_directory=pins)
    replicator = Replicator.open(tracker, device, replica)
    while True:
        harvest = replicator.replicate_once()
        print(f"{tracker.continued} {harvest.doubt.kind} {harvest.bitmap.count()}", flush=True)


if __name__ == "__main__":
    main()
