"""The options that every daemon takes, and how a command says that it failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.table import Table
from rich.text import Text

from replication import __version__
from replication.errors import InvalidInput, PeerUnavailable, SettingsError
from replication.service.cli import daemon_options, fail, load_or_exit, version_option
from replication.service.console import make_console


@dataclass(frozen=True)
class _Settings:
    workers: int = 1


@click.command()
@version_option("process-server")
@daemon_options("/etc/blockferry/process-server.yaml")
def command(config_path: Path, check_config: bool) -> None:
    settings = load_or_exit(_Settings, config_path, check_only=check_config)
    click.echo(f"workers {settings.workers}")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("workers: 3\n")
    return path


def test_configuration_is_loaded(config: Path) -> None:
    result = CliRunner().invoke(command, ["--config", str(config)])
    assert (result.exit_code, result.stdout) == (0, "workers 3\n")


def test_check_says_so_and_does_not_start(config: Path) -> None:
    result = CliRunner().invoke(command, ["--config", str(config), "--check-config"])
    assert (result.exit_code, result.stdout) == (0, f"{config}: the configuration can be used\n")


@pytest.mark.parametrize("arguments", [[], ["--check-config"]])
def test_unusable_configuration_ends_with_reason_and_hint(config: Path, arguments: list[str]) -> None:
    config.write_text("worker: 3\n")
    result = CliRunner().invoke(command, ["--config", str(config), *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: cannot use unknown key 'worker' in {config}\nhint:  did you mean 'workers'?\n"


def test_version_is_the_products() -> None:
    result = CliRunner().invoke(command, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"process-server, version {__version__}\n")


def test_help_shows_the_default_configuration() -> None:
    shown = CliRunner().invoke(command, ["--help"]).stdout
    assert "/etc/blockferry/process-server.yaml" in "".join(shown.split())


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PeerUnavailable("cannot reach it"), 1, "error: cannot reach it\n"),
        (InvalidInput("cannot use it", hint="use another"), 1, "error: cannot use it\nhint:  use another\n"),
        (SettingsError("cannot read it"), 2, "error: cannot read it\n"),
    ],
)
def test_failure_is_told_on_standard_error(
    capsys: pytest.CaptureFixture[str], error: InvalidInput, code: int, text: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(error)
    assert ended.value.code == code
    assert capsys.readouterr() == ("", text)


HOSTILE = "web\x1b[2J\x1b]0;t\x07\r\x9b31m\u202e-1"
SHOWN = "web\N{REPLACEMENT CHARACTER}[2J"


def test_what_comes_from_others_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("NAME")
    table.add_row(HOSTILE)
    console = make_console()
    console.print(table)
    console.print(Text(HOSTILE, style="red"))
    console.print(HOSTILE, soft_wrap=True)
    console.print("a\tb\nc")
    with pytest.raises(SystemExit):
        fail(InvalidInput(f"cannot use {HOSTILE}\nat all", hint=HOSTILE))
    said, complaint = capsys.readouterr()
    assert (said.count(SHOWN), complaint.count(SHOWN)) == (3, 2)
    for sign in "\x1b\x07\r\x9b\u202e":
        assert sign not in said + complaint
    assert "\nc\n" in said
    assert "\nat all\n" in complaint
