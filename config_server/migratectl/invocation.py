"""What every command shares: options for the connection, running a coroutine, exit codes. Called by the command modules.

It imports neither documents nor tables: what only orders something (``item_orders.py``) has sent it before these are read.

Exit codes: 0 done; 1 failed or refused; 2 wrong use or unusable settings; 3 the check found a blocker; 4 the wait timed out;
5 the job failed or was cancelled; 6 the server cannot be reached; 130 interrupted (a job goes on).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from config_server.migratectl.connection import ConfigServer, Connection, WaitTimedOut
from replication.errors import BlockferryError, PeerUnavailable, SettingsError
from replication.settings import parse_duration
from replication.terminal_text import printable

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_READY: Final = 3
EXIT_TIMED_OUT: Final = 4
EXIT_JOB_FAILED: Final = 5
EXIT_UNREACHABLE: Final = 6
EXIT_INTERRUPTED: Final = 130

ResultT = TypeVar("ResultT")
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Invocation:
    """The options before the command."""

    urls: tuple[str, ...]
    token_file: Path | None
    authority: Path | None

    def run(self, action: Callable[[ConfigServer], Awaitable[ResultT]]) -> ResultT:
        """Connect, act, and turn every expected failure into a message and an exit code."""

        async def act() -> ResultT:
            async with ConfigServer(Connection.resolve(self.urls, self.token_file, self.authority)) as server:
                return await action(server)

        return guarded(act)


def guarded(act: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Run a coroutine; an expected failure ends the process with a message."""

    async def awaited() -> ResultT:
        return await act()

    try:
        return asyncio.run(awaited())
    except BlockferryError as error:
        fail(error)
    except KeyboardInterrupt:
        click.echo("interrupted; a job that was started goes on", err=True)
        sys.exit(EXIT_INTERRUPTED)


def fail(error: BlockferryError) -> NoReturn:
    """Message and remedy on standard error, then the exit code of this kind of failure."""
    click.echo(printable(f"error: {error.message}"), err=True)
    if error.hint:
        click.echo(printable(f"hint:  {error.hint}"), err=True)
    if isinstance(error, SettingsError):
        sys.exit(EXIT_USAGE)
    if isinstance(error, PeerUnavailable):
        sys.exit(EXIT_UNREACHABLE)
    sys.exit(EXIT_TIMED_OUT if isinstance(error, WaitTimedOut) else EXIT_FAILED)


pass_invocation = click.make_pass_decorator(Invocation)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json_wanted", is_flag=True, help="Print the answer as JSON.")(command)


def wait_options(command: Command) -> Command:
    command = click.option(
        "--timeout",
        default=None,
        help="With --wait: give up waiting after this time (such as 30 min); the job goes on.",
    )(command)
    return click.option("--wait", is_flag=True, help="Wait for the job's end, with a progress bar on a terminal.")(
        command
    )


def confirm_option(command: Command) -> Command:
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def confirmed(question: str, *, yes: bool) -> None:
    """Ask, unless ``--yes``; where nobody can be asked, refuse. The question is no part of the output."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail(SettingsError(f"cannot ask: {question}", hint="--yes says yes where standard input is no terminal"))
    click.confirm(question, abort=True, err=True)


def start_job(
    invocation: Invocation,
    order: Callable[[ConfigServer], Awaitable[bytes]],
    *,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """Start a job, wait for it if wanted, print what came of it; exits 5 if it failed. ``order``: sends it, returns the answer."""

    async def act(server: ConfigServer) -> bool:
        timeout_s = None if timeout is None else parse_duration(timeout, "--timeout")
        answer = await order(server)
        from config_server.migratectl import ordered_job  # noqa: PLC0415 -- half of the start: the server is at work meanwhile

        return await ordered_job.follow(server, answer, wait=wait, timeout_s=timeout_s, as_json_wanted=as_json_wanted)

    if not invocation.run(act):
        sys.exit(EXIT_JOB_FAILED)
