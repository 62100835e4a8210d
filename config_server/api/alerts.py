"""Alerts, the site's health, the webhook's trial. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from pydantic import Field
from sqlalchemy import select

from config_server.alert_plane import AcknowledgementRequest, AlertStatus, SiteHealth, WebhookTrial
from config_server.alert_tables import AlertRow
from config_server.alerts import acknowledge, find_alert, status_of, withdraw_acknowledgement
from config_server.api.routes import Access, Call, Query, Route
from config_server.operator_plane import DEFAULT_PAGE, MAX_PAGE, Page
from replication.errors import InvalidInput, NotFound


class AlertsQuery(Query):
    """``all``: also those that are over, and conditions that have not lasted long enough. Newest first; ``after``: a former ``next``."""

    all: bool = False
    after: str | None = Field(default=None, max_length=36)
    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=MAX_PAGE)


async def list_alerts(call: Call) -> Page[AlertStatus]:
    query = call.parameters(AlertsQuery)
    wanted = select(AlertRow).order_by(AlertRow.first_seen_ns.desc(), AlertRow.id.desc()).limit(query.limit + 1)
    if not query.all:
        wanted = wanted.where(AlertRow.cleared_ns.is_(None), AlertRow.raised_ns.is_not(None))
    async with call.site.database.read() as session:
        if query.after is not None:
            last = await session.get(AlertRow, query.after)
            if last is None:
                raise InvalidInput("cannot go on after this alert: it is forgotten", hint="begin again without `after`")
            wanted = wanted.where(
                (AlertRow.first_seen_ns < last.first_seen_ns)
                | ((AlertRow.first_seen_ns == last.first_seen_ns) & (AlertRow.id < last.id))
            )
        rows = list(await session.scalars(wanted))
    shown = rows[: query.limit]
    return Page[AlertStatus](
        items=[status_of(row) for row in shown], next=shown[-1].id if len(rows) > query.limit else None
    )


async def get_alert(call: Call) -> AlertStatus:
    async with call.site.database.read() as session:
        return status_of(await find_alert(session, call.path["alert"]))


async def post_acknowledgement(call: Call) -> AlertStatus:
    site, request = call.site, call.body(AcknowledgementRequest)
    async with site.database.write() as session:
        row = await acknowledge(session, call.path["alert"], request, call.actor, site.outbox, site.clock())
        status = status_of(row)
    if site.webhook is not None:
        site.webhook.wake()
    return status


async def delete_acknowledgement(call: Call) -> AlertStatus:
    site = call.site
    async with site.database.write() as session:
        row = await withdraw_acknowledgement(session, call.path["alert"], call.actor, site.outbox, site.clock())
        status = status_of(row)
    if site.webhook is not None:
        site.webhook.wake()
    return status


async def get_health(call: Call) -> SiteHealth:
    return call.site.alarms.health()


async def try_webhook(call: Call) -> WebhookTrial:
    if call.site.webhook is None:
        raise NotFound(
            "cannot try the webhook: none is configured",
            hint="the section `webhook` of the configuration server's file",
        )
    return await call.site.webhook.try_out()


_NO_SUCH: Final = {404: "no such alert", 409: "several begin so"}

ROUTES: Final = (
    Route(
        "GET",
        "/health",
        get_health,
        Access.READER,
        "The site's health: the worst of all alerts and items, with every reason and remedy",
        "alerts",
        answer=SiteHealth,
    ),
    Route(
        "GET",
        "/alerts",
        list_alerts,
        Access.READER,
        "Raised alerts, newest first",
        "alerts",
        query=AlertsQuery,
        answer=Page[AlertStatus],
    ),
    Route(
        "GET",
        "/alerts/{alert}",
        get_alert,
        Access.READER,
        "One alert, by its identifier or the beginning of it",
        "alerts",
        answer=AlertStatus,
        answers=_NO_SUCH,
    ),
    Route(
        "POST",
        "/alerts/{alert}/acknowledgement",
        post_acknowledgement,
        Access.OPERATOR,
        "Take a raised alert on: it is silent for a while, unless it becomes worse",
        "alerts",
        body=AcknowledgementRequest,
        answer=AlertStatus,
        answers={404: "no such alert", 409: "it is not raised, or several begin so"},
    ),
    Route(
        "DELETE",
        "/alerts/{alert}/acknowledgement",
        delete_acknowledgement,
        Access.OPERATOR,
        "Let an acknowledged alert speak again",
        "alerts",
        answer=AlertStatus,
        answers=_NO_SUCH,
    ),
    Route(
        "POST",
        "/webhook-trials",
        try_webhook,
        Access.OPERATOR,
        "Send a test notification to the configured receiver now",
        "alerts",
        answer=WebhookTrial,
        answers={404: "no webhook is configured"},
    ),
)
