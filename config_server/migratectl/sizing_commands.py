"""The commands `size` and `plan`: what the observed, or measured, churn needs, as table, JSON or page. Called by ``cli.py``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from config_server.core.target_disks import DISK_TYPES, DiskType
from config_server.migratectl.checked_input import in_range
from config_server.migratectl.connection import ConfigServer, WaitTimedOut, path_part
from config_server.migratectl.invocation import Invocation, json_option, pass_invocation
from config_server.migratectl.rendering import Cell, duration, table
from config_server.migratectl.showing import show
from config_server.migratectl.sizing_page import sizing_page
from config_server.migratectl.sizing_rendering import (
    bandwidth_text,
    churn_text,
    duration_or_never,
    each_churn_text,
    line_name,
    rate,
    rpo_text,
    size,
)
from config_server.migratectl.waiting import PLAIN_LINE_EVERY_S
from config_server.operator_plane import Page
from config_server.sizing_documents import ProfileRequest, ProfileStatus, SizingReport
from replication.churn_profile import MAX_DURATION_S, MIN_DURATION_S
from replication.durable_file import DurableFile
from replication.errors import InvalidInput, SettingsError
from replication.settings import parse_duration, parse_rate

WAIT_BEYOND_S: Final = 300.0
"""After the profile's time its agents must still report; they may be a heartbeat late, or away."""
POLL_S: Final = 2.0
Command = TypeVar("Command", bound=Callable[..., Any])


def report_options(command: Command) -> Command:
    command = click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")(
        command
    )
    command = click.option(
        "--point-interval", default="5 min", show_default=True, help="Between recovery points; at least 10 s."
    )(command)
    command = click.option(
        "--wire-ratio",
        type=click.FloatRange(0, 2, min_open=True),
        default=1.0,
        show_default=True,
        help="Bytes sent for each that changed: 0.5 if compression saves half.",
    )(command)
    command = click.option(
        "--target-disk-type",
        type=click.Choice(DISK_TYPES),
        help="Planned for disks without protection, whose churn limits go by it; by default what the default policy says.",
    )(command)
    return click.option("--bandwidth", help="The line that there is, such as '100 Mbps'.")(command)


@click.command("size")
@report_options
@json_option
@pass_invocation
def size_site(
    invocation: Invocation,
    bandwidth: str | None,
    target_disk_type: DiskType | None,
    wire_ratio: float,
    point_interval: str,
    html: Path | None,
    as_json_wanted: bool,
) -> None:
    """Machines, bandwidth, initial replication time and RPO that the observed churn needs."""
    _report(
        invocation,
        bandwidth,
        target_disk_type,
        wire_ratio,
        point_interval,
        html,
        as_json_wanted=as_json_wanted,
        profiles=False,
    )


@click.command()
@click.argument("servers", nargs=-1)
@click.option(
    "--profile", help="Measure churn for this long, such as 24 h, without replicating; all servers if none is named."
)
@click.option("--wait", is_flag=True, help="With --profile: wait until it is measured, then show the plan.")
@click.option("--stop", is_flag=True, help="Stop measuring SERVERS; what was seen so far is kept.")
@report_options
@json_option
@pass_invocation
def plan(
    invocation: Invocation,
    servers: tuple[str, ...],
    profile: str | None,
    wait: bool,
    stop: bool,
    bandwidth: str | None,
    target_disk_type: DiskType | None,
    wire_ratio: float,
    point_interval: str,
    html: Path | None,
    as_json_wanted: bool,
) -> None:
    """As `size`, with what was measured of servers that are not replicated yet; `--profile` has agents measure."""
    if stop and (profile is not None or not servers):
        raise SettingsError("cannot stop without the servers' names, or while beginning", hint="plan --stop SERVER")
    if stop:
        invocation.run(lambda server: _stop(server, servers))
        click.echo(f"no longer measured: {', '.join(servers)}", err=as_json_wanted)
        return
    if profile is not None:
        request = ProfileRequest(servers=list(servers), duration_s=_duration_of(profile))
        begun = invocation.run(lambda server: server.send("POST", "/churn-profiles", Page[ProfileStatus], request))
        names = [status.server for status in begun.items]
        click.echo(f"measuring for {duration(request.duration_s)}: {', '.join(names)}", err=True)
        if not wait:
            show(
                begun,
                as_json_wanted=as_json_wanted,
                otherwise=lambda console: console.print("`migratectl plan` shows it"),
            )
            return
        invocation.run(lambda server: _measured(server, frozenset(names), request.duration_s + WAIT_BEYOND_S))
    _report(
        invocation,
        bandwidth,
        target_disk_type,
        wire_ratio,
        point_interval,
        html,
        as_json_wanted=as_json_wanted,
        profiles=True,
    )


async def _stop(connection: ConfigServer, servers: tuple[str, ...]) -> None:
    for server in servers:
        await connection.order("DELETE", f"/churn-profiles/{path_part(server)}")


