"""How fast a disk may change, by the type of disk that is to be made of it: the limits of FIELD.md (2 to 20 MB/s a disk), as data.

Called by ``target_disks.py`` for the alert ``churn-of-disk`` and for sizing. The documented table goes by the size of the source's writes,
too; here churn counts whole granules of 64 KiB, so that of each type its row for large writes holds. A premium disk's tier follows from its
size: P10 and P15 end at 256 GiB. MB are decimal, GiB are not, as in the field's own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

DiskType = Literal["standard", "premium"]
DEFAULT_DISK_TYPE: Final[DiskType] = "premium"
DISK_TYPES: Final[tuple[DiskType, ...]] = ("standard", "premium")

_GIB: Final = 2**30
_STANDARD: Final = 2e6
_PREMIUM: Final = ((256 * _GIB, 8e6),)
"""By size up to which it holds: P10, P15."""
_LARGEST_PREMIUM: Final = 20e6
"""P20 and above."""


@dataclass(frozen=True, slots=True)
class ChurnLimit:
    """``reason``: which limit it is, to be read after *the limit of*."""

    bytes_per_s: float
    reason: str

    def __str__(self) -> str:
        return f"{self.bytes_per_s / 1e6:g} MB/s of {self.reason}"


def churn_limit(disk_type: DiskType, size_bytes: int, configured_bytes: int | None = None) -> ChurnLimit:
    """Of a disk of ``size_bytes``; ``configured_bytes``: what the configuration says instead, for every type."""
    if configured_bytes is not None:
        return ChurnLimit(configured_bytes, "`alerts.disk_churn_limit_bytes`")
    if disk_type == "standard":
        return ChurnLimit(_STANDARD, "a standard disk")
    for up_to_bytes, limit in _PREMIUM:
        if size_bytes <= up_to_bytes:
            return ChurnLimit(limit, f"a premium disk up to {up_to_bytes // _GIB} GiB")
    return ChurnLimit(_LARGEST_PREMIUM, f"a premium disk over {_PREMIUM[-1][0] // _GIB} GiB")
