"""Commands on process servers: list, drain, undrain, remove, and switching an item to another one. Called by ``cli.py``."""

from __future__ import annotations

import asyncio
import time

import click
from rich.console import Console

from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import ConfigServer, WaitTimedOut, path_part
from config_server.migratectl.invocation import Invocation, confirm_option, confirmed, json_option, pass_invocation
from config_server.migratectl.rendering import Cell, heard_ago, percent, rate, size, table
from config_server.migratectl.showing import show
from config_server.migratectl.upload_limits_commands import limit_cells
from config_server.operator_plane import ItemStatus, Page, ProcessServerStatus, SwitchRequest
from replication.service.console import make_console
from replication.settings import parse_duration

POLL_S = 1.0


def _path(server: str, verb: str = "") -> str:
    return f"/process-servers/{path_part(server)}{verb}"


@click.command("process-servers")
@json_option
@pass_invocation
def process_servers(invocation: Invocation, as_json_wanted: bool) -> None:
    """List the process servers with their load, and the items that wait for another one."""
    page = invocation.run(lambda server: server.get("/process-servers", Page[ProcessServerStatus]))

    def tell(console: Console) -> None:
        columns = (
            "PROCESS SERVER",
            "ADDRESS",
            "STATE",
            "HEARD AGO",
            "ITEMS",
            "LOAD",
            "SPOOL",
            "BACKLOG",
            "UPLOAD",
            "SENDING",
            "LIMIT",
        )
        console.print(table(*columns, "ENROLLED", rows=[_row(server) for server in page.items]))
        waiting: list[list[Cell]] = [
            [server.hostname, item.server, item.reason] for server in page.items for item in server.waiting
        ]
        if waiting:
            console.print()
            console.print(table("PROCESS SERVER", "ITEM THAT WAITS", "WHY", rows=waiting))

    show(page, as_json_wanted=as_json_wanted, otherwise=tell)


def _row(server: ProcessServerStatus) -> list[Cell]:
    observed = server.observation
    return [
        server.hostname,
        server.url,
        _state(server),
        heard_ago(server.heard_age_s, known=server.heard_age_known),
        str(server.item_count),
        percent(server.load_fraction)
        if server.load_fraction <= 1
        else f"{server.load_fraction:.0%}".replace("%", " %"),
        "-" if observed is None else f"{observed.spool_free_fraction:.0%} free",
        "-" if observed is None else size(observed.upload_backlog_bytes),
        "-" if observed is None else rate(observed.upload_rate_bytes_per_s),
        *limit_cells(server),
        server.enrolled_at,
    ]


def _state(server: ProcessServerStatus) -> str:
    if not server.connected:
        return "silent"
    if server.drain is None:
        return "in use"
    return "drained" if server.drain.ended_at is not None else "draining"


@click.command("drain-process-server")
@click.argument("process_server")
@click.option("--wait", is_flag=True, help="Wait until its last item has left.")
@click.option("--timeout", default=None, help="With --wait: give up waiting after this time (such as 30 min).")
@json_option
@pass_invocation
def drain_process_server(
    invocation: Invocation, process_server: str, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Let the items of PROCESS_SERVER (host name, HOST:PORT or identifier) change over to others, and give it no new ones."""
    console = make_console()

    async def act(connection: ConfigServer) -> ProcessServerStatus:
        timeout_s = None if timeout is None else parse_duration(timeout, "--timeout")
        status = await connection.send("POST", _path(process_server, "/drain"), ProcessServerStatus)
        if not wait:
            return status
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        return await _drained(connection, status, None if as_json_wanted else console, deadline_s)

    status = invocation.run(act)
    drain = status.drain

    def tell(plain: Console) -> None:
        left = 0 if drain is None else drain.items_left
        state = "is drained" if not left else f"is being drained: {left} items are left"
        plain.print(f"process server {status.hostname} {state}")

    show(status, as_json_wanted=as_json_wanted, otherwise=tell)


async def _drained(
    connection: ConfigServer, status: ProcessServerStatus, console: Console | None, deadline_s: float | None
) -> ProcessServerStatus:
    """Look until no item is left; it looks once more when the time is over.

    :raises WaitTimedOut: some are; the drain goes on.
    """
    told = None
    while status.drain is not None and status.drain.ended_at is None:
        now = f"{status.drain.items_left} of {status.drain.items_at_begin} items are left"
        now += "".join(f"\n  {item.server}: {item.reason}" for item in status.waiting)
        if console is not None and now != told:
            console.print(now)
            told = now
        left_s = POLL_S if deadline_s is None else deadline_s - time.monotonic()
        if left_s <= 0:
            raise WaitTimedOut(
                f"cannot wait any longer for {status.hostname} to be drained",
                hint="the drain goes on; `migratectl process-servers` shows it and what waits",
            )
        await asyncio.sleep(min(POLL_S, left_s))
        status = await connection.get(_path(status.id), ProcessServerStatus)
    return status


@click.command("undrain-process-server")
@click.argument("process_server")
@json_option
@pass_invocation
def undrain_process_server(invocation: Invocation, process_server: str, as_json_wanted: bool) -> None:
    """Let PROCESS_SERVER take items again."""
    path = _path(process_server, "/undrain")
    status = invocation.run(lambda connection: connection.send("POST", path, ProcessServerStatus))
    show(
        status,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"process server {status.hostname} takes items again"),
    )


@click.command("remove-process-server")
@click.argument("process_server")
@confirm_option
@pass_invocation
def remove_process_server(invocation: Invocation, process_server: str, yes: bool) -> None:
    """Forget PROCESS_SERVER and revoke its certificates: one that is drained, or that is dead; then others take its items."""
    confirmed(f"remove process server {process_server}? To come back it has to enrol anew.", yes=yes)
    invocation.run(lambda connection: connection.order("DELETE", _path(process_server)))
    click.echo(f"process server {process_server} is removed")


@click.command("switch-process-server")
@click.argument("server")
@click.option("--to", required=True, help="Host name, HOST:PORT or identifier of the process server.")
@json_option
@pass_invocation
def switch_process_server(invocation: Invocation, server: str, to: str, as_json_wanted: bool) -> None:
    """Let the protected SERVER ship to another process server from now on."""
    path = f"/protected-items/{path_part(server)}/process-server"
    request = checked(SwitchRequest, {"process_server": to}, {"process_server": ("--to", "a process server's name")})
    item = invocation.run(lambda connection: connection.send("POST", path, ItemStatus, request))
    address = "none" if item.process_server is None else item.process_server.url
    show(
        item,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{item.server} ships to process server {address}"),
    )
