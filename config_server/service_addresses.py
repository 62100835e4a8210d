"""Which addresses the process servers have. Asked by ``enrolments.py`` before one gets into a certificate, and by ``observations.py``
before a heartbeat moves one; ``core/address_claims.py`` decides.
"""

from __future__ import annotations

import contextlib
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.process_servers import heard_age
from config_server.tables import ProcessServerRow
from replication.errors import InvalidInput
from replication.service_address import ServiceAddress

HELD_FOR_S: Final = 7 * 86400.0
"""So long a process server that is silent keeps its address to itself; one that was never heard, since it enrolled. Of that time this
server must have been up, to hear it: else after a week without this server everybody's address would be free until the next heartbeat."""


async def addresses_of_others(
    session: AsyncSession, identifier: str, ages: Ages, now_ns: int
) -> list[tuple[str, ServiceAddress]]:
    """Host name and address of every process server but ``identifier``, unless it is known to be gone: it may enrol anew just now, or was
    silent for ``HELD_FOR_S`` while this server listened without a break.
    """
    found = []
    for row in await session.scalars(select(ProcessServerRow).where(ProcessServerRow.id != identifier)):
        age = heard_age(row, ages) or ages.of("process-server-enrolled", row.id, row.enrolled_ns)
        is_gone = age is not None and age.exceeds(HELD_FOR_S) and ages.watched_s() > HELD_FOR_S
        if not is_gone and (row.reenrolment_until_ns is None or row.reenrolment_until_ns <= now_ns):
            with contextlib.suppress(
                InvalidInput
            ):  # an earlier version took nonsense from heartbeats: nobody is sent there
                found.append((f"{row.hostname} ({row.id})", ServiceAddress.parse(row.service_url)))
    return found
