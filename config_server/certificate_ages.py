"""How old the certificates are that agents and process servers use: for an item's health, for metrics, for alerts. Called by
``item_health.py``, ``reconciler/figures.py``; ``daemon.py`` registers ``CertificateFigures``.

What counts is the newest one that its holder has shown and that is not revoked: one that was issued and never arrived helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.core.certificate_health import certificate_condition
from config_server.core.health import Condition
from config_server.tables import CertificateRow, MachineRow, ProcessServerRow
from replication.certificate_life import CertificateLife


async def lives_in_use(session: AsyncSession, holder_id: str | None = None) -> dict[str, CertificateLife]:
    """Holder's identifier → life of the newest certificate that it uses; of ``holder_id`` only, if given."""
    wanted = select(CertificateRow).where(CertificateRow.used_ns.is_not(None), CertificateRow.revoked_ns.is_(None))
    if holder_id is not None:
        wanted = wanted.where(CertificateRow.holder_id == holder_id)
    found: dict[str, CertificateLife] = {}
    for row in await session.scalars(wanted.order_by(CertificateRow.issued_ns)):
        found[row.holder_id] = CertificateLife(row.issued_ns, row.expires_ns)
    return found


async def conditions_of(session: AsyncSession, holder_id: str, name: str, now_ns: int) -> list[Condition]:
    """What is wrong with the certificate of one holder, whom ``name`` names ("the agent of web-1")."""
    life = (await lives_in_use(session, holder_id)).get(holder_id)
    if life is None:
        return []  # it never came, or was revoked: it is not heard either
    condition = certificate_condition(name, life.left_s(now_ns), life.length_s)
    return [] if condition is None else [condition]


async def ends_by_name(session: AsyncSession) -> dict[tuple[str, str], int]:
    """(role, host name) → end of the newest certificate in use, in nanoseconds since 1970."""
    lives = await lives_in_use(session)
    found: dict[tuple[str, str], int] = {}
    for machine in await session.execute(select(MachineRow.id, MachineRow.hostname)):
        if machine.id in lives:
            found["agent", machine.hostname] = lives[machine.id].ends_ns
    for server in await session.execute(select(ProcessServerRow.id, ProcessServerRow.hostname)):
        if server.id in lives:
            found["process-server", server.hostname] = lives[server.id].ends_ns
    return found


@dataclass(frozen=True, slots=True)
class CertificateFigures(Collector):
    """``others``: ends of the certificates of agents and process servers; ``own``: of this server's, the authority's and the sink's."""

    others: Callable[[], Mapping[tuple[str, str], int]]
    own: Callable[[], Mapping[tuple[str, str], int]]
    clock: Callable[[], int]

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "blockferry_certificate_expiry_seconds",
            "Seconds to the end of the newest certificate in use; negative after it",
            labels=["role", "name"],
        )
        now_ns = self.clock()
        for (role, name), ends_ns in {**self.others(), **self.own()}.items():
            family.add_metric([role, name], (ends_ns - now_ns) / 1e9)
        yield family
