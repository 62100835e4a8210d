"""What became of an order: its answer read, the job followed, its result told. Called by ``invocation.start_job`` and ``item_orders.py``.

Imported once the order is on its way, and with it the API's documents and the tables.
"""

from __future__ import annotations

import click
from rich.console import Console

from config_server.job_documents import MigrationResult, TestMigrationResult
from config_server.migratectl.connection import ConfigServer, as_json, read_answer
from config_server.migratectl.rendering import duration, size, table
from config_server.migratectl.showing import show
from config_server.migratectl.waiting import wait_for_job
from config_server.operator_plane import ItemStatus, JobStatus
from replication.service.console import make_console


async def follow(
    server: ConfigServer, answer: bytes, *, wait: bool, timeout_s: float | None, as_json_wanted: bool
) -> bool:
    """Wait for the job if wanted, and print what came of it; False if it was waited for and has failed.

    :raises BlockferryError: see ``waiting.wait_for_job``; the job goes on.
    """
    job = read_answer(JobStatus, answer)
    console = make_console()
    if wait:
        job = await wait_for_job(server, job, console, timeout_s=timeout_s, quiet=as_json_wanted)
    if as_json_wanted:
        click.echo(as_json(job))
    elif wait:
        _tell_end(console, job)
    else:
        console.print(f"job {job.id} ({job.kind}) started; `migratectl jobs {job.id}` shows it")
    return not wait or job.state == "succeeded"


def _tell_end(console: Console, job: JobStatus) -> None:
    if job.state == "succeeded":
        print_result(console, job)
    console.print(f"{job.kind} {job.server}: {job.state}" + (f": {job.message}" if job.message else ""))
    if job.problem is not None and job.problem.hint:
        console.print(f"hint: {job.problem.hint}")


def tell_changed(answer: bytes, *, as_json_wanted: bool) -> None:
    """In which state an order has left an item."""
    item = read_answer(ItemStatus, answer)
    show(
        item,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{item.server} is {item.state}"),
    )


def print_result(console: Console, job: JobStatus) -> None:
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
