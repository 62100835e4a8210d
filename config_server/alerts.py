"""Alerts as rows: from a row to what is shown, finding one, acknowledging one, telling a change. Called by the API and the reconciler.

A change is told in the transaction that makes it: as an event, and, where a webhook is configured, as a notification in the outbox that
``webhook.py`` empties. So what is told is what happened, whenever this server dies.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final, cast

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.alert_plane import (
    Acknowledgement,
    AcknowledgementRequest,
    AlertState,
    AlertStatus,
    AlertSubject,
    Notification,
)
from config_server.alert_tables import AlertDeliveryRow, AlertRow
from config_server.core.alert_catalogue import rule_of
from config_server.core.alerts import Change, Latch, SubjectKind, is_told
from config_server.core.health import Health
from config_server.events import SYSTEM, Actor, record_event
from config_server.operator_plane import HealthLevel, timestamp
from replication.errors import Conflict, InvalidInput, NotFound

PENDING: Final = "pending"
DELIVERED: Final = "delivered"
GIVEN_UP: Final = "given-up"
MIN_PREFIX: Final = 4
DELIVERIES_KEPT_NS: Final = 7 * 86400 * 10**9
"""What was delivered or given up is looked at for as long as somebody may ask the receiver about it."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """Whether changes are told to a webhook, and what the site is called there."""

    enabled: bool
    site: str


def severity_of(row: AlertRow) -> Health:
    return Health[row.severity.upper()]


def is_acknowledged(row: AlertRow, now_ns: int) -> bool:
    return row.acknowledged_until_ns is not None and row.acknowledged_until_ns > now_ns


def status_of(row: AlertRow) -> AlertStatus:
    """What is shown of an alert."""
    return AlertStatus(
        id=row.id,
        code=row.code,
        severity=cast("HealthLevel", row.severity),
        state=_state(row),
        subject=AlertSubject(kind=cast("SubjectKind", row.subject_kind), id=row.subject_id, name=row.subject_name),
        message=row.message,
        cause=rule_of(row.code).cause,
        remedy=row.remedy,
        first_seen_at=timestamp(row.first_seen_ns),
        last_seen_at=timestamp(row.seen_ns),
        raised_at=None if row.raised_ns is None else timestamp(row.raised_ns),
        changed_at=None if row.changed_ns is None else timestamp(row.changed_ns),
        cleared_at=None if row.cleared_ns is None else timestamp(row.cleared_ns),
        acknowledgement=_acknowledgement(row),
    )


def _state(row: AlertRow) -> AlertState:
    if row.cleared_ns is not None:
        return "cleared"
    if row.raised_ns is None:
        return "pending"
    present = {row.warning_latch, row.critical_latch} & {Latch.SET.value, Latch.RISING.value}
    return "raised" if present else "clearing"


def _acknowledgement(row: AlertRow) -> Acknowledgement | None:
    if row.acknowledged_until_ns is None or row.acknowledged_ns is None:
        return None
    return Acknowledgement(
        by=row.acknowledged_by or "",
        at=timestamp(row.acknowledged_ns),
        until=timestamp(row.acknowledged_until_ns),
        note=row.acknowledged_note or "",
    )


def tell(session: AsyncSession, row: AlertRow, change: Change, actor: Actor, outbox: Outbox, now_ns: int) -> None:
    """Record a change that was made to ``row``, and queue it for the webhook's receiver, if he is to hear it."""
    told = f"{row.severity} {row.code} of {row.subject_name}: {row.message}"
    if change is Change.CLEARED:
        told = f"{row.code} of {row.subject_name} is over"
    elif change is Change.ACKNOWLEDGED:
        told += f" (until {timestamp(row.acknowledged_until_ns or now_ns)}: {row.acknowledged_note or 'no note'})"
    record_event(
        session,
        now_ns,
        actor,
        f"alert-{change.value}",
        told,
        machine_id=row.machine_id,
        item_id=row.subject_id if row.subject_kind == "server" else None,
    )
    if not outbox.enabled or not is_told(change, acknowledged=is_acknowledged(row, now_ns)):
        return
    delivery = str(uuid.uuid4())
    document = Notification(
        delivery=delivery, change=change.value, at=timestamp(now_ns), site=outbox.site, alert=status_of(row)
    )
    session.add(
        AlertDeliveryRow(
            id=delivery,
            alert_id=row.id,
            change=change.value,
            document=document.model_dump_json(),
            state=PENDING,
            attempts=0,
            created_ns=now_ns,
        )
    )


