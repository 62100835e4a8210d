"""The command ``migratectl``: its global options and its commands. Called by ``__main__.py``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import click

from config_server.migratectl.invocation import Invocation, fail
from replication import __version__
from replication.errors import BlockferryError

EPILOG = (
    "Exit codes: 0 done; 1 failed or refused; 2 wrong use; 3 the check found a blocker; 4 the wait timed out; "
    "5 the job failed; 6 the server cannot be reached; 10, 11 `health`: a warning, critical."
)


_COMMANDS: Final = {
    "access_commands": (
        "certificates",
        "revoke-certificate",
        "tokens",
        "create-token",
        "revoke-token",
        "audit",
    ),
    "agent_limits_commands": (
        "agent-limits",
        "set-agent-limits",
    ),
    "alert_commands": (
        "health",
        "alerts",
        "acknowledge-alert",
        "test-webhook",
    ),
    "discovery_commands": (
        "discover",
        "cancel-discovery",
    ),
    "installation_commands": (
        "installations",
        "cancel-installation",
    ),
    "item_commands": (
        "status",
        "recovery-points",
        "jobs",
    ),
    "item_orders": (
        "protect",
        "create-recovery-point",
        "test-migrate",
        "cleanup",
        "migrate",
        "cancel",
        "complete",
        "pause",
        "resume",
        "stop-replication",
        "resync",
    ),
    "process_server_commands": (
        "process-servers",
        "drain-process-server",
        "undrain-process-server",
        "remove-process-server",
        "switch-process-server",
    ),
    "site_commands": (
        "login",
        "site",
        "servers",
        "check",
        "events",
        "policies",
        "set-policy",
        "delete-policy",
        "create-enrolment-passphrase",
        "enrolment-passphrases",
        "revoke-enrolment-passphrase",
    ),
    "sizing_commands": (
        "size",
        "plan",
    ),
    "upload_limits_commands": (
        "upload-limits",
        "set-upload-limits",
    ),
}
"""The module of each command: it is imported when the command is asked for, as every other one would cost time."""
_FUNCTIONS: Final = {"size": "size_site"}
"""Where it is not named as the command."""
_BELOW_SERVERS: Final = ("discovery_commands", ("accept_host_key", "forget"))
_MODULE_OF: Final = {name: module for module, names in _COMMANDS.items() for name in names}


class _Group(click.Group):
    """Imports a command's module when it is asked for; says an error of the tree as such, wherever in a command it comes from."""

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """All of them, imported."""
        return {name: _command(name) for name in sorted(_MODULE_OF)}

    @commands.setter
    def commands(self, added: MutableMapping[str, click.Command]) -> None:
        """What click's constructor sets: none is added."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_MODULE_OF)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in _MODULE_OF else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BlockferryError as error:
            fail(error)


@functools.cache
def _command(name: str) -> click.Command:
    module = importlib.import_module(f"config_server.migratectl.{_MODULE_OF[name]}")
    command: click.Command = getattr(module, _FUNCTIONS.get(name, name.replace("-", "_")))
    if isinstance(command, click.Group):
        below, names = _BELOW_SERVERS
        for inner in names:
            command.add_command(getattr(importlib.import_module(f"config_server.migratectl.{below}"), inner))
    return command


@click.group(epilog=EPILOG, cls=_Group)
@click.option(
    "--url",
    "urls",
    multiple=True,
    envvar="BLOCKFERRY_URL",
    help="https://HOST[:PORT] of the configuration server; repeated (in the variable: with blanks between), those of a site with several.",
)
@click.option(
    "--token-file",
    envvar="BLOCKFERRY_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help="File with your token, or with the one-time secret, which is exchanged there.",
)
@click.option(
    "--authority",
    envvar="BLOCKFERRY_AUTHORITY",
    type=click.Path(path_type=Path),
    help="File with the site's authority (PEM), as `config-server show-authority` prints it.",
)
@click.version_option(__version__, prog_name="migratectl")
@click.pass_context
def main(context: click.Context, urls: tuple[str, ...], token_file: Path | None, authority: Path | None) -> None:
    """Protect servers, test their migration, migrate them."""
    context.obj = Invocation(urls, token_file, authority)
