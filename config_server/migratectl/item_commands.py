"""Commands on protected items: protect, status, recovery points, test migration, migration, jobs. Called by ``cli.py``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import click
from rich.console import Console, Group
from rich.live import Live

from config_server.job_documents import MigrationResult, TestMigrationResult
from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.discovery_commands import login_options
from config_server.migratectl.installation_commands import (
    begin_installation,
    installation_request,
    installed_and_protected,
)
from config_server.migratectl.invocation import (
    Invocation,
    confirm_option,
    confirmed,
    json_option,
    pass_invocation,
    show,
    start_job,
    wait_options,
)
from config_server.migratectl.rendering import Cell, coloured, duration, item_tables, size, table
from config_server.migratectl.waiting import figures
from config_server.operator_plane import (
    CancellationRequest,
    CompletionRequest,
    ItemStatus,
    JobStatus,
    MigrationRequest,
    Page,
    ProtectRequest,
    RecoveryPointRequest,
    RecoveryPointStatus,
    ResyncRequest,
    ServerDetail,
    TestMigrationRequest,
)
from replication.control_plane import CutoverMode
from replication.documents import Document
from replication.errors import InvalidInput
from replication.service.cli import make_console
from replication.settings import parse_duration
from replication.store_documents import Consistency


def _item(server: str, verb: str = "") -> str:
    return f"/protected-items/{path_part(server)}{verb}"


@click.command()
@click.argument("server")
@click.option("--disk", "disks", multiple=True, help="Only these disks (path or identifier); may be repeated.")
@click.option("--policy", default="default", show_default=True)
@click.option("--user", default=None, help="Log in as this user; by default the one that it was discovered with.")
@login_options
@click.option("--process-server", default=None, help="Install from this process server.")
@wait_options
@json_option
@pass_invocation
def protect(
    invocation: Invocation,
    /,
    server: str,
    disks: tuple[str, ...],
    policy: str,
    user: str | None,
    process_server: str | None,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
    **login: Path | None,
) -> None:
    """Enable replication of SERVER; with --wait until initial replication is over.

    A discovered server gets its agent first, installed over SSH, if it is said how to log in (--key-file, --password-file).
    """
    request = ProtectRequest(disks=list(disks) or None, policy=policy)
    installation = installation_request(disks, policy, user, process_server, **login)
    if installation is not None and not wait:
        begin_installation(invocation, server, installation, as_json_wanted=as_json_wanted)
        return

    async def order(connection: ConfigServer) -> JobStatus:
        if installation is None:
            return await connection.send("POST", f"/servers/{path_part(server)}/protection", JobStatus, request)
        timeout_s = None if timeout is None else parse_duration(timeout, "--timeout")
        console = None if as_json_wanted else make_console()
        return await installed_and_protected(connection, server, installation, timeout_s, console)

    start_job(
        invocation,
        order,
        wait=wait,
        timeout=timeout,
        as_json_wanted=as_json_wanted,
    )


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


@click.command("create-recovery-point")
@click.argument("server")
@click.option("--consistency", type=click.Choice(["crash", "app"]), default="crash", show_default=True)
@wait_options
@json_option
@pass_invocation
def create_recovery_point(
    invocation: Invocation, server: str, consistency: str, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Cut a recovery point of SERVER now."""
    request = RecoveryPointRequest(consistency=cast("Consistency", consistency))
    _start(invocation, server, "/recovery-points", request, wait, timeout, as_json_wanted)


