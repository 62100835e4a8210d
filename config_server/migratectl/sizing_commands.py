"""The command `size`: what the observed churn needs, as table, JSON or page. Called by ``cli.py``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from config_server.migratectl.invocation import Invocation, json_option, pass_invocation, show
from config_server.migratectl.rendering import Cell, duration, rate, size, table
from config_server.migratectl.sizing_page import sizing_page
from config_server.sizing_documents import SizedLine, SizingReport
from replication.durable_file import DurableFile
from replication.errors import InvalidInput
from replication.settings import parse_duration, parse_rate
from replication.upload_limits import rate_text


@click.command("size")
@click.option("--bandwidth", help="The line that there is, such as '100 Mbps'.")
@click.option(
    "--wire-ratio",
    type=click.FloatRange(0, 2, min_open=True),
    default=1.0,
    show_default=True,
    help="Bytes sent for each that changed: 0.5 if compression saves half.",
)
@click.option("--point-interval", default="5 min", show_default=True, help="Between recovery points; at least 10 s.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with plots to this file.")
@json_option
@pass_invocation
def size_site(
    invocation: Invocation,
    bandwidth: str | None,
    wire_ratio: float,
    point_interval: str,
    html: Path | None,
    as_json_wanted: bool,
) -> None:
    """Machines, bandwidth, initial replication time and RPO that the observed churn needs."""
    bits_per_s = None if bandwidth is None else parse_rate(bandwidth, "--bandwidth")
    interval_s = parse_duration(point_interval, "--point-interval")
    report = invocation.run(
        lambda server: server.get(
            "/sizing",
            SizingReport,
            bandwidth_bits_per_s=bits_per_s,
            wire_ratio=str(wire_ratio),
            point_interval_s=str(interval_s),
        )
    )
    if html is not None:
        try:
            DurableFile(html, mode=0o644).replace(sizing_page(report).encode())
        except OSError as error:
            raise InvalidInput(f"cannot write {html}: {error.strerror or error}") from error
    show(report, as_json_wanted=as_json_wanted, otherwise=lambda console: _tell(console, report))


def _tell(console: Console, report: SizingReport) -> None:
    console.print(f"{report.servers} servers, {size(report.disk_bytes)} on their disks")
    console.print(
        f"churn: {size(report.churn_bytes_per_day)} a day, {rate(report.busiest_hour_bytes_per_s)} in the busiest hour"
    )
    console.print(f"bandwidth needed: {rate_text(report.bandwidth_needed_bits_per_s)}")
    rows: list[list[Cell]] = [
        [
            f"{machines.count} x {machines.kind}",
            f"{machines.cpu_count} CPUs",
            size(machines.memory_bytes),
            size(machines.spool_bytes),
            size(machines.each_churn_bytes_per_day),
            str(machines.each_servers),
        ]
        for machines in report.machines
    ]
    console.print(table("MACHINES", "PROCESSORS", "MEMORY", "SPOOL", "CHURN A DAY EACH", "SERVERS EACH", rows=rows))
    console.print(
        table(
            *("LINE", "INITIAL REPLICATION", "WORST RPO LAG"),
            rows=[
                [line_name(line), duration_or_never(line.initial_replication_s), duration_or_never(line.rpo_s)]
                for line in report.lines
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
        console.print(f"note: {note}")


def line_name(line: SizedLine) -> str:
    text = rate_text(line.bits_per_s)
    return text + (" (given)" if line.asked_for else " (needed)" if line.needed else "")


def duration_or_never(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)
