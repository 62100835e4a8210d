"""Extents: half-open byte ranges [offset, offset + length) of a disk. Pure values and set operations over sorted lists.

Called by the agent (what to read), the wire codec (what a batch carries) and the replica writer (what to write).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from replication.errors import InvalidInput

BLOCK_BYTES: Final = 512
"""Smallest addressable unit: a device's logical block at its least, and an Azure page-blob page."""

MAX_DISK_BYTES: Final = 64 * 2**40
"""Largest disk this version accepts; bounds every offset and length that comes from a peer (R14)."""


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Half-open byte range; offset and length are multiples of 512 and inside ``MAX_DISK_BYTES``."""

    offset_bytes: int
    length_bytes: int

    def __post_init__(self) -> None:
        if (
            self.offset_bytes < 0
            or self.length_bytes <= 0
            or self.offset_bytes % BLOCK_BYTES
            or self.length_bytes % BLOCK_BYTES
            or self.offset_bytes + self.length_bytes > MAX_DISK_BYTES
        ):
            raise InvalidInput(
                f"cannot use extent [{self.offset_bytes}, +{self.length_bytes})",
                hint=f"offset and length are multiples of {BLOCK_BYTES} within {MAX_DISK_BYTES} bytes",
            )

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes

    def overlaps(self, other: Extent) -> bool:
        return self.offset_bytes < other.end_bytes and other.offset_bytes < self.end_bytes


def coalesced(extents: Iterable[Extent]) -> list[Extent]:
    """Return the union of ``extents`` as a sorted list of disjoint, non-adjacent extents."""
    merged: list[Extent] = []
    for extent in sorted(extents):
        if merged and extent.offset_bytes <= merged[-1].end_bytes:
            last = merged[-1]
            merged[-1] = Extent(last.offset_bytes, max(last.end_bytes, extent.end_bytes) - last.offset_bytes)
        else:
            merged.append(extent)
    return merged


def split(extents: Iterable[Extent], at_most_bytes: int) -> Iterator[Extent]:
    """Return an iterator over ``extents`` in order, none longer than ``at_most_bytes`` (a positive multiple of 512).

    :raises InvalidInput: at the call, for any other ``at_most_bytes``.
    """
    if at_most_bytes <= 0 or at_most_bytes % BLOCK_BYTES:
        raise InvalidInput(f"cannot split extents at {at_most_bytes} bytes", hint=f"a multiple of {BLOCK_BYTES}")
    return (
        Extent(position, min(at_most_bytes, extent.end_bytes - position))
        for extent in extents
        for position in range(extent.offset_bytes, extent.end_bytes, at_most_bytes)
    )


def total_bytes(extents: Iterable[Extent]) -> int:
    return sum(extent.length_bytes for extent in extents)