def _start(
    invocation: Invocation,
    server: str,
    verb: str,
    request: Document | None,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    start_job(
        invocation,
        lambda connection: connection.send("POST", _item(server, verb), JobStatus, request),
        wait=wait,
        timeout=timeout,
        as_json_wanted=as_json_wanted,
        result=_print_result,
    )


def _print_result(console: Console, job: JobStatus) -> None:
    """The disks of a test or a migration, and what is proved of them."""
    result = job.result
    if not isinstance(result, TestMigrationResult | MigrationResult):
        return
    rows = [
        [disk.name, f"{disk.container}/{disk.name}", disk.source_path, size(disk.size_bytes), disk.sha256 or "-"]
        for disk in result.disks
    ]
    console.print(table("DISK", "BLOB", "SOURCE", "SIZE", "SHA-256", rows=rows))
    if isinstance(result, MigrationResult):
        console.print(f"mode {result.mode}; identity: {result.identity}")
        console.print(
            f"time to usable: {duration(result.seconds_to_usable)}; time to proof: {duration(result.seconds_to_proof)}"
        )


@click.command("test-migrate")
@click.argument("server")
@click.option(
    "--point", default="latest", show_default=True, help="latest (cut now), latest-processed, or a cut's identifier."
)
@click.option("--allow-suspect", is_flag=True, help="Accept a point that may miss writes.")
@wait_options
@json_option
@pass_invocation
def test_migrate(
    invocation: Invocation,
    server: str,
    point: str,
    allow_suspect: bool,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """Make isolated test disks from a recovery point; replication goes on. Clean up afterwards."""
    request = TestMigrationRequest(point=point, allow_suspect=allow_suspect)
    _start(invocation, server, "/test-migration", request, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@wait_options
@json_option
@pass_invocation
def cleanup(invocation: Invocation, server: str, wait: bool, timeout: str | None, as_json_wanted: bool) -> None:
    """Delete the disks of the test migration; the drill counts after that."""
    _start(invocation, server, "/test-migration/clean-up", None, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@click.option(
    "--mode",
    type=click.Choice(["offline-disk", "live-root-disk", "writers-running"]),
    default="offline-disk",
    show_default=True,
    help="offline-disk: the disks are unmounted and claimed until the end; identity is proved.",
)
@wait_options
@json_option
@pass_invocation
def migrate(
    invocation: Invocation, server: str, mode: str, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Cut SERVER over: ship the final epoch, make the final disks, prove that they are identical."""
    request = MigrationRequest(mode=cast("CutoverMode", mode))
    _start(invocation, server, "/migration", request, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@click.option("--delete-disks", is_flag=True, help="Also delete the disks that a finished migration made.")
@confirm_option
@json_option
@pass_invocation
def cancel(invocation: Invocation, server: str, delete_disks: bool, yes: bool, as_json_wanted: bool) -> None:
    """Go back to the source: it is released and replication goes on; the replica is kept."""
    if delete_disks:
        confirmed(f"Delete the final disks of {server}?", yes=yes)
    _change(invocation, server, "/migration/cancel", CancellationRequest(delete_disks=delete_disks), as_json_wanted)


def _change(invocation: Invocation, server: str, verb: str, request: Document | None, as_json_wanted: bool) -> None:
    item = invocation.run(lambda connection: connection.send("POST", _item(server, verb), ItemStatus, request))
    show(
        item,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{item.server} is {item.state}"),
    )


@click.command()
@click.argument("server")
@click.option(
    "--discard-source-changes",
    is_flag=True,
    help="Also if the source was, or may have been, written to since the proof, or its agent has been silent for hours.",
)
@confirm_option
@wait_options
@json_option
@pass_invocation
def complete(
    invocation: Invocation,
    server: str,
    discard_source_changes: bool,
    yes: bool,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """End the migration of SERVER: replica and recovery points are deleted, the final disks stay."""
    confirmed(f"Delete the replica and all recovery points of {server}? The final disks stay.", yes=yes)
    request = CompletionRequest(discard_source_changes=discard_source_changes)
    _start(invocation, server, "/migration/complete", request, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@json_option
@pass_invocation
def pause(invocation: Invocation, server: str, as_json_wanted: bool) -> None:
    """Ship nothing more; changes go on being tracked."""
    _change(invocation, server, "/pause", None, as_json_wanted)


@click.command()
@click.argument("server")
@json_option
@pass_invocation
def resume(invocation: Invocation, server: str, as_json_wanted: bool) -> None:
    """Go on where it was paused."""
    _change(invocation, server, "/resume", None, as_json_wanted)


@click.command("stop-replication")
@click.argument("server")
@confirm_option
@wait_options
@json_option
@pass_invocation
def stop_replication(
    invocation: Invocation, server: str, yes: bool, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Give the protection of SERVER up: replica, recovery points and keys are deleted."""
    confirmed(f"Delete the replica and all recovery points of {server}?", yes=yes)
    _start(invocation, server, "/stop", None, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@click.option("--disk", "disks", multiple=True, help="Only these disks (path or identifier); may be repeated.")
@click.option("--reason", default="asked for by the operator")
@click.option("--distrust-digests", is_flag=True, help="Send every block, not only what differs by its digest.")
@wait_options
@json_option
@pass_invocation
def resync(
    invocation: Invocation,
    server: str,
    disks: tuple[str, ...],
    reason: str,
    distrust_digests: bool,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """Compare SERVER's disks with the replica by digests and repair what differs."""

    async def order(connection: ConfigServer) -> JobStatus:
        chosen = list(disks)
        if chosen:
            found = await connection.get(f"/servers/{path_part(server)}", ServerDetail)
            known = {disk.path: disk.disk for disk in found.inventory.disks} if found.inventory else {}
            chosen = [known.get(name, name) for name in chosen]
        try:
            request = ResyncRequest(disks=chosen, reason=reason, distrust_digests=distrust_digests)
        except ValueError as error:
            raise InvalidInput(
                "cannot resynchronize these disks", hint="paths or identifiers of the server's"
            ) from error
        return await connection.send("POST", _item(server, "/resync"), JobStatus, request)

    start_job(invocation, order, wait=wait, timeout=timeout, as_json_wanted=as_json_wanted)


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
    _print_result(console, job)
