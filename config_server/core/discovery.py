"""A discovery: hosts that a process server looks at over SSH, each from waiting to one of several ends. States and their table. Pure.

Called by ``discoveries.py``. Each report of a process server moves a host along. One that is repeated, or comes after the end, changes
nothing: a process server that was restarted looks again at whatever had not come to an end. Invariant: a host that has ended stays as
it is; a run is over when all its hosts are, or when its time is.
"""

from __future__ import annotations

import enum
from typing import Final


class HostState(enum.StrEnum):
    WAITING = "waiting"
    CONNECTING = "connecting"
    PROBING = "probing"
    FOUND = "found"
    SILENT = "silent"
    HOST_KEY_UNKNOWN = "host-key-unknown"
    HOST_KEY_CHANGED = "host-key-changed"
    FAILED = "failed"


ENDED_STATES: Final = frozenset(
    {HostState.FOUND, HostState.SILENT, HostState.HOST_KEY_UNKNOWN, HostState.HOST_KEY_CHANGED, HostState.FAILED}
)
_BEGUN: Final = frozenset(HostState) - {HostState.WAITING}

TRANSITIONS: Final[dict[HostState, frozenset[HostState]]] = {
    HostState.WAITING: _BEGUN,
    HostState.CONNECTING: _BEGUN,
    HostState.PROBING: _BEGUN,
    **{state: frozenset() for state in ENDED_STATES},
}


def next_host_state(state: HostState, reported: HostState) -> HostState:
    """The state after a report; a report that may not follow changes nothing."""
    return reported if reported in TRANSITIONS[state] else state
