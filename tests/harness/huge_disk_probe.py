"""What the agent keeps in memory for one disk of so many TiB, step by step: run as a program of its own, prints the peak of RssAnon.

Called by ``tests/unit/mobility_agent/protection/test_huge_disks.py``. Everything is real but the disk's content and the network: journal,
digest table (a sparse file), ledger, buffers for shipping, memory for the last round.
"""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path

import numpy as np

import mobility_agent.daemon  # noqa: F401  the agent's own code is part of its memory
from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.config import DEFAULT_BATCH_BYTES, DEFAULT_BUFFERS, DEFAULT_LAST_ROUND_BYTES
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.ledger_opening import open_ledger
from mobility_agent.shipping.digest_table import DigestTable
from replication.control_plane import GenerationGrant
from replication.dirty_bitmap import DirtyBitmap, Geometry
from replication.epoch_manifest import manifest_hash
from replication.identifiers import DiskId, EpochId

DISK = DiskId("22222222-2222-4222-8222-222222222222")
EPOCH_GRANULES = 4096
SCATTERED = 100_000


def rss_anon_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Probe:
    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.geometry = Geometry(size_bytes)
        self.directory = directory
        self.steps: dict[str, int] = {}
        self._random = np.random.default_rng(5)

    def note(self, step: str) -> None:
        self.steps[step] = rss_anon_bytes()

    def run(self) -> None:
        self.note("program")
        pool = BufferPool(DEFAULT_BUFFERS, DEFAULT_BATCH_BYTES)
        buffers = [pool.acquire(0) for _ in range(DEFAULT_BUFFERS)]
        for buffer in buffers:
            buffer.view[:] = bytes(len(buffer.view))
        last_round = mmap.mmap(-1, DEFAULT_LAST_ROUND_BYTES)
        last_round.write(bytes(DEFAULT_LAST_ROUND_BYTES))
        self.note("buffers")
        self._replicate()

    def _replicate(self) -> None:
        journal = EpochJournal(self.directory)
        table = DigestTable(self.directory / "digests", DISK, self.geometry, bytes(32))
        ledger = open_ledger(
            journal, table, self._grant(), self.geometry, is_new=True, distrust_digests=False, serial=0
        )
        scratch = DirtyBitmap(self.geometry.granules)
        scratch.clear_all()
        self.note("opened")
        for _ in range(3):
            scratch.clear_all()
            scratch.words[self._random.integers(0, len(scratch.words), SCATTERED)] |= np.uint64(1 << 17)
            ledger.absorb(scratch)
            epoch = ledger.cut(limit_granules=EPOCH_GRANULES, harvest_time_ns=1)
            assert epoch is not None
            manifest = b"manifest %d" % epoch.number
            fixed = ledger.seal(epoch.number, manifest).sealed
            assert fixed is not None
            digests = np.ones((epoch.granules.granule_count, 16), dtype=np.uint8)
            journal.save_digests(epoch.number, fixed, epoch.granules.indices(), digests)
            journal.save(ledger)
            self.note("sealed")
            known = journal.load_digests(epoch.number, fixed)
            assert known is not None
            table.apply(epoch.number, *known)
            ledger.confirm(EpochId(epoch.number), manifest_hash(manifest), 0)
            journal.save(ledger)
            self.note("confirmed")
        table.changed_in_hole(0, 2**21)
        self.note("compared")
        ledger.pending.words[:] = np.uint64(0x5555555555555555)
        journal.save(ledger)
        self.note("fragmented")
        loaded = journal.load()
        assert loaded is not None
        assert loaded.pending == ledger.pending
        self.note("loaded beside it")

    def _grant(self) -> GenerationGrant:
        return GenerationGrant(
            disk=DISK,
            item="11111111-1111-4111-8111-111111111111",
            generation=1,
            size_bytes=self.geometry.size_bytes,
            granularity_bytes=self.geometry.granularity_bytes,
            base=None,
            manifest_key="0" * 64,
            digest_key="0" * 64,
            writer_public_key="key",
        )


if __name__ == "__main__":
    probe = Probe(Path(sys.argv[1]), int(sys.argv[2]) * 2**40)
    probe.run()
    sys.stdout.write(json.dumps(probe.steps))
