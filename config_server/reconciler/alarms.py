"""Alerts: what each look at the site found, turned into alerts that are raised, worse, eased, over. Called by ``reconciler/loop.py``.

Every few seconds ``alarm_facts.py`` says what is found; ``core/alerts.py`` decides; here it is written down. All state is in the
database, ages are of stamps by the clock that nobody sets: a restart neither raises an alert twice nor forgets one. A condition that was on
its way begins anew if nobody looked for ``INTERRUPTED_S``.

For a while after its start this server judges nothing: it has not been listening, so that everybody would seem silent.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.alert_plane import AlertSubject, HealthReason, SiteHealth
from config_server.alert_tables import AlertRow
from config_server.alerts import (
    Outbox,
    end_acknowledgement,
    end_old_acknowledgement,
    is_acknowledged,
    severity_of,
    tell,
)
from config_server.core.age import at_least_s
from config_server.core.alert_catalogue import SHARED, alert_code, rule_of
from config_server.core.alerts import (
    Change,
    Found,
    Latch,
    LatchAt,
    Sighting,
    Standing,
    SubjectKind,
    after_look,
    change_between,
)
from config_server.core.health import Health, Verdict
from config_server.database import Database
from config_server.events import SYSTEM, Clock
from config_server.operator_plane import HealthLevel
from config_server.reconciler.alarm_facts import AlarmFacts, ItemVerdict, Look
from config_server.store_status import StoreStatus
from config_server.tables import ProtectedItemRow
from config_server.webhook import Webhook

INTERRUPTED_S: Final = 120.0
NOTED_EVERY_S: Final = 30.0
"""So often a row learns that it is still seen; what changes its state is written at once."""
JUDGED_LATE_S: Final = 60.0
"""A verdict on the site that is older than this vouches for nothing."""

Key = tuple[str, str, str]


@dataclass(slots=True)
class Judged:
    """The site's health at ``taken_s`` (by the clock that nobody sets; None: not judged yet), and how many alerts are raised."""

    taken_s: float | None = None
    health: Health = Health.WARNING
    reasons: list[HealthReason] = field(default_factory=list)
    raised: dict[tuple[str, str], int] = field(default_factory=dict)
    """By severity and code."""
    look: Look = field(default_factory=lambda: Look([], frozenset(), [], {}, None, None))

    def by_severity(self) -> dict[str, int]:
        """How many alerts are raised."""
        counted: dict[str, int] = {}
        for (severity, _), count in self.raised.items():
            counted[severity] = counted.get(severity, 0) + count
        return counted


