"""Measuring churn without replicating: what an agent is asked to watch, and what it has seen. Agreed on by configuration server and agent.

An order stands in the desired state until its agent says that it is done. Windows are of several lengths, since distinct bytes depend on
them: what is written again within a window counts once.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from replication.documents import ByteCount, Document, Uuid

INTERVAL_S: Final = 10.0
"""How often changes are collected: the shortest window."""
MULTIPLES: Final = (1, 6, 30, 180, 360)
"""10 s, 1 min, 5 min, 30 min, 1 h."""
MIN_DURATION_S: Final = 10.0
MAX_DURATION_S: Final = 14 * 86400.0


class ProfileOrder(Document):
    """Watch ``disks`` for ``duration_s``. An agent that is started anew begins it anew."""

    request: Uuid
    disks: list[Uuid]
    duration_s: float = Field(ge=MIN_DURATION_S, le=MAX_DURATION_S)
    interval_s: float = Field(default=INTERVAL_S, gt=0, le=3600)


class ProfiledWindow(Document):
    """Distinct bytes dirtied in windows of one length, in whole granules."""

    interval_s: float
    windows: int
    mean_bytes: float
    most_bytes: ByteCount


class ProfiledDisk(Document):
    """``replicated``: it came under protection meanwhile, and is watched by replication itself. ``problem``: why it failed.

    ``doubted_windows``: intervals in which the tracker may have missed writes; they count with what it saw.
    """

    disk: Uuid
    state: Literal["watching", "done", "replicated", "failed"]
    watched_s: float
    windows: list[ProfiledWindow]
    doubted_windows: int = 0
    problem: str | None = None


class ProfileObservation(Document):
    """How far an order has come."""

    request: Uuid
    elapsed_s: float
    done: bool
    disks: list[ProfiledDisk]
