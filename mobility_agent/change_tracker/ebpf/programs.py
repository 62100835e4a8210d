"""The programs that run in the kernel, for one disk, as assembler text. Pure: offsets and geometry in, code out.

Called by ``tracker`` at the first attach. Three ``tp_btf`` programs, each with the function ``mark`` behind it:

``block_rq_issue``     the driver starts a request, merged as it is by then: mark it, count its sectors as issued
``block_rq_complete``  part or all of it has ended, well or not: mark it, count its sectors as completed. The kernel
                       adds the same sectors to its own statistics right after (blk_account_io_completion)
``block_rq_requeue``   a started request goes back to the queue: count what remains of it as requeued

Both marks are needed: a request in flight when the halves are flipped lands after the harvest was read, so its
completion must mark the next half (R3); and now and then a run is lost.

A discard can carry many ranges that do not touch (NVMe, virtio), one a bio, and ``__sector``/``__data_len`` then describe
none of them: so the bios of a discard are walked and marked one by one.

``mark(first, last)`` sets the bits of granules first..last in the active half: the words at both ends bit by bit, and
those between through the coarse words, 64 at a time: 4 GiB, the longest request, are 18 steps at 64 KiB granules.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from mobility_agent.change_tracker.ebpf.assembler import (
    HELPER_CPU_ID,
    HELPER_MAP_LOOKUP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
    Assembler,
)
from mobility_agent.change_tracker.ebpf.btf import FUNCTION_MAIN_ID, FUNCTION_MARK_ID, Btf
from mobility_agent.change_tracker.ebpf.layout import WORD_BITS, BitmapLayout, CpuCounters

_OP_MASK: Final = 0xFF
_OP_DISCARD: Final = 3
_OP_FIRST_DRIVER_COMMAND: Final = 32
"""From here on passthrough: 33 REQ_OP_SCSI_OUT (before 5.14), 35 REQ_OP_DRV_OUT. Odd operations write, even ones do not."""

_SECTOR_SHIFT: Final = 9
_MAX_REQUEST_BYTES: Final = 2**32
_MAX_DISCARD_RANGES: Final = 1024
"""NVMe allows 256 in a command. The verifier's limit of 8,192 open branches bounds it from above."""


class Event(enum.StrEnum):
    """The value is the tracepoint's name."""

    ISSUE = "block_rq_issue"
    COMPLETE = "block_rq_complete"
    REQUEUE = "block_rq_requeue"


@dataclass(frozen=True, slots=True)
class RequestFields:
    """Byte offsets in the running kernel's structs. ``disk_path``: pointers to follow from the request to its gendisk."""

    disk_path: tuple[int, ...]
    disk_major: int
    disk_first_minor: int
    command_flags: int
    data_length: int
    sector: int
    bio: int
    state: int
    bio_next: int
    bio_sector: int
    bio_size: int

    @classmethod
    def of(cls, btf: Btf) -> RequestFields:
        """:raises Unsupported: if this kernel's structs lack one of them."""
        if btf.has_field("request", "rq_disk"):  # before 5.17
            disk_path: tuple[int, ...] = (btf.offset_of("request", "rq_disk"),)
        else:
            disk_path = (btf.offset_of("request", "q"), btf.offset_of("request_queue", "disk"))
        return cls(
            disk_path=disk_path,
            disk_major=btf.offset_of("gendisk", "major"),
            disk_first_minor=btf.offset_of("gendisk", "first_minor"),
            command_flags=btf.offset_of("request", "cmd_flags"),
            data_length=btf.offset_of("request", "__data_len"),
            sector=btf.offset_of("request", "__sector"),
            bio=btf.offset_of("request", "bio"),
            state=btf.offset_of("request", "state"),
            bio_next=btf.offset_of("bio", "bi_next"),
            bio_sector=btf.offset_of("bio", "bi_iter.bi_sector"),
            bio_size=btf.offset_of("bio", "bi_iter.bi_size"),
        )


@dataclass(frozen=True, slots=True)
class Program:
    """Text of one program; ``functions`` is what the kernel asks for as func_info: (instruction index, BTF id)."""

    text: Assembler
    functions: list[tuple[int, int]]


