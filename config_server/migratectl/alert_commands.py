"""Commands on alerts: health, alerts, acknowledge-alert, test-webhook. Called by ``cli.py``."""

from __future__ import annotations

import sys
from typing import Final

import click
from rich.console import Console

from config_server.alert_plane import AcknowledgementRequest, AlertStatus, HealthReason, SiteHealth, WebhookTrial
from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.invocation import EXIT_FAILED, Invocation, json_option, pass_invocation
from config_server.migratectl.rendering import Cell, coloured, table
from config_server.migratectl.showing import show
from config_server.operator_plane import Page
from replication.settings import parse_duration

EXIT_WARNING: Final = 10
EXIT_CRITICAL: Final = 11
SHORT_ID: Final = 8
_EXITS: Final = {"healthy": 0, "warning": EXIT_WARNING, "critical": EXIT_CRITICAL}


@click.command()
@json_option
@pass_invocation
def health(invocation: Invocation, as_json_wanted: bool) -> None:
    """The worst of all alerts and items, with every reason; exits 10 on a warning, 11 if it is critical."""
    found = invocation.run(lambda server: server.get("/health", SiteHealth))

    def tell(console: Console) -> None:
        console.print(coloured(found.health))
        if found.reasons:
            rows = [_reason_row(reason) for reason in found.reasons]
            console.print(table("HEALTH", "ABOUT", "CODE", "WHY", "REMEDY", "ALERT", rows=rows))

    show(found, as_json_wanted=as_json_wanted, otherwise=tell)
    sys.exit(_EXITS[found.health])


def _reason_row(reason: HealthReason) -> list[Cell]:
    alert = "-" if reason.alert is None else reason.alert[:SHORT_ID]
    return [
        coloured(reason.health),
        reason.subject.name,
        reason.code,
        reason.message,
        reason.remedy,
        f"{alert} (acknowledged)" if reason.acknowledged else alert,
    ]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also those that are over, or have not lasted long enough.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@json_option
@pass_invocation
def alerts(invocation: Invocation, everything: bool, limit: int, as_json_wanted: bool) -> None:
    """List the raised alerts, newest first."""
    page = invocation.run(
        lambda server: server.get("/alerts", Page[AlertStatus], all="true" if everything else None, limit=limit)
    )

    def tell(console: Console) -> None:
        if not page.items:
            console.print("no alerts")
            return
        columns = ("ALERT", "SEVERITY", "STATE", "ABOUT", "CODE", "SINCE", "WHY", "REMEDY", "ACKNOWLEDGED")
        console.print(table(*columns, rows=[_alert_row(alert) for alert in page.items]))

    show(page, as_json_wanted=as_json_wanted, otherwise=tell)


def _alert_row(alert: AlertStatus) -> list[Cell]:
    taken = alert.acknowledgement
    return [
        alert.id[:SHORT_ID],
        coloured(alert.severity) if alert.raised_at else "-",
        alert.state,
        alert.subject.name,
        alert.code,
        alert.raised_at or alert.first_seen_at,
        alert.message,
        alert.remedy,
        "-" if taken is None else f"{taken.by} until {taken.until}" + (f": {taken.note}" if taken.note else ""),
    ]


@click.command("acknowledge-alert")
@click.argument("alert")
@click.option("--for", "valid_for", default="8 h", show_default=True, help="How long it is silent; at most 30 d.")
@click.option("--note", default="", help="Why, or who works on it.")
@click.option("--withdraw", is_flag=True, help="Let it speak again now.")
@json_option
@pass_invocation
def acknowledge_alert(
    invocation: Invocation, alert: str, valid_for: str, note: str, withdraw: bool, as_json_wanted: bool
) -> None:
    """Take ALERT on (its identifier, or the beginning): it is silent for a while, unless it becomes worse."""
    path = f"/alerts/{path_part(alert)}/acknowledgement"

    async def act(server: ConfigServer) -> AlertStatus:
        if withdraw:
            await server.order("DELETE", path)
            return await server.get(f"/alerts/{path_part(alert)}", AlertStatus)
        return await server.send("POST", path, AlertStatus, request)

    request = _request(valid_for, note)
    found = invocation.run(act)
    taken = found.acknowledgement
    told = "speaks again" if taken is None else f"is silent until {taken.until}"
    show(
        found,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{found.code} of {found.subject.name} {told}"),
    )


def _request(valid_for: str, note: str) -> AcknowledgementRequest:
    options = {"valid_for_s": ("--for", "a time up to 30 d"), "note": ("--note", "a text of up to 500 characters")}
    return checked(AcknowledgementRequest, {"valid_for_s": parse_duration(valid_for, "--for"), "note": note}, options)


@click.command("test-webhook")
@json_option
@pass_invocation
def test_webhook(invocation: Invocation, as_json_wanted: bool) -> None:
    """Send a test notification to the configured receiver now; exits 1 if it was not taken."""
    found = invocation.run(lambda server: server.send("POST", "/webhook-trials", WebhookTrial))
    told = f"taken ({found.status})" if found.delivered else f"not taken: {found.problem}"
    show(
        found,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{found.receiver}: {told}, {found.duration_s:.2f} s"),
    )
    if not found.delivered:
        sys.exit(EXIT_FAILED)


COMMANDS: Final = (health, alerts, acknowledge_alert, test_webhook)
