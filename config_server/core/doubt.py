"""What an agent's doubt means: for health, and for the recovery points that it makes suspect (R12).

Called by ``health.py`` and ``tracking_losses.py``. Two kinds: marks were lost but everything that they can have covered was dirtied again
(the text ``doubt`` of a disk whose tracker tracks on): the replica repairs itself, points are not touched, since each was reconciled with
the kernel's counters before it was published (R3); health says so. Or tracking is lost: then the points newer than what was *proved* of
the disk may miss writes and become suspect, until the loss was over. A loss is known by what cannot be missed, however short it is: the
next generation that the agent asks for, unless an operator's order is its reason; and by a tracker that is reported degraded or blind.

A third finding is worse: a final disk that was compared with its source and differs. Nobody knows since when its replica has been wrong,
and the digests do not say what it holds: so everything that was ever cut of the disk is suspect, and what will be cut, until a generation
begins that sends every granule (``Divergence``).

Everything is compared as (generation, epoch), never by a clock that may be set. A suspect point stays suspect; points of the generation
after the loss are good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from config_server.core.observation import SEEDED_PHASES
from replication.control_plane import DiskObservation, DiskPhase

_NOT_TRACKED_YET: Final = ("waiting", "seeding", "failed", "held")
END_OF_GENERATION: Final = 2**63 - 1
"""As an epoch: later than every one."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a disk's history."""

    generation: int
    epoch: int


@dataclass(frozen=True, slots=True)
class TrackingLoss:
    """What was cut of ``disk`` after ``proved`` and up to ``until`` (inclusive) may miss writes."""

    disk: str
    proved: Position
    until: Position
    reason: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """The replica of ``disk`` was found to differ from its source in a point of ``generation``. ``resent``: the first generation after
    that one in which nothing of it is relied on, once it has been asked for.
    """

    disk: str
    generation: int
    reason: str
    resent: int | None

    def as_loss(self) -> TrackingLoss:
        """What was cut from the very beginning up to the end of the last generation that rested on the replica; for now: of any."""
        last = END_OF_GENERATION if self.resent is None else self.resent - 1
        return TrackingLoss(self.disk, Position(0, 0), Position(last, END_OF_GENERATION), self.reason)


def is_repaired(divergence: Divergence, generation: int | None, phase: DiskPhase) -> bool:
    """Whether a disk that is observed in ``generation`` and ``phase`` rests on nothing at the sink from before it was sent anew."""
    return (
        divergence.resent is not None
        and generation is not None
        and generation >= divergence.resent
        and phase in SEEDED_PHASES
    )


def doubt_of(disk: DiskObservation) -> str | None:
    """Why this disk is not healthy, as far as tracking is concerned, or None."""
    return disk.doubt or lost_tracking(disk)


def lost_tracking(disk: DiskObservation) -> str | None:
    """Why the tracker cannot vouch for what is cut now, or None."""
    if disk.generation is None or disk.phase in _NOT_TRACKED_YET or disk.tracker_health == "tracking":
        return None
    return f"the change tracker is {disk.tracker_health}: {disk.tracker_reason or 'no reason given'}"


def proved_position(disk: DiskObservation) -> Position | None:
    """Up to where this observation proves that no write was missed: what is applied was harvested before, and the tracker still tracks."""
    if disk.generation is None or disk.tracker_health != "tracking" or disk.doubt is not None:
        return None
    return Position(disk.generation, disk.applied_epoch)


def suspicion(parts: Iterable[tuple[str, Position]], losses: Iterable[TrackingLoss]) -> str | None:
    """Why a point made of ``parts`` (disk and position) may miss writes, or None."""
    places = dict(parts)
    found = [
        f"disk {loss.disk}: {loss.reason}"
        for loss in losses
        if loss.disk in places and loss.proved < places[loss.disk] <= loss.until
    ]
    return "; ".join(dict.fromkeys(found)) or None
