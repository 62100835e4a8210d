"""Where a server stands: room on its file systems, and whether it can connect to the services of the appliance.

Found over SSH by a process server (``remote_access``), and by the agent itself (``control_plane``: in its inventory).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from replication.documents import ByteCount, Document

MAX_TRIED: Final = 32
"""Process servers that an agent is told of, and tries."""

ShortText = Annotated[str, StringConstraints(max_length=1000)]
ReachResult = Literal["open", "refused", "timed-out", "unresolved", "failed", "untested"]


class Reach(Document):
    """Whether the server could open a TCP connection to a service of the appliance."""

    service: Literal["configuration server", "process server"]
    host: ShortText
    port: int
    result: ReachResult


class FreeSpace(Document):
    path: ShortText
    free_bytes: ByteCount


class Surroundings(Document):
    """What an agent found. ``state``: where its state is; ``tables_bytes``: what digest tables take there already.

    ``reach``: of the process servers that the last inventory was answered with.
    """

    state: FreeSpace
    tables_bytes: ByteCount = 0
    reach: list[Reach] = Field(default_factory=list, max_length=MAX_TRIED)
