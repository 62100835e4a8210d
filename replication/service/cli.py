"""The options that every daemon takes: ``--config``, ``--check-config``, ``--version``; how a CLI reports errors.

Called by each package's ``cli.py``. Exit codes: 0 done, 1 failed, 2 wrong use or unusable configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import click
from click.core import ParameterSource

from replication import __version__
from replication.errors import BlockferryError, SettingsError
from replication.failpoint import arm_from_environment
from replication.service.runtime import EXIT_FAILED, EXIT_SETTINGS
from replication.settings import load_settings
from replication.terminal_text import printable

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


def arm_or_exit(program: str) -> None:
    """As ``arm_from_environment``, for a command that makes the daemon's first files; exits 2 with the reason if it cannot be armed so."""
    try:
        arm_from_environment(program)
    except SettingsError as error:
        fail(error)


def fail(error: BlockferryError) -> NoReturn:
    """Print what, where and remedy on standard error and exit (2 for unusable input, else 1)."""
    click.echo(printable(f"error: {error.message}"), err=True)
    if error.hint:
        click.echo(printable(f"hint:  {error.hint}"), err=True)
    sys.exit(EXIT_SETTINGS if isinstance(error, SettingsError) else EXIT_FAILED)
