"""Questions about protected items: status, recovery points, jobs. Called by ``cli.py``."""

from __future__ import annotations

import asyncio

import click
from rich.console import Console, Group
from rich.live import Live

from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.invocation import Invocation, json_option, pass_invocation
from config_server.migratectl.ordered_job import print_result
from config_server.migratectl.rendering import Cell, coloured, duration, item_tables, table
from config_server.migratectl.showing import show
from config_server.migratectl.waiting import figures
from config_server.operator_plane import ItemStatus, JobStatus, Page, RecoveryPointStatus
from replication.service.console import make_console


def _item(server: str, verb: str = "") -> str:
    return f"/protected-items/{path_part(server)}{verb}"


@click.command()
@click.argument("server", required=False)
@click.option("--watch", is_flag=True, help="Show it again and again until interrupted.")
@click.option(
    "--interval", default=1.0, show_default=True, type=click.FloatRange(0.2), help="Seconds between, with --watch."
)
@click.option("--ended", is_flag=True, help="Also items that are completed or stopped.")
@json_option
@pass_invocation
def status(
    invocation: Invocation, server: str | None, watch: bool, interval: float, ended: bool, as_json_wanted: bool
) -> None:
    """State, health, progress and lags of protected servers and their disks."""
    console = make_console()

    async def fetch(connection: ConfigServer) -> Page[ItemStatus]:
        if server is not None:
            return Page[ItemStatus](items=[await connection.get(_item(server), ItemStatus)])
        return await connection.get("/protected-items", Page[ItemStatus], ended="true" if ended else None)

    async def watched(connection: ConfigServer) -> None:
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                page = await fetch(connection)
                if as_json_wanted:
                    click.echo(page.model_dump_json())
                elif console.is_terminal:
                    live.update(Group(*item_tables(page.items)), refresh=True)
                else:
                    _print_tables(console, page)
                await asyncio.sleep(interval)

    if watch:
        invocation.run(watched)
        return
    page = invocation.run(fetch)
    show(page, as_json_wanted=as_json_wanted, otherwise=lambda plain: _print_tables(plain, page))


def _print_tables(console: Console, page: Page[ItemStatus]) -> None:
    if not page.items:
        console.print("nothing is protected")
        return
    for part in item_tables(page.items):
        console.print(part)
        console.print()


def _quality(point: RecoveryPointStatus) -> str:
    quality = f"suspect: {point.suspect}" if point.suspect else "good"
    if point.clock_error_s is None:
        return quality
    how = "ahead" if point.clock_error_s > 0 else "behind"
    return f"{quality}; the server's clock was {duration(abs(point.clock_error_s))} {how}"


@click.command("recovery-points")
@click.argument("server")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@json_option
@pass_invocation
def recovery_points(invocation: Invocation, server: str, limit: int, as_json_wanted: bool) -> None:
    """List the recovery points of SERVER, newest first."""
    page = invocation.run(
        lambda connection: connection.get(_item(server, "/recovery-points"), Page[RecoveryPointStatus], limit=limit)
    )
    rows = [
        [
            point.cut,
            point.taken_at,
            duration(point.age_s),
            "app-consistent" if point.consistency == "app" else "crash-consistent",
            "final" if point.final else "",
            _quality(point),
        ]
        for point in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(table("CUT", "TAKEN", "AGE", "CONSISTENCY", "", "QUALITY", rows=rows)),
    )


@click.command()
@click.argument("job", required=False)
@click.option("--server", default=None, help="Only of this server.")
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1, 1000))
@json_option
@pass_invocation
def jobs(invocation: Invocation, job: str | None, server: str | None, limit: int, as_json_wanted: bool) -> None:
    """List jobs, newest first, or show one with its result."""
    if job is not None:
        one = invocation.run(lambda connection: connection.get(f"/jobs/{path_part(job)}", JobStatus))
        show(one, as_json_wanted=as_json_wanted, otherwise=lambda console: _print_job(console, one))
        return
    page = invocation.run(lambda connection: connection.get("/jobs", Page[JobStatus], item=server, limit=limit))
    rows: list[list[Cell]] = [
        [row.id, row.kind, row.server, coloured(row.state), row.step, figures(row), row.message, row.created_at]
        for row in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(
            table("JOB", "KIND", "SERVER", "STATE", "STEP", "PROGRESS", "MESSAGE", "STARTED", rows=rows)
        ),
    )


def _print_job(console: Console, job: JobStatus) -> None:
    console.print(f"{job.kind} {job.server}: {job.state}, {job.step} {figures(job)}")
    console.print(f"started {job.created_at} by {job.actor}" + (f", ended {job.ended_at}" if job.ended_at else ""))
    if job.message:
        console.print(job.message)
    if job.problem is not None and job.problem.hint:
        console.print(f"hint: {job.problem.hint}")
    print_result(console, job)
