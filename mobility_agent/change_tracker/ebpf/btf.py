"""BTF, the kernel's description of its own types: where a field lies, and the id of a tracepoint. Pure: bytes in.

Called by ``programs`` once at load; a re-attach to pins needs none of it. Format: Documentation/bpf/btf.rst. Offsets
come from the running kernel, so one program text fits every version whose fields have these names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from replication.errors import Unsupported

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_KIND_INT, _KIND_ARRAY, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM, _KIND_TYPEDEF = 1, 3, 4, 5, 6, 8
_KIND_FUNC, _KIND_FUNC_PROTO, _KIND_VAR, _KIND_DATASEC, _KIND_DECL_TAG, _KIND_ENUM64 = 12, 13, 14, 15, 17, 19
_QUALIFIERS: Final = frozenset({8, 9, 10, 11, 18})
"""typedef, volatile, const, restrict, type tag: looked through."""

_FIXED_TAIL: Final = {_KIND_INT: 4, _KIND_ARRAY: 12, _KIND_VAR: 4, _KIND_DECL_TAG: 4}
_ENTRY_TAIL: Final = {
    _KIND_STRUCT: 12,
    _KIND_UNION: 12,
    _KIND_ENUM: 8,
    _KIND_FUNC_PROTO: 8,
    _KIND_DATASEC: 12,
    _KIND_ENUM64: 12,
}


class Btf:
    """Parsed once; look-ups by name.

    :raises Unsupported: if ``blob`` is not BTF that this version understands.
    """

    def __init__(self, blob: bytes) -> None:
        if len(blob) < _HEADER.size:
            raise Unsupported("cannot read the kernel's type information: it is too short")
        magic, _, _, header, type_offset, type_length, string_offset, string_length = _HEADER.unpack_from(blob)
        self._types = header + type_offset
        self._types_end = self._types + type_length
        self._strings = header + string_offset
        self._strings_end = self._strings + string_length
        if magic != _MAGIC or max(self._types_end, self._strings_end) > len(blob):
            raise Unsupported("cannot read the kernel's type information: it is damaged or of another byte order")
        self._blob = blob
        self._positions = [0]
        self._by_name: dict[tuple[int, int], int] = {}
        self._index()

    def _index(self) -> None:
        position = self._types
        while position < self._types_end:
            name, info, _ = _TYPE.unpack_from(self._blob, position)
            kind, entries = info >> 24 & 31, info & 0xFFFF
            if name:
                self._by_name.setdefault((kind, name), len(self._positions))
            self._positions.append(position)
            position += _TYPE.size + _FIXED_TAIL.get(kind, 0) + entries * _ENTRY_TAIL.get(kind, 0)

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._blob[start : self._blob.index(b"\0", start)].decode()

    def _find(self, kind: int, name: str) -> int | None:
        wanted = b"\0" + name.encode() + b"\0"
        at = self._strings - 1
        while (at := self._blob.find(wanted, at + 1, self._strings_end)) >= 0:
            found = self._by_name.get((kind, at + 1 - self._strings))
            if found is not None:
                return found
        return None

    def tracepoint_id(self, name: str) -> int:
        """The id by which a ``tp_btf`` program names the tracepoint it attaches to.

        :raises Unsupported: if this kernel has no such tracepoint.
        """
        found = self._find(_KIND_TYPEDEF, f"btf_trace_{name}")
        if found is None:
            raise Unsupported(f"cannot find the tracepoint {name} in this kernel")
        return found

    def has_field(self, struct_name: str, field: str) -> bool:
        found = self._find(_KIND_STRUCT, struct_name)
        return found is not None and any(name == field for name, _, _ in self._members(found, 0))

    def offset_of(self, struct_name: str, path: str) -> int:
        """Byte offset of ``path`` (``field`` or ``field.inner``) in ``struct struct_name``; anonymous parts are transparent.

        :raises Unsupported: if this kernel has no such struct or field, or it is a bit field.
        """
        found = self._find(_KIND_STRUCT, struct_name)
        offset_bits = 0
        for field in path.split("."):
            member = None if found is None else next((m for m in self._members(found, 0) if m[0] == field), None)
            if member is None:
                raise Unsupported(f"cannot find {path} in struct {struct_name} of this kernel")
            offset_bits += member[1]
            found = self._resolved(member[2])
        if offset_bits % 8:
            raise Unsupported(f"cannot use {path} in struct {struct_name}: it is a bit field")
        return offset_bits // 8

    def _resolved(self, type_id: int) -> int:
        while True:
            _, info, target = _TYPE.unpack_from(self._blob, self._positions[type_id])
            if info >> 24 & 31 not in _QUALIFIERS:
                return type_id
            type_id = target

    def _members(self, type_id: int, base_bits: int) -> Iterator[tuple[str, int, int]]:
        """(name, offset in bits, type id) of each member, those of anonymous structs and unions included."""
        position = self._positions[type_id]
        _, info, _ = _TYPE.unpack_from(self._blob, position)
        if info >> 24 & 31 not in (_KIND_STRUCT, _KIND_UNION):
            return
        for index in range(info & 0xFFFF):
            name, member_type, offset = _TYPE.unpack_from(self._blob, position + _TYPE.size * (1 + index))
            offset_bits = base_bits + (offset & 0xFFFFFF if info >> 31 else offset)
            if name:
                yield self._string(name), offset_bits, member_type
            else:
                yield from self._members(self._resolved(member_type), offset_bits)


FUNCTION_MAIN_ID: Final = 4
FUNCTION_MARK_ID: Final = 6


def function_types() -> bytes:
    """BTF of the programs' two functions: ``int main(void *context)`` and the global ``int mark(u64 first, u64 last)``.

    A function with global linkage is verified once, on its own, for any argument: so loops that call it stay cheap.
    """
    strings = b"\0int\0u64\0context\0main\0first\0last\0mark\0"

    def name(text: str) -> int:
        return strings.index(b"\0" + text.encode() + b"\0") + 1

    types = b"".join(
        (
            _TYPE.pack(name("int"), _KIND_INT << 24, 4) + struct.pack("<I", 1 << 24 | 32),  # 1: signed, 32 bits
            _TYPE.pack(name("u64"), _KIND_INT << 24, 8) + struct.pack("<I", 64),  # 2
            _TYPE.pack(0, _KIND_FUNC_PROTO << 24 | 1, 1) + struct.pack("<II", name("context"), 2),  # 3
            _TYPE.pack(name("main"), _KIND_FUNC << 24, 3),  # 4: static
            _TYPE.pack(0, _KIND_FUNC_PROTO << 24 | 2, 1) + struct.pack("<IIII", name("first"), 2, name("last"), 2),  # 5
            _TYPE.pack(name("mark"), _KIND_FUNC << 24 | 1, 5),  # 6: global
        )
    )
    return _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings)) + types + strings
