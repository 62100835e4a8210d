"""How the figures of a sizing report read. Called by ``sizing_commands.py`` (table) and ``sizing_page.py`` (page).

Units are decimal, as in the capacity tables, the churn limits and what lines are sold by: a spool of 300 GB is shown as that.
"""

from __future__ import annotations

from typing import Final

from config_server.migratectl.rendering import duration
from config_server.sizing_documents import SizedLine, SizingReport
from replication.upload_limits import rate_text

NOT_KNOWN: Final = "not known"
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """``300 GB``, ``68.7 GB``."""
    value, unit = float(count), 0
    while round(value, 1) >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f}".removesuffix(".0") + f" {_UNITS[unit]}"


def rate(bytes_per_s: float) -> str:
    return f"{size(bytes_per_s)}/s"


def churn_text(report: SizingReport) -> str:
    if report.churn_bytes_per_day is None or report.busiest_hour_bytes_per_s is None:
        return f"{NOT_KNOWN}, nothing was observed yet"
    return f"{size(report.churn_bytes_per_day)} a day, {rate(report.busiest_hour_bytes_per_s)} in the busiest hour"


def bandwidth_text(report: SizingReport) -> str:
    needed = report.bandwidth_needed_bits_per_s
    return NOT_KNOWN if needed is None else rate_text(needed)


def each_churn_text(bytes_per_day: float | None) -> str:
    return NOT_KNOWN if bytes_per_day is None else size(bytes_per_day)


def line_name(line: SizedLine) -> str:
    return rate_text(line.bits_per_s) + (" (given)" if line.asked_for else " (needed)" if line.needed else "")


def duration_or_never(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)


def rpo_text(report: SizingReport, line: SizedLine) -> str:
    """No bound is another thing than no churn known."""
    return NOT_KNOWN if report.churn_bytes_per_day is None else duration_or_never(line.rpo_s)
