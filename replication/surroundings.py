"""Where a server stands: room on its file systems, and whether it can connect to the services of the appliance.

Found over SSH by a process server (``remote_access``), and by the agent itself (``control_plane``: in its inventory).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from replication.documents import ByteCount, Document

MAX_TRIED: Final = 32
"""Process servers that an agent is told of, and tries."""

USUAL_GRANULE_BYTES: Final = 64 * 1024
"""Of an agent that does not tell."""
_DIGEST_BYTES: Final = 16
"""Of a digest table for each granule: 128 bits (``mobility_agent/shipping/digest_table.py``)."""

MAX_SHORT_TEXT: Final = 1000
ShortText = Annotated[str, StringConstraints(max_length=MAX_SHORT_TEXT)]
ReachResult = Literal["open", "refused", "timed-out", "unresolved", "failed", "untested"]

LEAST_FREE_BYTES: Final = 64 * 2**20
"""Where the agent keeps its state: with less no epoch can be made durable."""


class Reach(Document):
    """Whether the server could open a TCP connection to a service of the appliance."""

    service: Literal["configuration server", "process server"]
    host: ShortText
    port: int
    result: ReachResult

    @property
    def may_pass(self) -> bool:
        """Whether nothing is known to stand in the way."""
        return self.result in ("open", "untested")


def blocking(reaches: Sequence[Reach]) -> list[Reach]:
    """The services for want of which the server is not ready. Configuration servers stand in for each other: while one of them is reached,
    or was not tried, none is in it.
    """
    control = [reach for reach in reaches if reach.service == "configuration server"]
    enough = any(reach.may_pass for reach in control)
    return [
        reach for reach in reaches if not reach.may_pass and not (enough and reach.service == "configuration server")
    ]


def spared(reaches: Sequence[Reach]) -> list[Reach]:
    """Configuration servers that are not reached, and need not be, as another one is or was not tried."""
    missing = blocking(reaches)
    return [reach for reach in reaches if not reach.may_pass and reach not in missing]


class FreeSpace(Document):
    path: ShortText
    free_bytes: ByteCount


class Surroundings(Document):
    """What an agent found. ``state``: where its state is; ``tables_bytes``: what digest tables take there already;
    ``granule_bytes``: for so many bytes of a disk each they have a digest.

    ``reach``: of the process servers that the last inventory was answered with.
    """

    state: FreeSpace
    tables_bytes: ByteCount = 0
    granule_bytes: int = Field(default=USUAL_GRANULE_BYTES, gt=0)
    reach: list[Reach] = Field(default_factory=list, max_length=MAX_TRIED)


def digest_tables_bytes(disks_bytes: int, granule_bytes: int) -> int:
    """What the digest tables of so many bytes of disks take: 256 MiB for each TiB with granules of 64 KiB, 4 GiB with 4 KiB."""
    return -(-disks_bytes // granule_bytes) * _DIGEST_BYTES
