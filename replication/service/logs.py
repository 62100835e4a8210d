"""Structured logs: text on a terminal, one JSON object a line otherwise.

Called by each ``cli.py`` once at start. Callers log decisions with ``extra={"fields": {...}}``; secrets never go in.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_NOISY_LIBRARIES: Final = ("aiohttp.access", "asyncio", "aiosqlite", "alembic", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The ``log:`` section of every daemon. ``format`` auto: text on a terminal, JSON otherwise."""

    format: LogFormat = "auto"
    level: LogLevel = "info"


# A peer's words in a message neither end the line nor move the terminal's cursor.
_ESCAPED: Final = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


class _JsonFormatter(logging.Formatter):
    def __init__(self, daemon: str) -> None:
        super().__init__()
        self._daemon = daemon

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "daemon": self._daemon,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in getattr(record, "fields", {}).items():
            entry[f"field_{key}" if key in entry else key] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        line = f"{moment} {record.levelname.lower():7} {record.name}: {record.getMessage()}"
        line = (f"{line}  [{fields}]" if fields else line).translate(_ESCAPED)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(daemon: str, *, log_format: LogFormat = "auto", level: LogLevel = "info") -> None:
    """Send all logging to standard error in the chosen format; replaces earlier handlers."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TextFormatter() if as_text else _JsonFormatter(daemon))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in _NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
