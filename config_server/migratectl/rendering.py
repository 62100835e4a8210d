"""How things look: sizes, rates, durations, tables. Called by the commands; plain text where the output is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from config_server.operator_plane import ConfigurationServerStatus, DiskStatus, HealthLevel, ItemStatus
from replication.agent_limits import AgentLimitsInForce, cores_text, read_rate_text
from replication.terminal_text import one_line

Cell = str | Text
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COLOURS: Final[dict[str, str]] = {
    "healthy": "green",
    "ok": "green",
    "succeeded": "green",
    "warning": "yellow",
    "waiting-for-input": "yellow",
    "critical": "red",
    "blocker": "red",
    "failed": "red",
}


def size(count: float | None) -> str:
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def rate(bytes_per_s: float | None) -> str:
    return "-" if not bytes_per_s else f"{size(bytes_per_s)}/s"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def heard_ago(seconds: float | None, *, known: bool) -> str:
    """How long ago a daemon was heard; ``known`` False: it may be longer."""
    return duration(seconds) if known else f"over {duration(seconds)}"


def percent(fraction: float | None) -> str:
    if fraction is None:
        return "-"
    return "100 %" if fraction >= 1 else f"{min(fraction, 0.999):.1%}".replace("%", " %")


def coloured(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def table(*columns: str, rows: Sequence[Sequence[Cell]]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(one_line(cell)) if isinstance(cell, str) else cell for cell in row))
    return made


def server_table(servers: Sequence[ConfigurationServerStatus]) -> Table:
    """The site's configuration servers: which leads, and whether the others are there to follow it."""
    rows: list[list[Cell]] = [
        [
            server.hostname,
            f"leads, term {server.term}" if server.leads else "stands by",
            heard_ago(server.heard_age_s, known=True),
            f"{server.clock_offset_s:+.1f} s",
            server.version,
        ]
        for server in servers
    ]
    return table("configuration server", "", "heard", "clock", "version", rows=rows)


def item_tables(items: Sequence[ItemStatus]) -> list[Table]:
    """Status: a line for each server, a line for each disk, and why not everything is healthy."""
    servers = table(
        "SERVER",
        "STATE",
        "HEALTH",
        "GOING",
        "DONE",
        "RATE",
        "ETA",
        "LAG",
        "RPO LAG",
        "POINTS",
        rows=[_item_row(item) for item in items],
    )
    disks = table(
        "SERVER",
        "DISK",
        "PHASE",
        "DONE",
        "BYTES",
        "RATE",
        "ETA",
        "LAG",
        "RPO LAG",
        "TRACKER",
        "CHANGED",
        "READ",
        "SENT",
        rows=[_disk_row(item.server, disk) for item in items for disk in item.disks],
    )
    tables = [servers, disks]
    limited = [_limits_row(item.server, item.agent_limits) for item in items if item.agent_limits is not None]
    if limited:
        tables.append(table("SERVER", "READING", "READ LIMIT", "CPU", "CPU LIMIT", "MEMORY LIMIT", rows=limited))
    reasons: list[list[Cell]] = [
        [item.server, coloured(condition.health), condition.message, condition.remedy]
        for item in items
        for condition in item.conditions
    ]
    if reasons:
        tables.append(table("SERVER", "HEALTH", "WHY", "REMEDY", rows=reasons))
    return tables


def _limits_row(server: str, limits: AgentLimitsInForce) -> list[Cell]:
    rest = " (lifted)" if limits.lifted else " (work hours)" if limits.work_hours else ""
    rest += " (!)" if limits.problem else ""
    return [
        server,
        read_rate_text(limits.measured_read_bytes_per_s),
        read_rate_text(limits.read_bytes_per_s) + rest,
        cores_text(limits.measured_cpu_cores),
        cores_text(limits.cpu_cores) + rest,
        "no limit" if limits.memory_bytes is None else size(limits.memory_bytes),
    ]


def _item_row(item: ItemStatus) -> list[Cell]:
    points = str(item.recovery_points) + (f" ({item.suspect_points} suspect)" if item.suspect_points else "")
    return [
        item.server,
        item.state,
        health_word(item.health),
        item.going,
        percent(item.fraction),
        rate(item.rate_bytes_per_s),
        "-" if item.fraction is None or item.fraction >= 1 else duration(item.eta_s),
        duration(item.replication_lag_s),
        duration(item.rpo_lag_s),
        points,
    ]


def _disk_row(server: str, disk: DiskStatus) -> list[Cell]:
    observed = disk.observation
    if observed is None:
        return [server, disk.path, disk.phase, "-", size(disk.size_bytes), *["-"] * 8]
    tracker = f"{observed.tracker_kind or '-'} {observed.tracker_health}"
    return [
        server,
        disk.path,
        disk.phase,
        percent(disk.fraction),
        f"{size(observed.seeding_done_bytes)} of {size(observed.seeding_total_bytes or disk.size_bytes)}",
        rate(observed.send_rate_bytes_per_s),
        "-" if disk.fraction is None or disk.fraction >= 1 else duration(observed.eta_s),
        duration(disk.replication_lag_s),
        duration(disk.rpo_lag_s),
        tracker,
        size(observed.changed_bytes),
        size(observed.read_bytes),
        size(observed.sent_bytes),
    ]


def health_word(level: HealthLevel | None) -> Text:
    return Text("-") if level is None else coloured(level)
