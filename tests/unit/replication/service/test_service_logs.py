"""Logs: one JSON object a line, or text; fields, exceptions and awkward values survive in both."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from replication.service.logs import LogFormat, configure_logging


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Logging as it was before the test: its configuration is the process's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _logged(monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("process-server", log_format=log_format, level="info")
    logger = logging.getLogger("spool")
    logger.debug("not at this level")
    logger.warning("spool %d %% full", 80, extra={"fields": {"disk": "sda", "size": {1}, "path": "a\nb"}})
    logger.error("cannot read", exc_info=ValueError("bad\nworse"))
    return stream.getvalue()


def test_json_is_one_object_a_line_with_every_field(monkeypatch: pytest.MonkeyPatch, root_logger: None) -> None:
    first, second = (json.loads(line) for line in _logged(monkeypatch, "json").splitlines())
    assert first["time"].endswith("+00:00")
    assert {key: first[key] for key in ("level", "daemon", "logger", "message", "disk", "size", "path")} == {
        "level": "warning",
        "daemon": "process-server",
        "logger": "spool",
        "message": "spool 80 % full",
        "disk": "sda",
        "size": "{1}",
        "path": "a\nb",
    }
    assert second["message"] == "cannot read"
    assert "ValueError: bad\nworse" in second["exception"]


def test_field_does_not_replace_what_the_line_says_of_itself(
    monkeypatch: pytest.MonkeyPatch, root_logger: None
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("agent", log_format="json")
    logging.getLogger("x").error("real", extra={"fields": {"message": "false", "level": "info", "daemon": "other"}})
    entry = json.loads(stream.getvalue())
    assert (entry["message"], entry["level"], entry["daemon"]) == ("real", "error", "agent")
    assert (entry["field_message"], entry["field_level"]) == ("false", "info")


def test_text_has_fields_and_traceback(monkeypatch: pytest.MonkeyPatch, root_logger: None) -> None:
    text = _logged(monkeypatch, "text")
    assert "warning spool: spool 80 % full  [disk=sda size={1} path=a\\nb]" in text
    assert "ValueError: bad" in text


def test_one_message_is_one_line_of_text(monkeypatch: pytest.MonkeyPatch, root_logger: None) -> None:
    """A peer's words in a message must not look like lines of our own."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging("agent", log_format="text")
    logging.getLogger("x").error("peer said %s", "no\n12:00:00.000 info    x: all is well\x1b[2J")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (_Terminal(), False)])
def test_automatic_format_is_text_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, root_logger: None, stream: io.StringIO, is_json: bool
) -> None:
    assert _logged(monkeypatch, "auto", stream).startswith("{") == is_json


def test_chatty_libraries_are_quiet_below_warnings(monkeypatch: pytest.MonkeyPatch, root_logger: None) -> None:
    _logged(monkeypatch, "json")
    assert not logging.getLogger("aiohttp.access").isEnabledFor(logging.INFO)
    assert logging.getLogger("sqlalchemy").isEnabledFor(logging.WARNING)
