"""Commands on installations of the agent over SSH: list, cancel; and what ``protect`` does for a server without an agent.

Called by ``cli.py`` and ``item_orders.py``.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from config_server.discovery_plane import InstallationRequest, InstallationStatus
from config_server.migratectl.connection import ConfigServer, WaitTimedOut, path_part
from config_server.migratectl.discovery_commands import read_credentials
from config_server.migratectl.invocation import Invocation, json_option, pass_invocation
from config_server.migratectl.rendering import Cell, coloured, size, table
from config_server.migratectl.showing import show
from config_server.operator_plane import Page
from replication.errors import Refused
from replication.service.console import make_console
from replication.terminal_text import printable

POLL_S = 0.5


class InstallationFailed(Refused):
    """The agent was not installed; the message says why."""

    code = "installation-failed"


def installation_request(
    disks: tuple[str, ...],
    policy: str,
    user: str | None,
    process_server: str | None,
    key_file: Path | None,
    key_passphrase_file: Path | None,
    password_file: Path | None,
    sudo_password_file: Path | None,
) -> InstallationRequest:
    """What to ask for a server without an agent.

    :raises SettingsError: see ``read_credentials``.
    """
    return InstallationRequest(
        credentials=read_credentials(key_file, key_passphrase_file, password_file, sudo_password_file),
        user=user,
        process_server=process_server,
        disks=list(disks) or None,
        policy=policy,
    )


def begin_installation(
    invocation: Invocation, server: str, request: InstallationRequest, *, as_json_wanted: bool
) -> None:
    """Begin an installation and say so."""
    path = f"/servers/{path_part(server)}/installation"
    status = invocation.run(lambda connection: connection.send("POST", path, InstallationStatus, request))
    show(
        status,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(
            f"installation {status.id} on {status.server} started; `migratectl installations` shows it"
        ),
    )


async def installed_and_protected(
    connection: ConfigServer,
    server: str,
    request: InstallationRequest,
    timeout_s: float | None,
    *,
    quiet: bool,
) -> bytes:
    """Begin an installation and wait for its end; returns the job that enables replication, as it is answered.

    :raises InstallationFailed: if it failed. :raises WaitTimedOut: it goes on.
    """
    path = f"/servers/{path_part(server)}/installation"
    status = await connection.send("POST", path, InstallationStatus, request)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    console, shown = make_console(), ""
    while status.ended_at is None:
        line = _line(status)
        if not quiet and line != shown:
            console.print(line, highlight=False, markup=False)
            shown = line
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimedOut(
                f"cannot wait longer for the installation {status.id}: it is {status.state}",
                hint="it goes on; `migratectl installations` shows it",
            )
        await asyncio.sleep(POLL_S)
        status = await connection.get(f"/installations/{status.id}", InstallationStatus)
    if status.job is None:
        problem = status.problem
        raise InstallationFailed(
            f"{status.server}: {status.state}" if problem is None else problem.message,
            hint=None if problem is None else problem.hint,
        )
    return await connection.ask("GET", f"/jobs/{status.job}")


def _line(status: InstallationStatus) -> str:
    counted = f", {size(status.done_bytes)} of {size(status.total_bytes)}" if status.total_bytes else ""
    return f"install {status.server}: {status.state}" + (f" ({status.message})" if status.message else "") + counted


@click.command()
@json_option
@pass_invocation
def installations(invocation: Invocation, as_json_wanted: bool) -> None:
    """List the newest installations of agents over SSH."""
    page = invocation.run(lambda server: server.get("/installations", Page[InstallationStatus]))
    rows: list[list[Cell]] = [
        [
            row.id,
            row.server,
            coloured(row.state),
            row.message if row.problem is None else row.problem.message,
            "" if row.problem is None else row.problem.hint or "",
            row.process_server,
            row.created_at,
        ]
        for row in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(
            table("INSTALLATION", "SERVER", "STATE", "MESSAGE", "REMEDY", "PROCESS SERVER", "STARTED", rows=rows)
        ),
    )


@click.command("cancel-installation")
@click.argument("installation")
@pass_invocation
def cancel_installation(invocation: Invocation, installation: str) -> None:
    """End INSTALLATION and erase its credentials; what its installer has begun on the server it may still finish."""
    path = f"/installations/{path_part(installation)}/cancellation"
    status = invocation.run(lambda server: server.send("POST", path, InstallationStatus))
    click.echo(printable(f"installation on {status.server}: {status.state}"))