def _duration_of(text: str) -> float:
    seconds = parse_duration(text, "--profile")
    if not MIN_DURATION_S <= seconds <= MAX_DURATION_S:
        raise SettingsError(
            f"cannot use {text[:64]!r} for --profile", hint="10 s to 14 d; a working day, or better a week"
        )
    return seconds


async def _measured(server: ConfigServer, names: frozenset[str], timeout_s: float) -> None:
    """Return when all profiles have ended, telling how far they are.

    :raises WaitTimedOut: they have not in time; they go on.
    """
    deadline_s, told_s = time.monotonic() + timeout_s, time.monotonic()
    while True:
        found = await server.get("/churn-profiles", Page[ProfileStatus])
        open_ones = [status for status in found.items if status.server in names and status.ended_at is None]
        if not open_ones:
            return
        if time.monotonic() >= deadline_s:
            raise WaitTimedOut(
                f"cannot wait longer for {', '.join(status.server for status in open_ones)}: not measured yet",
                hint="`migratectl plan` shows what is known; are their agents heard? `migratectl servers`",
            )
        if time.monotonic() - told_s >= PLAIN_LINE_EVERY_S:
            told_s = time.monotonic()
            least_s = min(0.0 if status.seen is None else status.seen.elapsed_s for status in open_ones)
            click.echo(
                f"{len(open_ones)} under way, {duration(least_s)} of {duration(open_ones[0].duration_s)}", err=True
            )
        await asyncio.sleep(POLL_S)


def _report(
    invocation: Invocation,
    bandwidth: str | None,
    target_disk_type: DiskType | None,
    wire_ratio: float,
    point_interval: str,
    html: Path | None,
    *,
    as_json_wanted: bool,
    profiles: bool,
) -> None:
    bits_per_s = None if bandwidth is None else parse_rate(bandwidth, "--bandwidth")
    if bits_per_s is not None:
        in_range(bits_per_s, 1, 10**13, "--bandwidth", "more than 0, up to 10000 Gbps,")
    in_range(wire_ratio, 0, 2, "--wire-ratio", "more than 0, up to 2,")  # what is no number passes click
    interval_s = parse_duration(point_interval, "--point-interval")
    in_range(interval_s, 10, 86400, "--point-interval", "10 s to 24 h")
    report = invocation.run(
        lambda server: server.get(
            "/sizing",
            SizingReport,
            bandwidth_bits_per_s=bits_per_s,
            target_disk_type=target_disk_type,
            wire_ratio=str(wire_ratio),
            point_interval_s=str(interval_s),
            profiles="true" if profiles else None,
        )
    )
    if html is not None:
        try:
            DurableFile(html, mode=0o644).replace(sizing_page(report).encode())
        except OSError as error:
            raise InvalidInput(f"cannot write {html}: {error.strerror or error}") from error
    show(report, as_json_wanted=as_json_wanted, otherwise=lambda console: tell(console, report))


def tell(console: Console, report: SizingReport) -> None:
    console.print(f"{report.servers} servers, {size(report.disk_bytes)} on their disks")
    console.print(f"churn: {churn_text(report)}")
    console.print(f"bandwidth needed: {bandwidth_text(report)}")
    rows: list[list[Cell]] = [
        [
            f"{machines.count} x {machines.kind}",
            f"{machines.cpu_count} CPUs",
            size(machines.memory_bytes),
            size(machines.spool_bytes),
            each_churn_text(machines.each_churn_bytes_per_day),
            str(machines.each_servers),
        ]
        for machines in report.machines
    ]
    console.print(table("MACHINES", "PROCESSORS", "MEMORY", "SPOOL", "CHURN A DAY EACH", "SERVERS EACH", rows=rows))
    console.print(
        table(
            *("LINE", "INITIAL REPLICATION", "WORST RPO LAG", *(("SHORTEST BY PROFILE",) if report.intervals else ())),
            rows=[
                [
                    line_name(line),
                    duration_or_never(line.initial_replication_s),
                    rpo_text(report, line),
                    *((duration_or_never(line.profiled_rpo_s),) if report.intervals else ()),
                ]
                for line in report.lines
            ],
        )
    )
    if report.intervals:
        console.print(
            table(
                *("MEASURED WINDOWS", "MEAN", "FULLEST", "AMPLIFICATION"),
                rows=[
                    [
                        duration(each.interval_s),
                        size(each.mean_bytes),
                        size(each.most_bytes),
                        f"{each.amplification:.1f}",
                    ]
                    for each in report.intervals
                ],
            )
        )
    if report.observed:
        console.print(
            table(
                *("SERVER", "MEAN", "BUSIEST HOUR", "OBSERVED", "BEYOND LIMITS"),
                rows=[
                    [
                        server.server,
                        rate(server.mean_bytes_per_s),
                        rate(server.busiest_hour_bytes_per_s),
                        duration(server.observed_s),
                        "; ".join(server.warnings) or "-",
                    ]
                    for server in report.observed
                ],
            )
        )
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
