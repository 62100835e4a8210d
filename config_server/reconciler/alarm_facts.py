"""What a look at the site finds: facts from the database, this machine and the trust store, judged. Called by ``reconciler/loop.py``.

The look itself is ``core/site_health.py``'s and, for the conditions of an item, ``core/alert_catalogue.py``'s.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import process_servers
from config_server.ages import Ages
from config_server.alert_settings import AlertSettings
from config_server.alert_tables import DiskChurnRow, ProcessServerLoadRow
from config_server.certificate_ages import lives_in_use
from config_server.churn import churn_of_day
from config_server.config import HeartbeatSettings
from config_server.core.age import Age, at_least_s
from config_server.core.alert_catalogue import sighting_of, sightings_of_item
from config_server.core.alerts import SITE, Sighting, Subject
from config_server.core.certificate_health import certificate_condition
from config_server.core.health import Condition, Health, Verdict
from config_server.core.point_wait import points_are_due, waited_s
from config_server.core.protected_item import State
from config_server.core.site_health import (
    DiskChurn,
    ProcessServerState,
    ServerState,
    SiteState,
    of_process_server,
    of_server,
    of_site,
)
from config_server.items import agent_age
from config_server.point_history import AVAILABLE
from config_server.resumptions import resumed_age_s
from config_server.tables import (
    DiskRow,
    MachineRow,
    PolicyRow,
    ProcessServerRow,
    ProtectedItemRow,
    RecoveryPointRow,
)
from config_server.target_disks import churn_limits
from config_server.webhook import WebhookFigures
from replication.tls_identity import Role


@dataclass(frozen=True, slots=True)
class ItemVerdict:
    """``recorded``: as ``notice_health`` has it, worse at once and better after a while."""

    subject: Subject
    machine_id: str
    recorded: Health
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found. ``subjects``: all that exist; what is not among them can be no alert any more."""

    sightings: Sequence[Sighting]
    subjects: frozenset[tuple[str, str]]
    items: Sequence[ItemVerdict]
    churn_of_day: Mapping[str, int]
    """Bytes, by the process server's name."""
    state_free_bytes: int | None
    webhook: WebhookFigures | None


OF_THE_WRITER: Final = ("writer-silent", "answer-refused")
"""Conditions of items that are the writer's: one alert of the site."""

