"""How a command is told to log in over SSH: files, never secrets on the command line. Called by ``discover`` and ``protect``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def login_options(command: Command) -> Command:
    """How to log in over SSH; also for ``protect``."""
    file = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
    for option, text in (
        ("--sudo-password-file", "File with the password for sudo; by default the login's."),
        ("--password-file", "File with the login's password; `-` asks, or reads standard input."),
        ("--key-passphrase-file", "File with the passphrase of the private key."),
        ("--key-file", "The private key to log in with."),
    ):
        command = click.option(option, type=file, default=None, help=text)(command)
    return command
