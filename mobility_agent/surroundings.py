"""The agent looks around: room for its state, and whether it can connect to the process servers that could take its disks.

Called by ``daemon`` with the answer to an inventory; what is found goes with the next one. A connection is opened and closed, nothing
is sent: whether a certificate is accepted shows when the agent ships.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mobility_agent.disk_memory import DISKS_DIRECTORY
from replication.control_plane import ProcessServerAddress
from replication.errors import InvalidInput
from replication.service_address import ServiceAddress
from replication.surroundings import FreeSpace, Reach, ReachResult, Surroundings

CONNECT_TIMEOUT_S: Final = 5.0


async def look_around(state_dir: Path, servers: Sequence[ProcessServerAddress]) -> Surroundings:
    """Takes at most ``CONNECT_TIMEOUT_S`` and the time to look into ``state_dir``.

    :raises OSError: ``state_dir`` cannot be read.
    """
    reach = await asyncio.gather(*(_reach(server.url) for server in servers))
    free_bytes, tables_bytes = await asyncio.to_thread(room_for_state, state_dir)
    return Surroundings(
        state=FreeSpace(path=str(state_dir), free_bytes=free_bytes), tables_bytes=tables_bytes, reach=list(reach)
    )


def room_for_state(state_dir: Path) -> tuple[int, int]:
    """(free bytes on the file system of ``state_dir``, bytes that digest tables take there).

    :raises OSError: it cannot be read.
    """
    free = os.statvfs(state_dir)
    tables_bytes = sum(path.stat().st_blocks * 512 for path in state_dir.glob(f"{DISKS_DIRECTORY}/*/digests*"))
    return free.f_bavail * free.f_frsize, tables_bytes


async def _reach(url: str) -> Reach:
    try:
        address = ServiceAddress.parse(url)
    except InvalidInput:
        return Reach(service="process server", host=url[:1000], port=0, result="failed")
    return Reach(service="process server", host=address.host, port=address.port, result=await _connect(address))


async def _connect(address: ServiceAddress) -> ReachResult:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except socket.gaierror:
        return "unresolved"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timed-out"
    except OSError:
        return "failed"
    writer.close()
    return "open"
