"""What an agent shall do: computed from item, policy, placement and open jobs, never stored as orders.

Called by ``desired.py`` after each change. Pure, so that the same facts give the same document and a restart changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config_server.core.protected_item import DELETING_STATES, ENDED_STATES, TEST_STATES, State
from replication.control_plane import (
    DesiredCutover,
    DesiredItem,
    PointRequest,
    ProcessServerAddress,
    ReplicationTiming,
    ResyncOrder,
)


@dataclass(frozen=True, slots=True)
class DesiredFacts:
    """An item and what is open on it. ``cutover``: the newest migration's, unless the source has been released from it.

    ``point_requests``: open requests for a recovery point, oldest first; the agent is given one at a time.
    """

    item: str
    state: State
    disks: Sequence[str]
    timing: ReplicationTiming
    process_server: ProcessServerAddress | None
    point_requests: Sequence[PointRequest] = ()
    cutover: DesiredCutover | None = None
    resyncs: Sequence[ResyncOrder] = ()
    paused: bool = False
    """The operator paused the item; a test migration does not end that."""


def desired_item(facts: DesiredFacts) -> DesiredItem | None:
    """None: nothing is to be replicated, and the agent discards what it keeps of the item.

    In MIGRATED the source stays held, so that it cannot run on beside its migrated copy by accident; the same after a
    migration that failed when everything had been sealed, until the operator cancels (the source runs on) or tries again.
    """
    if facts.state in ENDED_STATES | DELETING_STATES or facts.state in (
        State.STOPPING_FAILED,
        State.COMPLETING_FAILED,
    ):
        return None
    held = facts.state is State.MIGRATED or (facts.state is State.MIGRATION_FAILED and facts.cutover is not None)
    migrating = held or facts.state is State.MIGRATING
    paused = facts.state is State.PAUSED or (facts.paused and facts.state in TEST_STATES)
    return DesiredItem(
        item=facts.item,
        disks=list(facts.disks),
        goal="hold" if held else "pause" if paused else "replicate",
        timing=facts.timing,
        process_server=facts.process_server,
        point_request=facts.point_requests[0] if facts.point_requests and not migrating and not paused else None,
        cutover=facts.cutover if migrating else None,
        resyncs=[] if migrating else list(facts.resyncs),
    )
