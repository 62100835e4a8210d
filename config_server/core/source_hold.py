"""Whether the source of a migrated item still is what was proved. Called by ``source_watch.py`` with each observation of its agent.

After the proof the agent holds the source until the operator completes or cancels. An agent that is restarted lets go of it for a while,
in which anybody may write; it claims the disks again and cuts another final epoch, under another cut's name. So another cut than the proved
one shows that the source was not held all the time, and its hashes show whether that mattered. Until they are there, nothing is claimed.
The final disks are not concerned: they were made of the proved cut and are never touched.

All that is known only as of the newest observation. While the agent is silent nobody says that the source is held: it may have been
switched off for good, which loses nothing, or started without its agent and written to.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

from config_server.core.age import Age
from replication.control_plane import SOURCE_WRITTEN, CutoverObservation, SourceHash

SourceHold = Literal["held", "unknown", "written"]
"""``held``: the source has what was proved; ``unknown``: it was let go and has not been compared since, or its agent is silent;
``written``: it has changed.
"""


SILENCE_ACCEPTED_S: Final = 7200.0
"""So long an agent may be silent and its migration still be completed without the operator's word for the source."""


def hold_now(heard_last: SourceHold, agent_age: Age | None, timeout_s: float) -> SourceHold:
    """What ``heard_last`` is worth now: ``held`` is known only while the agent is heard."""
    silent = agent_age is None or not agent_age.is_within(timeout_s)
    return "unknown" if heard_last == "held" and silent else heard_last


def follow_hold(before: SourceHold, proved: CutoverObservation, seen: CutoverObservation | None) -> SourceHold:
    """What an observation makes of ``before``. ``proved``: the cutover as it was when identity was proved; ``seen`` None: there is none.

    What was written to is so until other hashes are there.
    """
    not_compared: SourceHold = "written" if before == "written" else "unknown"
    if seen is None or seen.job != proved.job:
        return not_compared
    if seen.state == "failed":
        written = seen.problem is not None and seen.problem.code == SOURCE_WRITTEN
        return "written" if written else not_compared
    if seen.cut == proved.cut:
        return "written" if before == "written" else "held"
    if seen.state != "applied" or not seen.identity_claimed:
        return not_compared
    if _counted(seen.source_hashes) == _counted(proved.source_hashes):
        return "held"
    differs = any(
        (hashed.sha256, hashed.size_bytes) != (known.sha256, known.size_bytes)
        for hashed in seen.source_hashes
        for known in proved.source_hashes
        if hashed.disk == known.disk
    )
    return "written" if differs else not_compared


def _counted(hashes: list[SourceHash]) -> Counter[tuple[str, str, int]]:
    return Counter((hashed.disk, hashed.sha256, hashed.size_bytes) for hashed in hashes)
