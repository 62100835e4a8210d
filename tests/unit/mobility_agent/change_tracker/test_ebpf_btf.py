"""BTF: offsets of fields and ids of tracepoints from a description written here, and from the running kernel's if it has one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mobility_agent.change_tracker.ebpf.btf import FUNCTION_MAIN_ID, FUNCTION_MARK_ID, Btf, function_types
from mobility_agent.change_tracker.ebpf.objects import KERNEL_BTF
from mobility_agent.change_tracker.ebpf.programs import Event, RequestFields
from replication.errors import Unsupported

INT, PTR, STRUCT, UNION, TYPEDEF, CONST = 1, 2, 4, 5, 8, 10


class BtfWriter:
    def __init__(self) -> None:
        self._strings = b"\0"
        self._types = b""
        self._count = 0

    def name(self, text: str) -> int:
        offset = len(self._strings)
        self._strings += text.encode() + b"\0"
        return offset

    def add(self, name: str, kind: int, size_or_type: int, tail: bytes = b"", entries: int = 0, flag: int = 0) -> int:
        self._types += (
            struct.pack("<III", self.name(name) if name else 0, flag << 31 | kind << 24 | entries, size_or_type) + tail
        )
        self._count += 1
        return self._count

    def add_struct(
        self, name: str, size: int, members: list[tuple[str, int, int]], kind: int = STRUCT, flag: int = 0
    ) -> int:
        tail = b"".join(struct.pack("<III", self.name(text) if text else 0, of, at) for text, of, at in members)
        return self.add(name, kind, size, tail, len(members), flag)

    def blob(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings))
        return header + self._types + self._strings


@pytest.fixture
def btf() -> Btf:
    writer = BtfWriter()
    number = writer.add("u32", INT, 4, struct.pack("<I", 32))
    iterator = writer.add_struct("bvec_iter", 12, [("bi_sector", number, 0), ("bi_size", number, 64)])
    anonymous = writer.add_struct("", 8, [("hidden", number, 0), ("deeper", number, 32)], UNION)
    constant = writer.add("", CONST, iterator)
    writer.add_struct("bio", 64, [("bi_next", number, 0), ("", anonymous, 128), ("bi_iter", constant, 256)])
    writer.add_struct("flagged", 8, [("bits", number, 3 << 24 | 5), ("whole", number, 32)], flag=1)
    writer.add("btf_trace_block_rq_issue", TYPEDEF, 1)
    return Btf(writer.blob())


def test_fields_are_found_by_name(btf: Btf) -> None:
    assert btf.offset_of("bio", "bi_next") == 0
    assert btf.offset_of("bio", "bi_iter") == 32


def test_fields_of_anonymous_members_are_the_struct_s_own(btf: Btf) -> None:
    assert btf.offset_of("bio", "hidden") == 16
    assert btf.offset_of("bio", "deeper") == 20


def test_paths_go_through_qualified_structs(btf: Btf) -> None:
    assert btf.offset_of("bio", "bi_iter.bi_size") == 40


def test_a_bit_field_is_refused_and_its_neighbour_found(btf: Btf) -> None:
    assert btf.offset_of("flagged", "whole") == 4
    with pytest.raises(Unsupported, match="bit field"):
        btf.offset_of("flagged", "bits")


def test_what_is_not_there_is_unsupported(btf: Btf) -> None:
    assert not btf.has_field("bio", "nothing")
    assert not btf.has_field("nothing", "bi_next")
    for struct_name, path in (("bio", "nothing"), ("nothing", "x"), ("bio", "bi_next.inner")):
        with pytest.raises(Unsupported, match="of this kernel"):
            btf.offset_of(struct_name, path)


def test_tracepoints_are_found_by_name(btf: Btf) -> None:
    assert btf.tracepoint_id("block_rq_issue") == 7
    with pytest.raises(Unsupported, match="block_rq_complete"):
        btf.tracepoint_id("block_rq_complete")


@pytest.mark.parametrize(
    "blob", [b"", b"\x9f\xeb", b"\x00" * 64, struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 9, 9, 9)]
)
def test_what_is_no_btf_is_unsupported(blob: bytes) -> None:
    with pytest.raises(Unsupported, match="type information"):
        Btf(blob)


def test_our_own_types_name_both_functions() -> None:
    own = Btf(function_types())
    assert own._find(12, "main") == FUNCTION_MAIN_ID
    assert own._find(12, "mark") == FUNCTION_MARK_ID


@pytest.mark.skipif(not KERNEL_BTF.exists(), reason="this kernel does not describe its types")
def test_the_running_kernel_has_all_that_the_programs_read() -> None:
    kernel = Btf(Path(KERNEL_BTF).read_bytes())
    fields = RequestFields.of(kernel)
    assert fields.sector != fields.data_length
    assert len({kernel.tracepoint_id(event) for event in Event}) == 3
