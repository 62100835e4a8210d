"""What agents of this machine left frozen is thawed when none comes after them: their records go as well, and the directory with the last.

Called by ``installation`` (``uninstall``, ``note-remains``). A start thaws what the agent before it left (``freeze_guard``); after the
agent is removed there is no start, and whoever writes to a frozen file system waits, the removal of its state first of all.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mobility_agent.quiesce.freeze_guard import FreezeGuard
from mobility_agent.quiesce.freeze_record import RUN_DIRECTORY, FreezeRecord, machines_recorded, record_of
from mobility_agent.sole_agent import hold_machine
from replication.errors import SettingsError


def thaw_all_left(directory: Path = RUN_DIRECTORY) -> list[str]:
    """The mount points that were frozen. Nothing is written to a file system before the last of them is thawed.

    An agent that runs keeps its record: it thaws itself.
    """
    thawed: list[str] = []
    for machine in machines_recorded(directory):
        with contextlib.suppress(SettingsError), hold_machine(machine):
            thawed += FreezeGuard(FreezeRecord(record_of(machine, directory))).thaw_left()
    with contextlib.suppress(OSError):
        directory.rmdir()
    return thawed
