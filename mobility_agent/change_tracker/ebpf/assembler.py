"""A small assembler of eBPF: instructions with labels, maps by name. Pure: bytes out.

Called by ``programs``. Encoding: Documentation/bpf/standardization/instruction-set.rst. Registers r0 (result, scratch),
r1 to r5 (arguments, lost at calls), r6 to r9 (kept), r10 (frame pointer, read-only).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from replication.errors import InvalidInput

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

_SIZES: Final = {8: 0x18, 4: 0x00, 2: 0x08, 1: 0x10}
_ALU: Final = {
    "add": 0x00,
    "sub": 0x10,
    "or": 0x40,
    "and": 0x50,
    "lsh": 0x60,
    "rsh": 0x70,
    "mov": 0xB0,
}
_JUMPS: Final = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "<": 0xA0, "<=": 0xB0}
_ALU64, _JMP, _LDX, _STX = 0x07, 0x05, 0x61, 0x63
_BY_REGISTER: Final = 0x08
_CALL, _EXIT, _LD_IMM64, _ATOMIC64 = 0x85, 0x95, 0x18, 0xDB
_ATOMIC_ADD, _ATOMIC_OR = 0x00, 0x40
_PSEUDO_MAP, _PSEUDO_MAP_VALUE, _PSEUDO_CALL = 1, 2, 1
_MAX_JUMP: Final = 2**15 - 1

HELPER_MAP_LOOKUP: Final = 1
HELPER_CPU_ID: Final = 8


@dataclass(slots=True)
class _Instruction:
    opcode: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    label: str = ""
    map_name: str = ""


class Assembler:
    """Collects instructions; ``assemble`` resolves labels and maps. Operands are written destination first."""

    def __init__(self) -> None:
        self._instructions: list[_Instruction] = []
        self._labels: dict[str, int] = {}
        self._fresh = 0

    @property
    def position(self) -> int:
        """Index of the next instruction."""
        return len(self._instructions)

    def fresh_label(self, stem: str) -> str:
        self._fresh += 1
        return f"{stem}#{self._fresh}"

    def label(self, name: str) -> None:
        if name in self._labels:
            raise InvalidInput(f"cannot define label {name} twice")
        self._labels[name] = self.position

    def _add(self, instruction: _Instruction) -> None:
        self._instructions.append(instruction)

    def alu(self, operation: str, destination: int, immediate: int) -> None:
        """64-bit ``destination = destination operation immediate`` (32 bits, sign-extended)."""
        self._add(_Instruction(_ALU64 | _ALU[operation], destination, immediate=_signed32(immediate)))

    def alu_register(self, operation: str, destination: int, source: int) -> None:
        self._add(_Instruction(_ALU64 | _ALU[operation] | _BY_REGISTER, destination, source))

    def load(self, size_bytes: int, destination: int, base: int, offset: int) -> None:
        """``destination = *(size *)(base + offset)``, zero-extended."""
        self._add(_Instruction(_LDX | _SIZES[size_bytes], destination, base, offset))

    def store(self, size_bytes: int, base: int, offset: int, source: int) -> None:
        self._add(_Instruction(_STX | _SIZES[size_bytes], base, source, offset))

    def atomic_add(self, base: int, offset: int, source: int) -> None:
        self._add(_Instruction(_ATOMIC64, base, source, offset, _ATOMIC_ADD))

    def atomic_or(self, base: int, offset: int, source: int) -> None:
        self._add(_Instruction(_ATOMIC64, base, source, offset, _ATOMIC_OR))

    def jump(self, label: str) -> None:
        self._add(_Instruction(_JMP, label=label))

    def jump_if(self, register: int, condition: str, immediate: int, label: str) -> None:
        """Unsigned 64-bit comparison with a sign-extended 32-bit immediate."""
        opcode = _JMP | _JUMPS[condition]
        self._add(_Instruction(opcode, register, immediate=_signed32(immediate), label=label))

    def jump_if_register(self, register: int, condition: str, other: int, label: str) -> None:
        self._add(_Instruction(_JMP | _JUMPS[condition] | _BY_REGISTER, register, other, label=label))

    def load_constant(self, destination: int, value: int) -> None:
        """Any 64-bit constant (two instruction slots)."""
        self._load_wide(_Instruction(_LD_IMM64, destination, immediate=value & 0xFFFFFFFF), value >> 32 & 0xFFFFFFFF)

    def load_map(self, destination: int, map_name: str) -> None:
        self._load_wide(_Instruction(_LD_IMM64, destination, _PSEUDO_MAP, map_name=map_name), 0)

    def load_map_value(self, destination: int, map_name: str, offset: int) -> None:
        """Address inside the value of a map with a single entry."""
        self._load_wide(_Instruction(_LD_IMM64, destination, _PSEUDO_MAP_VALUE, map_name=map_name), offset)

    def _load_wide(self, first: _Instruction, high: int) -> None:
        self._add(first)
        self._add(_Instruction(0, immediate=high))

    def call_helper(self, number: int) -> None:
        self._add(_Instruction(_CALL, immediate=number))

    def call_function(self, label: str) -> None:
        """Call a function of this program: it gets its own r6 to r9 and frame."""
        self._add(_Instruction(_CALL, source=_PSEUDO_CALL, label=label))

    def exit(self) -> None:
        self._add(_Instruction(_EXIT))

    def index_of(self, label: str) -> int:
        try:
            return self._labels[label]
        except KeyError:
            raise InvalidInput(f"cannot find label {label}") from None

    def assemble(self, maps: Mapping[str, int]) -> bytes:
        """Return the code; ``maps`` gives the descriptor of each map that is named.

        :raises InvalidInput: for an unknown label or map, or a jump that is too far.
        """
        code = bytearray()
        for index, instruction in enumerate(self._instructions):
            offset, immediate = instruction.offset, instruction.immediate
            if instruction.map_name:
                if instruction.map_name not in maps:
                    raise InvalidInput(f"cannot find map {instruction.map_name}")
                immediate = maps[instruction.map_name]
            if instruction.label:
                distance = self.index_of(instruction.label) - index - 1
                if instruction.opcode == _CALL:
                    immediate = distance
                elif abs(distance) > _MAX_JUMP:
                    raise InvalidInput(f"cannot jump {distance} instructions to {instruction.label}")
                else:
                    offset = distance
            registers = instruction.destination | instruction.source << 4
            code += struct.pack("<BBhI", instruction.opcode, registers, offset, immediate & 0xFFFFFFFF)
        return bytes(code)


def _signed32(value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise InvalidInput(f"cannot encode {value} as an immediate", hint="load_constant takes 64 bits")
    return value