class Alarms:
    """``look_around`` once a pass. ``judged`` is the newest verdict on the site."""

    def __init__(
        self,
        database: Database,
        facts: AlarmFacts,
        outbox: Outbox,
        webhook: Webhook | None,
        store: StoreStatus,
        clock: Clock,
        ages: Ages,
    ) -> None:
        self._database = database
        self._facts = facts
        self._outbox = outbox
        self._webhook = webhook
        self._store = store
        self._clock = clock
        self._ages = ages
        self._started_s: float | None = None
        self.judged = Judged()

    async def look_around(self, verdicts: Sequence[tuple[ProtectedItemRow, Verdict]]) -> None:
        """Turn what is found into alerts, durable on return."""
        look = await self._look(verdicts)
        if await self._write(look) and self._webhook is not None:
            self._webhook.wake()

    async def look_on(self, verdicts: Sequence[tuple[ProtectedItemRow, Verdict]]) -> None:
        """What a server that stands by does: it raises nothing, but judges by the alerts that the leader has raised."""
        look = await self._look(verdicts)
        async with self._database.read() as session:
            rows = await session.scalars(select(AlertRow).where(AlertRow.cleared_ns.is_(None)))
            self.judged = self._judge(list(rows), look)

    async def _look(self, verdicts: Sequence[tuple[ProtectedItemRow, Verdict]]) -> Look:
        own = await self._facts.of_this_machine()
        async with self._database.read() as session:
            webhook = None if self._webhook is None else await self._webhook.figures(session)
            return await self._facts.look(session, verdicts, self._store.problem, own, webhook, self._clock())

    async def _write(self, look: Look) -> bool:
        """Returns whether something was told."""
        if self._started_s is None:
            self._started_s = self._ages.monotonic_s()
        told = False
        async with self._database.write() as session:
            rows = await _open_rows(session)
            if self._ages.monotonic_s() - self._started_s >= self._facts.settings.settle_s:
                told = await self._follow(session, rows, look)
                rows = await _open_rows(session)
            judged = self._judge(list(rows.values()), look)
        self.judged = judged
        return told

    async def _follow(self, session: AsyncSession, rows: Mapping[Key, AlertRow], look: Look) -> bool:
        now_ns, told = self._clock(), False
        found: dict[Key, Sighting] = {(s.code, s.subject.kind, s.subject.identifier): s for s in look.sightings}
        machines = {item.subject.identifier: item.machine_id for item in look.items}
        for key, row in rows.items():
            exists = (row.subject_kind, row.subject_id) in look.subjects
            if exists:
                end_old_acknowledgement(session, row, self._outbox, now_ns)
            told |= await self._turn(session, row, found.get(key), exists, now_ns)
        for key in found.keys() - rows.keys():
            sighting = found[key]
            if sighting.is_present:
                row = _new_row(sighting, machines.get(sighting.subject.identifier), now_ns)
                session.add(row)
                told |= await self._turn(session, row, sighting, True, now_ns)
        await session.flush()
        return told

    async def _turn(
        self, session: AsyncSession, row: AlertRow, sighting: Sighting | None, exists: bool, now_ns: int
    ) -> bool:
        """One row, one look; returns whether something was told."""
        before = severity_of(row)
        standing = self._standing(row)
        looked_s = at_least_s(self._ages.of("alert-looked", row.id, row.looked_ns)) or 0.0
        after = Standing()
        if exists:
            warning, critical = (sighting.warning, sighting.critical) if sighting else (Found.ABSENT, Found.ABSENT)
            after = after_look(standing, warning, critical, rule_of(row.code), interrupted=looked_s > INTERRUPTED_S)
        _write_latches(row, standing, after, now_ns)
        change = change_between(before, after.severity)
        if sighting is not None and (change is not None or looked_s >= NOTED_EVERY_S) and sighting.is_present:
            row.message, row.remedy, row.seen_ns = sighting.message, sighting.remedy, now_ns
        if change is not None or looked_s >= NOTED_EVERY_S or after != standing:
            row.looked_ns = now_ns
        if change is None:
            if after.is_calm and row.raised_ns is None:
                await session.delete(row)
            return False
        row.changed_ns = now_ns
        if change is Change.CLEARED:
            row.cleared_ns = now_ns
        else:
            row.severity = after.severity.name.lower()
        if change is Change.RAISED:
            row.raised_ns = now_ns
        if change is Change.WORSENED and row.acknowledged_until_ns is not None:
            end_acknowledgement(session, row, SYSTEM, self._outbox, now_ns, is_told=False)
        tell(session, row, change, SYSTEM, self._outbox, now_ns)
        return True

    def _standing(self, row: AlertRow) -> Standing:
        def at(level: str, latch: str, since_ns: int) -> LatchAt:
            since_s = at_least_s(self._ages.of(f"alert-{level}", row.id, since_ns)) or 0.0
            return LatchAt(Latch(latch), since_s)

        return Standing(
            at("warning", row.warning_latch, row.warning_since_ns),
            at("critical", row.critical_latch, row.critical_since_ns),
        )

    def _judge(self, rows: Sequence[AlertRow], look: Look) -> Judged:
        """The worst of all alerts and all items' health, with every reason."""
        now_ns = self._clock()
        judged = Judged(taken_s=self._ages.monotonic_s(), health=Health.HEALTHY, look=look)
        raised = [row for row in rows if row.raised_ns is not None and row.cleared_ns is None]
        for row in raised:
            judged.raised[row.severity, row.code] = judged.raised.get((row.severity, row.code), 0) + 1
            judged.reasons.append(_reason_of_row(row, now_ns))
        known = {(row.subject_id, row.code) for row in raised} | {
            ("", row.code) for row in raised if row.code in SHARED
        }
        for item in look.items:
            judged.reasons += _reasons_of_item(item, known)
        judged.health = max((Health[r.health.upper()] for r in judged.reasons), default=Health.HEALTHY)
        judged.reasons.sort(key=lambda reason: -Health[reason.health.upper()])
        return judged

    def health(self) -> SiteHealth:
        """As last judged; if that is too long ago, this itself is critical."""
        judged = self.judged
        if judged.taken_s is None:
            reason = _own_reason("warning", "not-judged-yet", "this server was just started", "wait some seconds")
            return SiteHealth(health="warning", age_s=None, reasons=[reason])
        age_s = self._ages.monotonic_s() - judged.taken_s
        reasons, health = judged.reasons, judged.health
        if age_s > JUDGED_LATE_S:
            message = f"this server has not looked at its site for {age_s:.0f} s"
            reasons = [_own_reason("critical", "not-judged", message, "see its log and /healthz"), *reasons]
            health = Health.CRITICAL
        return SiteHealth(health=_level(health), age_s=age_s, reasons=reasons)