async def find_alert(session: AsyncSession, text: str) -> AlertRow:
    """An alert by its identifier or the beginning of it.

    :raises NotFound: if there is none. :raises Conflict: if several begin so. :raises InvalidInput: if it is too short.
    """
    row = await session.get(AlertRow, text)
    if row is not None:
        return row
    if len(text) < MIN_PREFIX or not set(text) <= set("0123456789abcdef-"):
        raise InvalidInput(
            f"cannot tell which alert {text[:64]!r} is",
            hint=f"its identifier, or at least {MIN_PREFIX} characters of it",
        )
    begun = list(await session.scalars(select(AlertRow).where(AlertRow.id.startswith(text)).limit(2)))
    if len(begun) > 1:
        raise Conflict(f"cannot tell which alert {text!r} is: several begin so", hint="give more of it")
    if not begun:
        raise NotFound(f"cannot find the alert {text!r}", hint="`migratectl alerts` lists them")
    return begun[0]


async def acknowledge(
    session: AsyncSession, text: str, request: AcknowledgementRequest, actor: Actor, outbox: Outbox, now_ns: int
) -> AlertRow:
    """Silence a raised alert; once more: with a new end.

    :raises Conflict: if it is not raised, or is over.
    """
    row = await find_alert(session, text)
    if row.raised_ns is None or row.cleared_ns is not None:
        state = "is over" if row.cleared_ns is not None else "is not raised"
        raise Conflict(f"cannot acknowledge {row.code} of {row.subject_name}: it {state}")
    row.acknowledged_by, row.acknowledged_ns, row.acknowledged_note = actor, now_ns, request.note
    row.acknowledged_until_ns = now_ns + int(request.valid_for_s * 1e9)
    tell(session, row, Change.ACKNOWLEDGED, actor, outbox, now_ns)
    return row


async def withdraw_acknowledgement(
    session: AsyncSession, text: str, actor: Actor, outbox: Outbox, now_ns: int
) -> AlertRow:
    """Let an alert speak again. Without an acknowledgement nothing is done."""
    row = await find_alert(session, text)
    if row.acknowledged_until_ns is not None and row.cleared_ns is None:
        end_acknowledgement(session, row, actor, outbox, now_ns)
    return row


def end_acknowledgement(
    session: AsyncSession, row: AlertRow, actor: Actor, outbox: Outbox, now_ns: int, *, is_told: bool = True
) -> None:
    """It counts no more: its time is over, it was withdrawn, or (not told: something worse is) the alert became worse."""
    row.acknowledged_until_ns = None
    if is_told:
        tell(session, row, Change.ACKNOWLEDGEMENT_ENDED, actor, outbox, now_ns)


def end_old_acknowledgement(session: AsyncSession, row: AlertRow, outbox: Outbox, now_ns: int) -> None:
    """Once its time is over."""
    if row.acknowledged_until_ns is not None and row.acknowledged_until_ns <= now_ns:
        end_acknowledgement(session, row, SYSTEM, outbox, now_ns)


async def forget_alerts(session: AsyncSession, before_ns: int, now_ns: int, batch: int) -> int:
    """Delete at most ``batch`` alerts that were over before ``before_ns``, and as many notifications that ended long ago."""
    forgotten = 0
    for key, old in (
        (AlertRow.id, AlertRow.cleared_ns < before_ns),
        (AlertDeliveryRow.sequence, AlertDeliveryRow.ended_ns < max(before_ns, now_ns - DELIVERIES_KEPT_NS)),
    ):
        found = list(await session.scalars(select(key).where(old).limit(batch)))
        if found:
            doomed = delete(key.class_).where(key.in_(found))
            await session.execute(doomed.execution_options(synchronize_session=False))
        forgotten += len(found)
    return forgotten
