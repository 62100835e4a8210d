"""Installing the agent on a discovered server: the states of an installation and their table. Pure.

Called by ``agent_installations.py``. A process server moves it along by its reports, from connecting to installed; then the configuration
server waits for the agent that has enrolled, and protects its machine.

    waiting → connecting → checking → fetching → copying → installing → enrolling → succeeded
       └──────────┴───────────┴──────────┴──────────┴───────────┴───────────┴────→ failed, cancelled

A process server that was restarted begins anew at connecting; so any of its states may follow any other. Invariant: what has ended stays
as it is, and holds no secret.
"""

from __future__ import annotations

import enum
from typing import Final

from replication.errors import Conflict


class InstallationState(enum.StrEnum):
    WAITING = "waiting"
    CONNECTING = "connecting"
    CHECKING = "checking"
    FETCHING = "fetching"
    COPYING = "copying"
    INSTALLING = "installing"
    ENROLLING = "enrolling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS: Final = frozenset({InstallationState.FAILED, InstallationState.CANCELLED})
AT_PROCESS_SERVER: Final = frozenset(
    {
        InstallationState.WAITING,
        InstallationState.CONNECTING,
        InstallationState.CHECKING,
        InstallationState.FETCHING,
        InstallationState.COPYING,
        InstallationState.INSTALLING,
    }
)
"""While it is a process server's order."""

_STEPS: Final = AT_PROCESS_SERVER - {InstallationState.WAITING}

TRANSITIONS: Final[dict[InstallationState, frozenset[InstallationState]]] = {
    **{state: _STEPS | _ENDS | {InstallationState.ENROLLING} for state in AT_PROCESS_SERVER},
    InstallationState.ENROLLING: _ENDS | {InstallationState.SUCCEEDED},
    InstallationState.SUCCEEDED: frozenset(),
    InstallationState.FAILED: frozenset(),
    InstallationState.CANCELLED: frozenset(),
}

ENDED_STATES: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)


def next_installation_state(state: InstallationState, wanted: InstallationState) -> InstallationState:
    """:raises Conflict: if it may not follow."""
    if wanted not in TRANSITIONS[state]:
        raise Conflict(f"cannot bring an installation from {state} to {wanted}")
    return wanted
