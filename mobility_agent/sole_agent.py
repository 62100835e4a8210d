"""That no second agent works beside this one on this machine (R11): names in the kernel's table of abstract sockets, held while one runs.

Called by ``daemon``: one name for the machine's identity, at start, and one for each disk that replicates. A lock in the state directory
cannot see a copy of the directory, whose agent has the same certificate, the same pins and the same disks; both would harvest the same
marks, and each lose what the other took. An abstract socket's name is the machine's (more exactly, the network namespace's), the kernel
frees it when its process ends, however it ends, and whoever finds it taken can ask by whom. A device node cannot be locked instead:
udev takes that lock for itself.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from replication.errors import Refused, SettingsError
from replication.identifiers import DiskId

_PREFIX: Final = "\0blockferry-agent"
_CREDENTIALS: Final = struct.Struct("3i")
_HINT: Final = (
    "stop the other one; a copy of a machine or of an agent's state directory must not run beside the original: remove its "
    "state directory and enrol it anew"
)


def hold_machine(identifier: str) -> socket.socket:
    """Be the one agent of the enrolled machine ``identifier`` until the socket is closed.

    :raises SettingsError: if another one is.
    """
    name = f"{_PREFIX}/machine/{identifier}"
    held = _hold(name)
    if held is None:
        raise SettingsError(f"cannot run: {_holder(name)} is an agent with this machine's identity", hint=_HINT)
    return held


def hold_disk(disk: DiskId) -> socket.socket:
    """Be the one agent that replicates ``disk`` until the socket is closed.

    :raises Refused: if another one does.
    """
    name = f"{_PREFIX}/disk/{disk}"
    held = _hold(name)
    if held is None:
        raise Refused(f"cannot replicate this disk: {_holder(name)} is an agent that does", disk=disk, hint=_HINT)
    return held


def _hold(name: str) -> socket.socket | None:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(name)
        held.listen(1)  # from now on the kernel tells whoever connects which process this is
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return held


def _holder(name: str) -> str:
    """Which process holds ``name``, as the kernel says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(name)
            process, user, _ = _CREDENTIALS.unpack(
                asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
        except OSError:
            return "another process of this machine"  # it has just ended, or too many ask
    return f"process {process} of user {user}"