CERTIFICATE: Final = "certificate-expires"


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What this machine says itself; None: its file system does not say."""

    certificates: Mapping[str, Condition | None]
    """What is wrong with what it holds itself and with what the store shows, by whose it is."""
    state_free_bytes: int | None
    state_total_bytes: int | None


@dataclass(frozen=True, slots=True)
class AlarmFacts:
    """What does not change from look to look."""

    heartbeat: HeartbeatSettings
    settings: AlertSettings
    ages: Ages
    state_dir: Path
    certificates: Callable[[], Mapping[str, Condition | None]]

    async def of_this_machine(self) -> MachineFacts:
        """Read from its files."""
        return await asyncio.to_thread(self._of_this_machine)

    def _of_this_machine(self) -> MachineFacts:
        certificates = self.certificates()
        try:
            found = os.statvfs(self.state_dir)
        except OSError:
            return MachineFacts(certificates, None, None)
        return MachineFacts(certificates, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    async def look(
        self,
        session: AsyncSession,
        verdicts: Sequence[tuple[ProtectedItemRow, Verdict]],
        store_problem: str | None,
        own: MachineFacts,
        webhook: WebhookFigures | None,
        now_ns: int,
    ) -> Look:
        """Everything that is found now; ``own``: as ``of_this_machine`` says."""
        machines = {machine.id: machine for machine in await session.scalars(select(MachineRow))}
        items = [_item_verdict(item, verdict, machines[item.machine_id]) for item, verdict in verdicts]
        found = [s for item in items for s in sightings_of_item(item.subject, item.verdict.conditions)]
        found += _of_writer([verdict for _, verdict in verdicts])
        found += await self._of_servers(session, [row for row, _ in verdicts], machines)
        rows = list(await session.scalars(select(ProcessServerRow).order_by(ProcessServerRow.hostname)))
        servers = [Subject("process-server", row.id, row.hostname) for row in rows]
        churn = await churn_of_day(session, now_ns)
        found += await self._of_process_servers(session, rows, churn)
        sink = own.certificates.get(Role.SINK.value)
        site = SiteState(
            store_problem=store_problem,
            store_remedy=sink.remedy if sink is not None and sink.code == "certificate-ended" else None,
            servers=len(items),
            state_free_bytes=own.state_free_bytes,
            state_total_bytes=own.state_total_bytes,
            webhook_late_s=None if webhook is None else webhook.oldest_waiting_s,
            webhook_problem=None if webhook is None else webhook.problem,
        )
        found += of_site(site)
        holders = {row.machine_id: item.subject for (row, _), item in zip(verdicts, items, strict=True)}
        holders |= {subject.identifier: subject for subject in servers}
        found += await _of_certificates(session, holders, now_ns)
        held = {whose: Subject("site", whose, whose) for whose in own.certificates}
        found += [_of_certificate(held[whose], wrong) for whose, wrong in own.certificates.items() if wrong is not None]
        subjects = [*(item.subject for item in items), *servers, SITE, *held.values()]
        return Look(
            sightings=found,
            subjects=frozenset((subject.kind, subject.identifier) for subject in subjects),
            items=items,
            churn_of_day={row.hostname: churn.get(row.id, 0) for row in rows},
            state_free_bytes=own.state_free_bytes,
            webhook=webhook,
        )

    async def _of_servers(
        self, session: AsyncSession, rows: Sequence[ProtectedItemRow], machines: Mapping[str, MachineRow]
    ) -> list[Sighting]:
        policies = {policy.id: policy for policy in await session.scalars(select(PolicyRow))}
        churn: dict[str, list[DiskChurn]] = {}
        limits = await churn_limits(session, self.settings.disk_churn_limit_bytes)
        rates = await session.execute(
            select(DiskChurnRow.item_id, DiskRow.id, DiskRow.path, DiskChurnRow.rate_bytes_per_s)
            .join(DiskRow, DiskRow.id == DiskChurnRow.disk_id)
            .order_by(DiskRow.path)
        )
        for item_id, disk_id, path, rate in rates:
            churn.setdefault(item_id, []).append(DiskChurn(path, rate, limits[disk_id]))
        found: list[Sighting] = []
        for row in rows:
            machine, policy = machines[row.machine_id], policies.get(row.policy_id)
            if policy is None:
                continue  # the item has ended since its verdict, and its policy was deleted
            heard = agent_age(machine, self.ages)
            is_heard = heard is not None and heard.is_within(self.heartbeat.agent_timeout_s)
            disks = churn.get(row.id, [])
            state = ServerState(
                subject=Subject("server", row.id, machine.hostname),
                disks=tuple(disks if is_heard else (replace(disk, bytes_per_s=None) for disk in disks)),
                server_limit_bytes=self.settings.server_churn_limit_bytes,
                app_interval_s=policy.app_consistent_interval_s,
                app_point_age_s=await self._app_point_age_s(session, row, policy),
            )
            found += of_server(state)
        return found

    async def _app_point_age_s(self, session: AsyncSession, row: ProtectedItemRow, policy: PolicyRow) -> float | None:
        """Since the newest app-consistent point, or since there could have been one (a pause is over); None: there need be none."""
        if policy.app_consistent_interval_s is None or row.seeded_ns is None:
            return None
        if not points_are_due(State(row.state), paused=row.paused):
            return None
        newest_ns = await session.scalar(
            select(func.max(RecoveryPointRow.counted_ns)).where(
                RecoveryPointRow.item_id == row.id,
                RecoveryPointRow.state == AVAILABLE,
                RecoveryPointRow.consistency == "app",
            )
        )
        age_s = at_least_s(self.ages.of("app-point", row.id, max(newest_ns or 0, row.seeded_ns))) or 0.0
        return waited_s(age_s, await resumed_age_s(session, row.id, self.ages))

    async def _of_process_servers(
        self, session: AsyncSession, rows: Sequence[ProcessServerRow], churn: Mapping[str | None, int]
    ) -> list[Sighting]:
        loads = {row.process_server_id: row for row in await session.scalars(select(ProcessServerLoadRow))}
        found: list[Sighting] = []
        for row in rows:
            facts = process_servers.health_facts(row, self.heartbeat, self.ages)
            load = loads.get(row.id)
            state = ProcessServerState(
                subject=Subject("process-server", row.id, row.hostname),
                heard_age=facts.heard_age,
                enrolled_age=self.ages.of("process-server-enrolled", row.id, row.enrolled_ns) or Age(0.0),
                timeout_s=facts.timeout_s,
                critical_after_s=self.heartbeat.critical_after_s,
                cpu=None if load is None else load.cpu_fraction,
                memory=None if load is None else load.memory_fraction,
                spool_free_fraction=facts.spool_free_fraction,
                backlog_age_s=facts.backlog_age_s,
                upload_problem=facts.upload_problem,
                churn_day_bytes=churn.get(row.id, 0),
            )
            found += of_process_server(state)
        return found


def _of_certificate(subject: Subject, wrong: Condition) -> Sighting:
    return sighting_of(CERTIFICATE, subject, [wrong])


def _item_verdict(item: ProtectedItemRow, verdict: Verdict, machine: MachineRow) -> ItemVerdict:
    recorded = verdict.health if item.health is None else Health[item.health.upper()]
    return ItemVerdict(Subject("server", item.id, machine.hostname), item.machine_id, recorded, verdict)


def _of_writer(verdicts: Sequence[Verdict]) -> Iterator[Sighting]:
    conditions = [condition for verdict in verdicts for condition in verdict.conditions]
    for code in OF_THE_WRITER:
        alike = sorted((c for c in conditions if c.code == code), key=_worst_first)
        if alike:
            yield sighting_of(code, SITE, alike)


def _worst_first(condition: Condition) -> int:
    return -condition.health


async def _of_certificates(session: AsyncSession, holders: Mapping[str, Subject], now_ns: int) -> list[Sighting]:
    """Of agents whose servers are protected, and of process servers."""
    found = []
    for holder, life in (await lives_in_use(session)).items():
        if holder in holders:
            wrong = certificate_condition(holders[holder].name, life.left_s(now_ns), life.length_s)
            found += [] if wrong is None else [_of_certificate(holders[holder], wrong)]
    return found