def tracing_program(event: Event, fields: RequestFields, layout: BitmapLayout, device_number: int) -> Program:
    """The program for ``event`` of the disk ``device_number`` (major << 20 | minor)."""
    a = Assembler()
    # Arguments in r1: [request, status, bytes ended]
    a.alu_register("mov", R6, R1)
    a.load(8, R7, R6, 0)
    _leave_unless_disk(a, fields, device_number)
    a.load(4, R8, R7, fields.command_flags)
    a.alu("and", R8, _OP_MASK)
    a.alu_register("mov", R1, R8)
    a.alu("and", R1, 1)
    a.jump_if(R1, "==", 0, "out")
    _load_own_counters(a)
    a.jump_if(R8, "<", _OP_FIRST_DRIVER_COMMAND, "medium")
    a.alu("mov", R1, 1)
    a.atomic_add(R9, CpuCounters.runs.offset, R1)
    a.atomic_add(R9, CpuCounters.passthrough.offset, R1)
    a.jump("out")
    a.label("medium")
    match event:
        case Event.REQUEUE:
            _count_requeued(a, fields)
        case Event.ISSUE:
            a.load(4, R6, R7, fields.data_length)
            _count_and_mark(a, fields, layout, CpuCounters.issued.offset)
        case Event.COMPLETE:
            a.load(4, R6, R6, 16)
            _count_and_mark(a, fields, layout, CpuCounters.completed.offset)
    a.label("out")
    a.alu("mov", R0, 0)
    a.exit()
    return _with_mark(a, layout, needed=event is not Event.REQUEUE)


def marking_probe(layout: BitmapLayout) -> Program:
    """For tests: a raw tracepoint program that calls ``mark`` with its two arguments and returns what it returns."""
    a = Assembler()
    a.alu_register("mov", R6, R1)
    a.load(8, R1, R6, 0)
    a.load(8, R2, R6, 8)
    a.call_function("mark")
    a.exit()
    return _with_mark(a, layout, needed=True)


def _with_mark(a: Assembler, layout: BitmapLayout, *, needed: bool) -> Program:
    functions = [(0, FUNCTION_MAIN_ID)]
    if needed:
        functions.append((a.position, FUNCTION_MARK_ID))
        _emit_mark(a, layout)
    return Program(a, functions)


def _leave_unless_disk(a: Assembler, fields: RequestFields, device_number: int) -> None:
    """Loads through BTF pointers answer 0 instead of faulting, so a request without a disk is simply not ours."""
    a.alu_register("mov", R2, R7)
    for offset in fields.disk_path:
        a.load(8, R2, R2, offset)
    a.load(4, R3, R2, fields.disk_major)
    a.load(4, R4, R2, fields.disk_first_minor)
    a.alu("lsh", R3, 20)
    a.alu_register("or", R3, R4)
    a.load_constant(R4, device_number)
    a.jump_if_register(R3, "!=", R4, "out")


def _load_own_counters(a: Assembler) -> None:
    """r9 = this CPU's ``CpuCounters``. Programs run with migration off; per-CPU lines keep the atomics cheap."""
    a.call_helper(HELPER_CPU_ID)
    a.store(4, R10, -4, R0)
    a.load_map(R1, "counters")
    a.alu_register("mov", R2, R10)
    a.alu("add", R2, -4)
    a.call_helper(HELPER_MAP_LOOKUP)
    a.jump_if(R0, "==", 0, "out")
    a.alu_register("mov", R9, R0)


def _add_to_group(a: Assembler, counter_offset: int) -> None:
    """counters[group of operation r8] += r6 sectors, in one more run."""
    a.alu("mov", R1, 1)
    a.atomic_add(R9, CpuCounters.runs.offset, R1)
    discard, done = a.fresh_label("discard"), a.fresh_label("counted")
    a.jump_if(R8, "==", _OP_DISCARD, discard)
    a.atomic_add(R9, counter_offset, R6)
    a.jump(done)
    a.label(discard)
    a.atomic_add(R9, counter_offset + 8, R6)
    a.label(done)


def _count_requeued(a: Assembler, fields: RequestFields) -> None:
    """Requests that were never started are requeued too (state 0, MQ_RQ_IDLE): they are not counted."""
    a.load(4, R1, R7, fields.state)
    a.jump_if(R1, "==", 0, "out")
    a.load(4, R6, R7, fields.data_length)
    a.alu("rsh", R6, _SECTOR_SHIFT)
    _add_to_group(a, CpuCounters.requeued.offset)


def _count_and_mark(a: Assembler, fields: RequestFields, layout: BitmapLayout, counter_offset: int) -> None:
    """In: r6 bytes, r7 request, r8 operation, r9 counters."""
    a.alu("rsh", R6, _SECTOR_SHIFT)
    a.jump_if(R6, "==", 0, "out")  # an empty flush
    _add_to_group(a, counter_offset)
    a.jump_if(R8, "==", _OP_DISCARD, "ranges")
    a.load(8, R1, R7, fields.sector)
    a.alu_register("mov", R2, R6)
    _mark_sectors(a, layout)
    a.jump("out")

    a.label("ranges")
    a.load(8, R8, R7, fields.bio)
    a.alu("mov", R7, 0)
    a.label("next range")
    a.jump_if(R8, "==", 0, "out")
    a.load(8, R1, R8, fields.bio_sector)
    a.load(4, R2, R8, fields.bio_size)
    a.alu("rsh", R2, _SECTOR_SHIFT)
    _mark_sectors(a, layout)
    a.load(8, R8, R8, fields.bio_next)
    a.alu("add", R7, 1)
    a.jump_if(R7, "<", _MAX_DISCARD_RANGES, "next range")
    a.jump_if(R8, "==", 0, "out")
    a.alu("mov", R1, 1)
    a.atomic_add(R9, CpuCounters.overflow.offset, R1)


