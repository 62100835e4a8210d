"""The assembler's encoding, held against instructions written down from the instruction set's document."""

from __future__ import annotations

import pytest

from mobility_agent.change_tracker.ebpf.assembler import R0, R1, R2, R10, Assembler
from replication.errors import InvalidInput


def assembled(a: Assembler, **maps: int) -> list[str]:
    code = a.assemble(maps)
    return [code[at : at + 8].hex() for at in range(0, len(code), 8)]


def test_arithmetic_is_64_bit() -> None:
    a = Assembler()
    a.alu("mov", R0, -1)
    a.alu_register("add", R1, R2)
    a.exit()
    assert assembled(a) == ["b7000000ffffffff", "0f21000000000000", "9500000000000000"]


def test_loads_stores_and_atomics_name_their_size_and_offset() -> None:
    a = Assembler()
    a.load(8, R1, R2, 16)
    a.load(4, R1, R2, -4)
    a.store(4, R10, -4, R0)
    a.atomic_add(R1, 8, R2)
    a.atomic_or(R1, 0, R2)
    assert assembled(a) == [
        "7921100000000000",
        "6121fcff00000000",
        "630afcff00000000",
        "db21080000000000",
        "db21000040000000",
    ]


def test_jumps_reach_labels_forward_and_backward() -> None:
    a = Assembler()
    a.label("start")
    a.jump_if(R1, "==", 0, "end")
    a.jump_if_register(R1, "<", R2, "start")
    a.label("end")
    a.exit()
    assert assembled(a) == ["1501010000000000", "ad21feff00000000", "9500000000000000"]


def test_a_wide_constant_takes_two_slots_and_jumps_count_them() -> None:
    a = Assembler()
    a.jump("end")
    a.load_constant(R1, 0x1122334455667788)
    a.label("end")
    a.exit()
    assert assembled(a) == ["0500020000000000", "1801000088776655", "0000000044332211", "9500000000000000"]


def test_maps_are_named_and_resolved_when_assembled() -> None:
    a = Assembler()
    a.load_map(R1, "bitmap")
    a.load_map_value(R2, "control", 24)
    assert assembled(a, bitmap=5, control=6) == [
        "1811000005000000",
        "0000000000000000",
        "1822000006000000",
        "0000000018000000",
    ]
    with pytest.raises(InvalidInput, match="cannot find map bitmap"):
        a.assemble({})


def test_a_call_of_a_function_is_relative() -> None:
    a = Assembler()
    a.call_function("mark")
    a.exit()
    a.label("mark")
    a.call_helper(8)
    a.exit()
    assert assembled(a) == ["8510000001000000", "9500000000000000", "8500000008000000", "9500000000000000"]
    assert a.index_of("mark") == 2


def test_mistakes_are_refused() -> None:
    a = Assembler()
    a.label("here")
    with pytest.raises(InvalidInput, match="twice"):
        a.label("here")
    with pytest.raises(InvalidInput, match="immediate"):
        a.alu("mov", R1, 2**31)
    a.jump("nowhere")
    with pytest.raises(InvalidInput, match="cannot find label nowhere"):
        a.assemble({})


def test_a_jump_that_is_too_far_is_refused() -> None:
    a = Assembler()
    a.jump("end")
    for _ in range(2**15):
        a.exit()
    a.label("end")
    with pytest.raises(InvalidInput, match="cannot jump"):
        a.assemble({})
