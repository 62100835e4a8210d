"""The command ``config-server``: ``init`` once, ``run`` as a daemon, and what an administrator does on the appliance itself.

Called by ``__main__.py``. Exit codes: 0 done, 1 failed, 2 wrong use or unusable configuration. Without a command it runs the daemon.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from pathlib import Path

import click

from config_server import daemon
from config_server.administrators import Administrators
from config_server.authority import ServerNames, TrustStore
from config_server.config import DEFAULT_CONFIG, Settings
from config_server.database import Database
from config_server.events import COMMAND_LINE
from config_server.installation import initialize, issue_certificate, load_authority
from config_server.passphrases import DEFAULT_VALIDITY_S, Passphrases
from replication.control_plane import ENROLLING_ROLES, EnrollingRole
from replication.durable_file import DurableFile
from replication.errors import BlockferryError, SettingsError
from replication.service.cli import daemon_options, fail, hand_on_options, load_or_exit, version_option
from replication.service.logs import configure_logging
from replication.service.runtime import run_daemon
from replication.settings import parse_duration
from replication.tls_identity import Role

PROGRAM = "config-server"
_config = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Configuration file (YAML).",
)


def _run(config_path: Path, *, check_config: bool) -> None:
    settings = load_or_exit(Settings, config_path, check_only=check_config)
    configure_logging(PROGRAM, log_format=settings.log.format, level=settings.log.level)
    sys.exit(run_daemon(PROGRAM, functools.partial(daemon.run, settings)))


@click.group(invoke_without_command=True)
@daemon_options(DEFAULT_CONFIG)
@version_option(PROGRAM)
@click.pass_context
def main(context: click.Context, config_path: Path, check_config: bool) -> None:
    """Configuration server of a replication appliance: enrolment, policies, protection, jobs."""
    if context.invoked_subcommand is None:
        _run(config_path, check_config=check_config)
    else:
        hand_on_options(context)


@main.command()
@daemon_options(DEFAULT_CONFIG)
def run(config_path: Path, check_config: bool) -> None:
    """Serve until SIGTERM."""
    _run(config_path, check_config=check_config)


@main.command()
@_config
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Write the first administrator's token there (mode 0600) instead of printing it.",
)
def init(config_path: Path, token_file: Path | None) -> None:
    """Make authority, keys, database and the first administrator's token; what is there stays."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        installed = asyncio.run(initialize(settings, time.time_ns))
    except BlockferryError as error:
        fail(error)
    click.echo(f"authority fingerprint: {installed.fingerprint}")
    click.echo(f"key-encryption key:    {installed.key_encryption_key_file} (back it up)")
    if installed.token is None:
        click.echo("administrator token:   made earlier; `config-server create-administrator-token` makes another")
    elif token_file is None:
        click.echo(f"administrator token:   {installed.token}")
        click.echo("                       shown this once; keep it in a file that only you can read")
    else:
        DurableFile(token_file).replace(f"{installed.token}\n".encode())
        click.echo(f"administrator token:   written to {token_file}")


@main.command("show-fingerprint")
@_config
def show_fingerprint(config_path: Path) -> None:
    """Print the authority's SHA-256 fingerprint, which agents compare before they trust."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        click.echo(load_authority(settings).fingerprint)
    except BlockferryError as error:
        fail(error)


@main.command("show-authority")
@_config
def show_authority(config_path: Path) -> None:
    """Print the trusted authorities (PEM), for `migratectl --authority` and for the sink's clients."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        click.echo(TrustStore(settings.authority_directory).trusted_pem(), nl=False)
    except BlockferryError as error:
        fail(error)


@main.command("issue-certificate")
@_config
@click.option("--role", type=click.Choice([Role.SINK.value]), default=Role.SINK.value, show_default=True)
@click.option("--dns", "dns_names", multiple=True, help="A DNS name to list; may be repeated.")
@click.option("--ip", "addresses", multiple=True, help="An IP address to list; may be repeated.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Directory for key, certificate, authorities."
)
def issue(config_path: Path, role: str, dns_names: tuple[str, ...], addresses: tuple[str, ...], out: Path) -> None:
    """Issue an identity for a server that does not enrol: the sink."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        names = ServerNames.parse([*dns_names, *addresses])
        if not dns_names and not addresses:
            raise SettingsError("cannot issue a server's certificate without a name", hint="give --dns or --ip")
        name = issue_certificate(settings, Role(role), names, out, time.time_ns)
    except BlockferryError as error:
        fail(error)
    click.echo(f"{name.urn} in {out}")


@main.command("create-enrolment-passphrase")
@_config
@click.option(
    "--valid-for", default=f"{DEFAULT_VALIDITY_S / 86400:.0f} d", show_default=True, help="Such as 8 h or 5 d."
)
@click.option(
    "--role",
    type=click.Choice(ENROLLING_ROLES),
    default=ENROLLING_ROLES[0],
    show_default=True,
    help="What may enrol with it: servers to be protected, or process servers.",
)
def create_enrolment_passphrase(config_path: Path, valid_for: str, role: EnrollingRole) -> None:
    """Print a new passphrase with which agents enrol, or process servers."""
    settings = load_or_exit(Settings, config_path, check_only=False)

    async def create() -> str:
        database = Database(settings.effective_database_url)
        try:
            await database.upgrade()
            passphrases = Passphrases(database, time.time_ns)
            made = await passphrases.create(parse_duration(valid_for, "--valid-for"), COMMAND_LINE, role)
        finally:
            await database.close()
        return made.text

    try:
        click.echo(asyncio.run(create()))
    except BlockferryError as error:
        fail(error)


@main.command("create-administrator-token")
@_config
@click.option("--name", required=True, help="Whose it is; shown in events.")
def create_administrator_token(config_path: Path, name: str) -> None:
    """Print a new administrator's token, for instance when the first one is lost."""
    settings = load_or_exit(Settings, config_path, check_only=False)

    async def create() -> str:
        database = Database(settings.effective_database_url)
        try:
            await database.upgrade()
            return await Administrators(database, time.time_ns).create_token(name, COMMAND_LINE)
        finally:
            await database.close()

    try:
        click.echo(asyncio.run(create()))
    except BlockferryError as error:
        fail(error)