def _mark_sectors(a: Assembler, layout: BitmapLayout) -> None:
    """Mark the granules of r2 sectors from r1 on; what lies past the end of the map is counted instead. r6 to r9 stay."""
    geometry = layout.geometry
    shift = geometry.granularity_bytes.bit_length() - 1 - _SECTOR_SHIFT
    skip, inside = a.fresh_label("skip"), a.fresh_label("inside")
    a.jump_if(R2, "==", 0, skip)
    a.alu_register("add", R2, R1)
    a.load_constant(R3, geometry.size_bytes >> _SECTOR_SHIFT)
    a.jump_if_register(R2, "<=", R3, inside)
    a.alu("mov", R4, 1)
    a.atomic_add(R9, CpuCounters.beyond_end.offset, R4)
    a.jump_if_register(R1, ">=", R3, skip)
    a.alu_register("mov", R2, R3)
    a.label(inside)
    a.alu("sub", R2, 1)
    a.alu("rsh", R1, shift)
    a.alu("rsh", R2, shift)
    a.call_function("mark")
    a.jump_if(R0, "==", 0, skip)
    a.alu("mov", R1, 1)
    a.atomic_add(R9, CpuCounters.overflow.offset, R1)
    a.label(skip)


def _emit_mark(a: Assembler, layout: BitmapLayout) -> None:
    """``mark(first, last)``; returns 0, or 1 if it could not mark all. Frame: -4 map key, -16 tail mask."""
    max_steps = _MAX_REQUEST_BYTES // layout.geometry.granularity_bytes // WORD_BITS**2 + 3
    a.label("mark")
    a.alu_register("mov", R6, R1)
    a.alu_register("mov", R7, R2)
    a.load_map_value(R1, "control", 0)
    a.load(8, R8, R1, 0)  # r8 = first word of the active half, read once: the whole run marks one half
    _split_range(a)
    _mark_word(a, R6)
    a.load(8, R9, R10, -16)
    a.jump_if_register(R6, "==", R7, "marked")
    _mark_word(a, R7)
    # The words between: their bits in the coarse words.
    a.alu("add", R6, 1)
    a.jump_if_register(R6, ">=", R7, "marked")
    a.alu("sub", R7, 1)
    a.alu("add", R8, layout.fine_words)
    _split_range(a)
    a.alu("mov", R5, 0)
    a.store(8, R10, -24, R5)
    a.label("coarse")
    _mark_word(a, R6)
    a.jump_if_register(R6, ">=", R7, "marked")
    a.alu("mov", R9, -1)
    a.alu("add", R6, 1)
    a.jump_if_register(R6, "!=", R7, "whole")
    a.load(8, R9, R10, -16)
    a.label("whole")
    a.load(8, R5, R10, -24)
    a.alu("add", R5, 1)
    a.store(8, R10, -24, R5)
    a.jump_if(R5, "<", max_steps, "coarse")
    a.label("incomplete")
    a.alu("mov", R0, 1)
    a.exit()
    a.label("marked")
    a.alu("mov", R0, 0)
    a.exit()


def _split_range(a: Assembler) -> None:
    """In: bits r6..r7. Out: words r6..r7, r9 = mask for the first word, frame[-16] = mask for the last.

    If both are the same word, r9 is the intersection.
    """
    several = a.fresh_label("several")
    a.alu("mov", R9, -1)
    a.alu_register("mov", R1, R6)
    a.alu("and", R1, 63)
    a.alu_register("lsh", R9, R1)
    a.alu_register("mov", R1, R7)
    a.alu("and", R1, 63)
    a.alu("mov", R2, 63)
    a.alu_register("sub", R2, R1)
    a.alu("mov", R1, -1)
    a.alu_register("rsh", R1, R2)
    a.store(8, R10, -16, R1)
    a.alu("rsh", R6, 6)
    a.alu("rsh", R7, 6)
    a.jump_if_register(R6, "!=", R7, several)
    a.alu_register("and", R9, R1)
    a.label(several)


def _mark_word(a: Assembler, word: int) -> None:
    """bitmap[r8 + word] |= r9; looks first, since most bits are set already and a shared line is cheap to read."""
    done = a.fresh_label("set")
    a.alu_register("mov", R1, R8)
    a.alu_register("add", R1, word)
    a.store(4, R10, -4, R1)
    a.load_map(R1, "bitmap")
    a.alu_register("mov", R2, R10)
    a.alu("add", R2, -4)
    a.call_helper(HELPER_MAP_LOOKUP)
    a.jump_if(R0, "==", 0, "incomplete")
    a.load(8, R1, R0, 0)
    a.alu_register("and", R1, R9)
    a.jump_if_register(R1, "==", R9, done)
    a.atomic_or(R0, 0, R9)
    a.label(done)
