"""The options that every daemon takes: ``--config``, ``--check-config``, ``--version``; how a CLI reports errors, and where its tables go.

Called by each package's ``cli.py`` and by ``migratectl``. Exit codes: 0 done, 1 failed, 2 wrong use or unusable configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from replication import __version__
from replication.errors import BlockferryError, SettingsError
from replication.service.runtime import EXIT_FAILED, EXIT_SETTINGS
from replication.settings import load_settings

PLAIN_WIDTH: Final = 200
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
SettingsT = TypeVar("SettingsT")
Command = TypeVar("Command", bound=Callable[..., object])


def daemon_options(default_config: str) -> Callable[[Command], Command]:
    """Add ``--config FILE`` (default ``default_config``) and ``--check-config`` to a click command."""

    def decorate(command: Command) -> Command:
        with_check = click.option("--check-config", is_flag=True, help="Parse the configuration, say so, and exit.")(
            command
        )
        return click.option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path),
            default=default_config,
            show_default=True,
            help="Configuration file (YAML).",
        )(with_check)

    return decorate


def hand_on_options(context: click.Context) -> None:
    """What was given before a command counts for the command: ``program --config FILE run`` is ``program run --config FILE``.

    :raises click.UsageError: if the command does not take it.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    group, name = context.command, context.invoked_subcommand
    command = group.get_command(context, name) if isinstance(group, click.Group) and name is not None else None
    if name is None or command is None or not given:
        return
    taken = {parameter.name for parameter in command.params}
    for parameter in context.command.params:
        if parameter.name in given and parameter.name not in taken:
            raise click.UsageError(f"{max(parameter.opts, key=len)} means nothing to the command {name}", context)
    context.default_map = {name: given}


def version_option(program: str) -> Callable[[Command], Command]:
    return click.version_option(__version__, prog_name=program)


def printable(text: str) -> str:
    """``text`` with a sign in place of all that a terminal would obey: host names, models, messages come from others."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else REPLACEMENT for sign in text)


def one_line(text: str) -> str:
    r"""``text`` with an escape (``\n``, ``\x1b``) in place of all that is not printed: it takes one line, whoever wrote it."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


class _PrintableConsole(Console):
    """What is printed is shown, not obeyed; colours and the like are the console's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def make_console() -> Console:
    """For standard output; a table that goes into a file or a pipe is not cut to 80 columns. Nothing printed is obeyed by a terminal."""
    console = _PrintableConsole(highlight=False, markup=False)
    return console if console.is_terminal else _PrintableConsole(highlight=False, markup=False, width=PLAIN_WIDTH)


def load_or_exit(settings_type: type[SettingsT], path: Path, *, check_only: bool) -> SettingsT:
    """Load the configuration; exits 2 with the reason if unusable, 0 after saying so if only a check was asked for."""
    try:
        settings = load_settings(settings_type, path)
    except SettingsError as error:
        fail(error)
    if check_only:
        click.echo(f"{path}: the configuration can be used")
        sys.exit(0)
    return settings


def fail(error: BlockferryError) -> NoReturn:
    """Print what, where and remedy on standard error and exit (2 for unusable input, else 1)."""
    click.echo(printable(f"error: {error.message}"), err=True)
    if error.hint:
        click.echo(printable(f"hint:  {error.hint}"), err=True)
    sys.exit(EXIT_SETTINGS if isinstance(error, SettingsError) else EXIT_FAILED)
