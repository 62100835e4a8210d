"""What lies in a spool, read without changing it: for the operator, also beside a running process server.

Called by ``cli`` (``spool-status``). Reads records' headers; beside a running server the figures are of some moment during the scan.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from process_server.spool.files import SpoolFiles
from process_server.spool.record import RecordHeader, RecordKind
from process_server.spool.recovery import Damage, RecoveredMarks, Recovery
from replication.identifiers import EpochKey, GenerationKey


@dataclass(slots=True)
class GenerationInventory:
    """What waits of one generation."""

    machine: str
    segments: int = 0
    segment_bytes: int = 0
    manifests: int = 0
    epochs: set[EpochKey] = field(default_factory=set)


@dataclass(slots=True)
class SpoolInventory:
    """What waits in the spool; ``damages`` as recovery would report them."""

    files: int = 0
    used_bytes: int = 0
    waiting_segments: int = 0
    waiting_bytes: int = 0
    waiting_manifests: int = 0
    oldest_accepted_unix_ns: int | None = None
    generations: dict[GenerationKey, GenerationInventory] = field(default_factory=dict)
    damages: list[Damage] = field(default_factory=list)

    @property
    def oldest_age_s(self) -> float | None:
        if self.oldest_accepted_unix_ns is None:
            return None
        return max(0.0, (time.time_ns() - self.oldest_accepted_unix_ns) / 1e9)


def take_inventory(files: SpoolFiles) -> SpoolInventory:
    """Scan the spool; raises ``OSError`` if it cannot be read."""
    recovery = Recovery(files, repair=False)
    waiting: dict[int, RecordHeader] = {}
    for item in recovery.records():
        if isinstance(item, RecoveredMarks):
            for number in item.numbers:
                waiting.pop(number, None)
        else:
            waiting[item.header.number] = item.header
    found = SpoolInventory(
        files=len(recovery.report.files),
        used_bytes=sum(entry.end_bytes for entry in recovery.report.files),
        damages=recovery.report.damages,
    )
    for header in waiting.values():
        _count(found, header)
    return found


def _count(found: SpoolInventory, header: RecordHeader) -> None:
    key = header.epoch_key
    generation = found.generations.setdefault(key.generation_key, GenerationInventory(header.machine))
    generation.epochs.add(key)
    oldest = found.oldest_accepted_unix_ns
    found.oldest_accepted_unix_ns = header.accepted_unix_ns if oldest is None else min(oldest, header.accepted_unix_ns)
    if header.kind is RecordKind.SEGMENT:
        generation.segments += 1
        generation.segment_bytes += header.payload_bytes
        found.waiting_segments += 1
        found.waiting_bytes += header.payload_bytes
    else:
        generation.manifests += 1
        found.waiting_manifests += 1
