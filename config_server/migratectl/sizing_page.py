"""The sizing report as one HTML page with plots: inline SVG, no script, nothing loaded from elsewhere. Called by ``sizing_commands.py``."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

from config_server.migratectl.rendering import duration
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
from config_server.sizing_documents import SizingReport
from replication.upload_limits import rate_text

_WIDTH: Final = 720
_HEIGHT: Final = 220
_LEFT: Final = 90
_BOTTOM: Final = 40
_MOST_LABELS: Final = 8
_STYLE: Final = """
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1em 0 } th, td { text-align: left; padding: .2em 1em .2em 0; border-bottom: 1px solid #ddd }
svg { display: block; margin: .5em 0 1.5em } svg text { font: 11px sans-serif; fill: #444 } .bar { fill: #3a6ea5 } .never { fill: #b33 }
"""


def sizing_page(report: SizingReport) -> str:
    """The whole document."""
    body = [
        (
            f"<h1>Sizing</h1><p>{_text(report.made_at)}: {report.servers} servers, {size(report.disk_bytes)} on their disks; "
            f"churn {churn_text(report)}. "
            f"Bytes sent for each that changed: {report.wire_ratio:g}. Recovery points every {duration(report.point_interval_s)}.</p>"
        ),
        f"<p><b>Bandwidth needed: {bandwidth_text(report)}</b></p>",
        "<h2>Machines</h2>",
        _table(
            ("", "processors", "memory", "spool", "churn a day, each", "servers, each"),
            [
                (
                    f"{each.count} x {each.kind}",
                    str(each.cpu_count),
                    size(each.memory_bytes),
                    size(each.spool_bytes),
                    each_churn_text(each.each_churn_bytes_per_day),
                    str(each.each_servers),
                )
                for each in report.machines
            ],
        ),
        "<h2>What a line allows</h2>",
        _table(
            ("line", "initial replication", "worst RPO lag"),
            [
                (line_name(line), duration_or_never(line.initial_replication_s), rpo_text(report, line))
                for line in report.lines
            ],
        ),
        _bars(
            "Initial replication by line",
            [
                (rate_text(line.bits_per_s), line.initial_replication_s, duration_or_never(line.initial_replication_s))
                for line in report.lines
            ],
        ),
        _bars(
            "Worst RPO lag by line",
            [(rate_text(line.bits_per_s), line.rpo_s, rpo_text(report, line)) for line in report.lines]
            if report.churn_bytes_per_day is not None
            else [],
        ),
        _bars(
            "Measured churn by length of the window",
            [
                (duration(each.interval_s), each.mean_bytes / each.interval_s, rate(each.mean_bytes / each.interval_s))
                for each in report.intervals
            ],
        ),
        _bars(
            "Churn by hour",
            [(hour.at[:13].replace("T", " ") + "h", hour.bytes_per_s, rate(hour.bytes_per_s)) for hour in report.hours],
        ),
        "<h2>Servers</h2>",
        _table(
            ("server", "mean", "busiest hour", "observed", "beyond limits"),
            [
                (
                    each.server,
                    rate(each.mean_bytes_per_s),
                    rate(each.busiest_hour_bytes_per_s),
                    duration(each.observed_s),
                    "; ".join(each.warnings) or "-",
                )
                for each in report.observed
            ],
        ),
        "".join(f"<p>{_text(note)}</p>" for note in report.notes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Sizing</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(text)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _bars(title: str, bars: Sequence[tuple[str, float | None, str]]) -> str:
    """(name, value, value as text): one bar each; None is a full one of another colour."""
    heading = f"<h2>{_text(title)}</h2>"
    if not bars:
        return f"{heading}<p>Nothing was observed yet.</p>"
    highest = max((value for _, value, _ in bars if value is not None), default=0.0) or 1.0
    step = (_WIDTH - _LEFT) / len(bars)
    every = math.ceil(len(bars) / _MOST_LABELS)
    parts = []
    for number, (name, value, shown) in enumerate(bars):
        share = 1.0 if value is None else value / highest
        height, left = share * (_HEIGHT - _BOTTOM - 20), _LEFT + number * step
        top = _HEIGHT - _BOTTOM - height
        style = "never" if value is None else "bar"
        parts.append(
            f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" width="{max(0.5, step * 0.8):.1f}" height="{height:.1f}">'
            f"<title>{_text(name)}: {_text(shown)}</title></rect>"
        )
        if number % every == 0:
            parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 15}">{_text(name)}</text>')
            if every == 1:
                parts.append(f'<text x="{left:.1f}" y="{top - 4:.1f}">{_text(shown)}</text>')
    top_text = next((shown for _, value, shown in bars if value == highest), "")
    parts.append(f'<text x="0" y="24">{_text(top_text)}</text><text x="0" y="{_HEIGHT - _BOTTOM}">0</text>')
    return (
        f'{heading}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{_text(title)}">{"".join(parts)}</svg>'
    )