async def _open_rows(session: AsyncSession) -> dict[Key, AlertRow]:
    rows = await session.scalars(select(AlertRow).where(AlertRow.cleared_ns.is_(None)))
    return {(row.code, row.subject_kind, row.subject_id): row for row in rows}


def _new_row(sighting: Sighting, machine_id: str | None, now_ns: int) -> AlertRow:
    return AlertRow(
        id=str(uuid.uuid4()),
        code=sighting.code,
        subject_kind=sighting.subject.kind,
        subject_id=sighting.subject.identifier,
        subject_name=sighting.subject.name,
        machine_id=machine_id,
        severity=Health.HEALTHY.name.lower(),
        message=sighting.message,
        remedy=sighting.remedy,
        warning_latch=Latch.CALM.value,
        warning_since_ns=now_ns,
        critical_latch=Latch.CALM.value,
        critical_since_ns=now_ns,
        first_seen_ns=now_ns,
        seen_ns=now_ns,
        looked_ns=now_ns,
    )


def _write_latches(row: AlertRow, before: Standing, after: Standing, now_ns: int) -> None:
    if after.warning is not before.warning:
        row.warning_latch, row.warning_since_ns = after.warning.latch.value, now_ns
    if after.critical is not before.critical:
        row.critical_latch, row.critical_since_ns = after.critical.latch.value, now_ns


def _level(health: Health) -> HealthLevel:
    return cast("HealthLevel", health.name.lower())


def _reason_of_row(row: AlertRow, now_ns: int) -> HealthReason:
    return HealthReason(
        health=cast("HealthLevel", row.severity),
        code=row.code,
        subject=AlertSubject(kind=cast("SubjectKind", row.subject_kind), id=row.subject_id, name=row.subject_name),
        message=row.message,
        remedy=row.remedy,
        alert=row.id,
        acknowledged=is_acknowledged(row, now_ns),
    )


def _reasons_of_item(item: ItemVerdict, known: set[tuple[str, str]]) -> list[HealthReason]:
    """Conditions of the moment that are no alerts (yet), and the recorded health that is worse than what is left of its reasons."""
    subject = AlertSubject(kind=item.subject.kind, id=item.subject.identifier, name=item.subject.name)
    reasons = [
        HealthReason(
            health=_level(condition.health),
            code=condition.code,
            subject=subject,
            message=condition.message,
            remedy=condition.remedy,
            alert=None,
            acknowledged=False,
        )
        for condition in item.verdict.conditions
        if (item.subject.identifier, alert_code(condition.code)) not in known and ("", condition.code) not in known
    ]
    if item.recorded > item.verdict.health:
        message = f"was {_level(item.recorded)} until less than a minute ago"
        reasons.append(
            HealthReason(
                health=_level(item.recorded),
                code="recovering",
                subject=subject,
                message=message,
                remedy="wait: it counts as better when it has been so for a minute",
                alert=None,
                acknowledged=False,
            )
        )
    return reasons


def _own_reason(health: HealthLevel, code: str, message: str, remedy: str) -> HealthReason:
    subject = AlertSubject(kind="site", id="", name="site")
    return HealthReason(
        health=health, code=code, subject=subject, message=message, remedy=remedy, alert=None, acknowledged=False
    )
