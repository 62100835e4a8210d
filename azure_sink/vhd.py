"""Fixed VHD: where data, padding and footer of a disk lie in its page blob, and the footer itself. Pure; no I/O.

Called by the replica writer (a replica is a fixed VHD, so that Azure makes a managed disk of it) and by ``azure-sink export``.
Format: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0: a fixed image is the data followed by one 512-byte
footer, big-endian. Azure takes sizes of whole MiB. The creator application ``win `` makes qemu use the footer's current size
and not the disk's geometry, which would round it. Footer and padding are outside of a disk's identity (R13).
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Final

from replication.errors import InvalidInput, PeerProtocolError
from replication.extents import MAX_DISK_BYTES

FOOTER_BYTES: Final = 512
ALIGNMENT_BYTES: Final = 2**20
SECTOR_BYTES: Final = 512

_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427s")
_COOKIE: Final = b"conectix"
_FEATURES: Final = 2
_VERSION: Final = 0x00010000
_NO_DATA_OFFSET: Final = 0xFFFFFFFFFFFFFFFF
_CREATOR_APPLICATION: Final = b"win "
_CREATOR_VERSION: Final = 0x000A0000
_CREATOR_HOST: Final = b"Wi2k"
_FIXED: Final = 2
_CHECKSUM_OFFSET: Final = 64
_MAX_GEOMETRY_SECTORS: Final = 65535 * 16 * 255


@dataclass(frozen=True, slots=True)
class FixedVhd:
    """The layout for a source of ``size_bytes``."""

    size_bytes: int

    def __post_init__(self) -> None:
        if not 0 < self.size_bytes <= MAX_DISK_BYTES:
            raise InvalidInput(f"cannot make a disk of {self.size_bytes} bytes", hint=f"1 to {MAX_DISK_BYTES}")

    @property
    def data_bytes(self) -> int:
        """The source's size, rounded up to whole MiB: what the footer calls the current size."""
        return -(-self.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def blob_bytes(self) -> int:
        return self.data_bytes + FOOTER_BYTES

    @property
    def writable_bytes(self) -> int:
        """End of the last extent that may be written: the source's size in whole sectors."""
        return -(-self.size_bytes // SECTOR_BYTES) * SECTOR_BYTES

    def footer(self, unique_id: str) -> bytes:
        """The footer; the same for the same disk and size, so that writing it again changes nothing."""
        return encode_footer(self.data_bytes, uuid.UUID(unique_id))


def encode_footer(data_bytes: int, unique_id: uuid.UUID) -> bytes:
    """The footer of a fixed image of ``data_bytes``; its time stamp is 2000-01-01, its saved state none."""
    cylinders, heads, sectors = _geometry(data_bytes)

    def packed(checksum: int) -> bytes:
        return _FOOTER.pack(
            _COOKIE,
            _FEATURES,
            _VERSION,
            _NO_DATA_OFFSET,
            0,
            _CREATOR_APPLICATION,
            _CREATOR_VERSION,
            _CREATOR_HOST,
            data_bytes,
            data_bytes,
            cylinders,
            heads,
            sectors,
            _FIXED,
            checksum,
            unique_id.bytes,
            0,
            bytes(427),
        )

    return packed(~sum(packed(0)) & 0xFFFFFFFF)


def parse_footer(footer: bytes) -> int:
    """The size of a fixed image's data.

    :raises PeerProtocolError: if ``footer`` is none, is damaged, or not that of a fixed image.
    """
    if len(footer) != FOOTER_BYTES:
        raise PeerProtocolError(f"cannot read a VHD footer of {len(footer)} bytes")
    fields = _FOOTER.unpack(footer)
    cookie, version, size, kind, checksum = fields[0], fields[2], fields[9], fields[13], fields[14]
    blank = footer[:_CHECKSUM_OFFSET] + bytes(4) + footer[_CHECKSUM_OFFSET + 4 :]
    if cookie != _COOKIE or version != _VERSION or kind != _FIXED:
        raise PeerProtocolError("cannot read a VHD footer: it is not that of a fixed disk")
    if checksum != ~sum(blank) & 0xFFFFFFFF:
        raise PeerProtocolError("cannot read a VHD footer: its checksum does not match")
    return int(size)


def _geometry(data_bytes: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track: the specification's appendix "CHS Calculation"."""
    total = min(data_bytes // SECTOR_BYTES, _MAX_GEOMETRY_SECTORS)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        return total // sectors // heads, heads, sectors
    sectors = 17
    cylinders_times_heads = total // sectors
    heads = max(4, (cylinders_times_heads + 1023) // 1024)
    if cylinders_times_heads >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        cylinders_times_heads = total // sectors
    if cylinders_times_heads >= heads * 1024:
        sectors, heads = 63, 16
        cylinders_times_heads = total // sectors
    return cylinders_times_heads // heads, heads, sectors
