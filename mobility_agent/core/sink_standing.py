"""Where the sink stands beside what this agent knows to be applied: in step, behind, or put back to an older state. Pure values.

Called by ``receipt_intake`` with each word about receipts. A receipt of an older epoch is no news and says nothing: it may have been
relayed by a process server that remembers it, or its answer may be late. What counts is ``SinkBehind``: a process server read the store
*after* it was asked, and the store knows less than a receipt that this agent has verified. Applied epochs only grow, so the store is an
older one than it was (a restored backup, a reverted machine, a lost account). What was applied since is gone from it: this agent has no
bitmap of it any more, and its digest table describes a replica that does not exist.

Two things make that worth waiting for a while (``REVERTED_AFTER_S``, ``REVERTED_AFTER_ANSWERS``) before a disk is compared anew:
the store may hold manifests beyond its receipt, which the writer is applying again (each higher epoch begins the wait anew); and who put
the wrong copy there may put the right one back (a receipt that is not behind ends it). Meanwhile the disk is not healthy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mobility_agent.core.epoch_ledger import HistoryDiverged
from replication.control_plane import Problem
from replication.identifiers import NO_EPOCH, DiskId, EpochId

REVERTED_AFTER_S: Final = 20.0
REVERTED_AFTER_ANSWERS: Final = 3
_HINT: Final = (
    "if the store was put back to an older state by mistake, stop it and bring the newer one back; else wait: after "
    f"{REVERTED_AFTER_S:g} s the disk is resynchronized"
)


class SinkReverted(HistoryDiverged):
    """The store was put back to an older state: what this agent knows of the replica is not so any more."""

    code = "sink-reverted"


@dataclass(frozen=True, slots=True)
class SinkStanding:
    """``since_s``: when the store was first found behind at ``epoch``; None: it is in step, as far as is known."""

    since_s: float | None = None
    answers: int = 0
    epoch: EpochId = NO_EPOCH
    """What the store's receipt says; 0: nothing is applied, or there is none."""

    def found_behind(self, epoch: EpochId, now_s: float) -> SinkStanding:
        """A process server read the store just now and found ``epoch``, which is less than what is known to be applied."""
        if self.since_s is None or epoch > self.epoch:
            return SinkStanding(now_s, 1, epoch)
        return SinkStanding(self.since_s, self.answers + 1, epoch)

    def is_reverted(self, now_s: float) -> bool:
        """Whether it is certain enough to compare everything anew."""
        return (
            self.since_s is not None
            and self.answers >= REVERTED_AFTER_ANSWERS
            and now_s - self.since_s >= REVERTED_AFTER_S
        )

    def problem(self, applied: EpochId) -> Problem | None:
        """Why the disk is not healthy, or None."""
        return None if self.since_s is None else Problem(code="sink-behind", message=self._what(applied), hint=_HINT)

    def error(self, disk: DiskId, applied: EpochId) -> SinkReverted:
        return SinkReverted(
            f"cannot go on: {self._what(applied)}",
            disk=disk,
            epoch=applied,
            hint="it was put back to an older state; a new generation is begun, and everything is compared",
        )

    def _what(self, applied: EpochId) -> str:
        stands = f"is at epoch {self.epoch}" if self.epoch else "knows nothing of this generation"
        return f"the sink {stands}, though it had applied epoch {applied}" if applied else f"the sink {stands} any more"


IN_STEP: Final = SinkStanding()
