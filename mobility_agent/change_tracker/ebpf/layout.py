"""Where things lie in the three pinned maps, shared by the programs (kernel) and the tracker (user space). Pure.

``bitmap``  array of u64 words, memory-mapped:
            half 0 | half 1 | suspects | carried
            Each half: fine words (bit = granule), then coarse words (bit = one fine word, all of whose granules are
            dirty). Programs write only the active half; the tracker writes only the other parts. The tracker cannot set
            bits atomically, so marks from user space never go to the active half.
            ``suspects``: all that was harvested since the kernel's and the programs' accounts last agreed at rest.
            ``carried``: belongs to the next harvest (marks from user space, harvests not committed, lost marks).
``counters`` array of one ``CpuCounters`` per possible CPU, memory-mapped, written by programs only.
``control`` one page, memory-mapped: word 0, the index of the active half's first word, is read by the programs; the
            rest (``ControlRecord``) is the tracker's memory across restarts.

Change LAYOUT_VERSION with any of this: pins of another version are discarded, at the price of a resync.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

from replication.dirty_bitmap import Geometry

LAYOUT_VERSION: Final = 1
CONTROL_BYTES: Final = 4096
WORD_BITS: Final = 64
WORD_BYTES: Final = 8
_PAGE_WORDS: Final = 512


@dataclass(frozen=True, slots=True)
class BitmapLayout:
    """Word indices inside the map ``bitmap``; every part starts on a page."""

    geometry: Geometry

    @property
    def fine_words(self) -> int:
        return -(-self.geometry.granules // WORD_BITS)

    @property
    def coarse_words(self) -> int:
        return -(-self.fine_words // WORD_BITS)

    @property
    def half_words(self) -> int:
        return _whole_pages(self.fine_words + self.coarse_words)

    @property
    def suspects_at(self) -> int:
        return 2 * self.half_words

    @property
    def carried_at(self) -> int:
        return self.suspects_at + _whole_pages(self.fine_words)

    @property
    def total_words(self) -> int:
        return self.carried_at + _whole_pages(self.fine_words)


def _whole_pages(words: int) -> int:
    return -(-words // _PAGE_WORDS) * _PAGE_WORDS


class CpuCounters(ctypes.Structure):
    """Cumulative since the programs were attached. Sectors of 512 bytes; group 0: writes, 1: discards.

    The groups are those of /sys/block/X/stat (``op_stat_group``): REQ_OP_DISCARD is a discard; write, write zeroes,
    secure erase and zone append are writes.
    """

    _fields_ = (
        ("runs", ctypes.c_uint64),  # program runs for writes and discards of this disk that carry data
        ("issued", ctypes.c_uint64 * 2),
        ("completed", ctypes.c_uint64 * 2),
        ("requeued", ctypes.c_uint64 * 2),  # issued and taken back: will be issued again
        ("passthrough", ctypes.c_uint64),  # commands whose effect on the medium is unknown (SG_IO, NVMe ioctl)
        ("beyond_end", ctypes.c_uint64),  # requests past the size that the map was made for
        ("overflow", ctypes.c_uint64),  # requests that the program could not mark whole
        ("reserved", ctypes.c_uint64 * 6),
    )


COUNTER_WORDS: Final = ctypes.sizeof(CpuCounters) // WORD_BYTES


class ControlRecord(ctypes.Structure):
    """The page ``control``. Each field is written by one 8-byte store, so it is old or new, never torn."""

    _fields_ = (
        ("active_word", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 63),
        ("layout_version", ctypes.c_uint64),
        ("device_number", ctypes.c_uint64),  # major << 20 | minor, as the kernel's dev_t
        ("incarnation", ctypes.c_uint64),  # see device.incarnation
        ("size_bytes", ctypes.c_uint64),
        ("granularity_bytes", ctypes.c_uint64),
        ("base_accounted", ctypes.c_uint64 * 2),  # the kernel's sectors when counting began
        ("base_issued", ctypes.c_int64 * 2),  # net of requeues: negative if what was issued before is requeued
        ("base_completed", ctypes.c_uint64 * 2),
        ("forgiven_completed", ctypes.c_int64 * 2),  # deficits that were dealt with
        ("forgiven_issued", ctypes.c_int64 * 2),
        ("window_flags", ctypes.c_uint64),  # reconciliation.Window
        ("seen_missed_runs", ctypes.c_uint64),
        ("seen_overflow", ctypes.c_uint64),
        ("seen_passthrough", ctypes.c_uint64),
        ("resync_cause", ctypes.c_uint64),  # reconciliation.Cause: pending until committed; 0: none
        ("lost_completed", ctypes.c_uint64),  # sectors, for metrics
        ("lost_issued", ctypes.c_uint64),
        ("statistics_was_off", ctypes.c_uint64),  # 1: queue/iostats was 0 before; restored by discard
        ("journal_serial", ctypes.c_uint64),  # the newest that a commit was told; 0 in pins of before it was kept
    )
