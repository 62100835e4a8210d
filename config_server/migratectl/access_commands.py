"""Commands on who may come in: certificates, tokens, the audit log. Called by ``cli.py``."""

from __future__ import annotations

import sys
from typing import Final

import click
from rich.console import Console

from config_server.audit_plane import AuditEntry, AuditVerdict
from config_server.certificate_plane import (
    TOKEN_NAMES,
    TOKEN_TIMES,
    CertificateStatus,
    RevocationRequest,
    RevokedCertificates,
    TokenGrant,
    TokenRequest,
    TokenRole,
    TokenStatus,
)
from config_server.core.roles import READER, ROLES
from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import ConfigServer, as_json, path_part
from config_server.migratectl.invocation import (
    EXIT_FAILED,
    Invocation,
    confirm_option,
    confirmed,
    fail,
    json_option,
    pass_invocation,
)
from config_server.migratectl.rendering import Cell, table
from config_server.migratectl.showing import show
from config_server.operator_plane import Page
from replication.errors import SettingsError
from replication.settings import parse_duration
from replication.terminal_text import one_line

EXPORT_PAGE = 1000
REVOCATION_OPTIONS: Final = {
    "serial": ("--serial", "a serial number as `certificates` shows it"),
    "holder": ("--holder", "a name or identifier"),
    "reason": ("--reason", "a text of up to 500 characters"),
}
"""Field of ``RevocationRequest`` → option, and what it takes."""


@click.command()
@click.option("--holder", default=None, help="Only of this server or process server (name or identifier).")
@click.option("--all", "everything", is_flag=True, help="Also revoked and ended ones.")
@json_option
@pass_invocation
def certificates(invocation: Invocation, holder: str | None, everything: bool, as_json_wanted: bool) -> None:
    """List the certificates of agents and process servers, newest first of each."""
    page = invocation.run(
        lambda server: server.get(
            "/certificates", Page[CertificateStatus], holder=holder, all="true" if everything else None
        )
    )
    rows: list[list[Cell]] = [
        [row.hostname or row.holder, row.role, row.issued_at, row.expires_at, _standing(row), row.serial]
        for row in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(
            table("HOLDER", "ROLE", "ISSUED", "ENDS", "STANDING", "SERIAL NUMBER", rows=rows)
        ),
    )


def _standing(row: CertificateStatus) -> str:
    if row.revoked_at is not None:
        return f"revoked {row.revoked_at}"
    return "never shown" if row.used_at is None else "in use"


@click.command("revoke-certificate")
@click.option("--serial", default=None, help="One certificate, by the serial number that `certificates` shows.")
@click.option("--holder", default=None, help="Every one of this server or process server (name or identifier).")
@click.option("--reason", default="", help="Stands in the event.")
@confirm_option
@json_option
@pass_invocation
def revoke_certificate(
    invocation: Invocation, serial: str | None, holder: str | None, reason: str, yes: bool, as_json_wanted: bool
) -> None:
    """Refuse a certificate from now on: here at once, at process servers with their next heartbeat; what is open under it ends."""
    if (serial is None) == (holder is None):
        fail(SettingsError("cannot tell which certificate is meant", hint="give --serial or --holder"))
    request = checked(RevocationRequest, {"serial": serial, "holder": holder, "reason": reason}, REVOCATION_OPTIONS)
    what = f"the certificate {serial}" if holder is None else f"every certificate of {holder}"
    confirmed(f"Revoke {what}? Its holder is cut off until it enrols anew.", yes=yes)
    found = invocation.run(
        lambda server: server.send("POST", "/certificates/revocations", RevokedCertificates, request)
    )
    show(
        found,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"revoked: {', '.join(found.serials) or 'it had none'}"),
    )


@click.command()
@json_option
@pass_invocation
def tokens(invocation: Invocation, as_json_wanted: bool) -> None:
    """List the valid tokens, without their secrets."""
    page = invocation.run(lambda server: server.get("/tokens", Page[TokenStatus]))
    rows: list[list[Cell]] = [
        [
            row.id,
            row.name,
            row.role,
            row.created_at,
            row.created_by or "-",
            row.expires_at or "never",
            "this" if row.own else "",
        ]
        for row in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(table("ID", "NAME", "ROLE", "CREATED", "BY", "ENDS", "", rows=rows)),
    )


@click.command("create-token")
@click.option("--name", required=True, help="Whose it is; stands in events and in the audit log.")
@click.option("--role", type=click.Choice(ROLES), default=READER, show_default=True, help="What it may do.")
@click.option("--valid-for", default="365 d", show_default=True, help="Such as 8 h or 90 d; at most five years.")
@json_option
@pass_invocation
def create_token(invocation: Invocation, name: str, role: TokenRole, valid_for: str, as_json_wanted: bool) -> None:
    """Print a new token; it is told this once."""
    values = {"name": name, "role": role, "valid_for_s": parse_duration(valid_for, "--valid-for")}
    request = checked(
        TokenRequest, values, {"name": ("--name", TOKEN_NAMES), "valid_for_s": ("--valid-for", TOKEN_TIMES)}
    )
    grant = invocation.run(lambda server: server.send("POST", "/tokens", TokenGrant, request))
    show(grant, as_json_wanted=as_json_wanted, otherwise=lambda _console: click.echo(grant.token))


@click.command("revoke-token")
@click.argument("identifier")
@pass_invocation
def revoke_token(invocation: Invocation, identifier: str) -> None:
    """Revoke a token by its public identifier; the last administrator's is not revoked."""
    invocation.run(lambda server: server.order("DELETE", f"/tokens/{path_part(identifier)}"))
    click.echo(f"token {identifier} is revoked")


@click.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--actor", default=None, help="Only of this one, such as operator:alice.")
@click.option("--export", is_flag=True, help="All that is kept, oldest first, one JSON document a line.")
@click.option("--after", default=0, type=click.IntRange(0), help="With --export: only what came after this record.")
@click.option(
    "--verify",
    is_flag=True,
    help="Check that no record was changed, put in, or taken out between two others; exits 1 if one was. "
    "Whether the newest are all there is shown by the last digest that you noted down before.",
)
@json_option
@pass_invocation
def audit(
    invocation: Invocation, limit: int, actor: str | None, export: bool, after: int, verify: bool, as_json_wanted: bool
) -> None:
    """Who asked to change what, from where, with which outcome, and what was refused; oldest first."""
    if verify:
        verdict = invocation.run(lambda server: server.get("/audit/verification", AuditVerdict))
        click.echo(as_json(verdict) if as_json_wanted else _verdict(verdict))
        sys.exit(0 if verdict.whole else EXIT_FAILED)
    if export:
        invocation.run(lambda server: _export(server, actor, after))
        return
    page = invocation.run(lambda server: server.get("/audit", Page[AuditEntry], limit=limit, actor=actor))

    def tell(console: Console) -> None:
        for entry in page.items:
            console.print(one_line(_line(entry)), soft_wrap=True)

    show(page, as_json_wanted=as_json_wanted, otherwise=tell)


def _verdict(verdict: AuditVerdict) -> str:
    if not verdict.whole:
        return f"the audit log is broken at record {verdict.first_broken}"
    if verdict.last is None:
        return "the audit log has no records"
    return (
        f"each of {verdict.records} records is as it was written and follows from the one before; "
        f"the last is {verdict.last} with the digest\n{verdict.last_digest}\n"
        "Note that down elsewhere: while `migratectl audit --export` still has this digest, no record up to it was taken out."
    )


async def _export(server: ConfigServer, actor: str | None, after: int) -> None:
    while True:
        page = await server.get("/audit", Page[AuditEntry], after=after, limit=EXPORT_PAGE, actor=actor)
        for entry in page.items:
            click.echo(entry.model_dump_json())
        if len(page.items) < EXPORT_PAGE:
            return
        after = page.items[-1].id


def _line(entry: AuditEntry) -> str:
    outcome = f"{entry.status}" + (f" {entry.detail}" if entry.detail else "")
    more = f" (and {entry.repeats} times before)" if entry.repeats else ""
    return f"{entry.at}  {entry.actor} from {entry.remote}: {entry.action.split()[0]} {entry.target} → {outcome}{more}"
