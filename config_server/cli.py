"""The command ``config-server``: ``init`` once, ``run`` as a daemon, and what an administrator does on the appliance itself.

Called by ``__main__.py``. Exit codes: 0 done, 1 failed, 2 wrong use or unusable configuration. Without a command it runs the daemon.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import sys
import time
from pathlib import Path

import click

from config_server import daemon
from config_server.administrators import Administrators
from config_server.authority import ServerNames, TrustStore
from config_server.backup import back_up, check_backup
from config_server.backup import restore as restore_backup
from config_server.certificate_plane import DEFAULT_TOKEN_VALIDITY_S
from config_server.config import DEFAULT_CONFIG, Settings
from config_server.core.roles import ADMINISTRATOR, ROLES
from config_server.database import DATABASE_FILE, Database, sqlite_url
from config_server.database_copy import copy_database
from config_server.events import COMMAND_LINE
from config_server.first_access import SecretFile
from config_server.installation import initialize, issue_certificate, load_authority, reissue_certificate
from config_server.installer_commands import add_installer, installers, remove_installer
from config_server.passphrases import DEFAULT_VALIDITY_S, Passphrases
from config_server.postgresql import is_postgresql
from replication.control_plane import ENROLLING_ROLES, EnrollingRole
from replication.errors import BlockferryError, SettingsError
from replication.service.cli import arm_or_exit, daemon_options, fail, hand_on_options, load_or_exit, version_option
from replication.service.installed_folders import paths_command
from replication.service.logs import configure_logging
from replication.service.runtime import run_daemon
from replication.settings import parse_duration
from replication.tls_identity import Role

PROGRAM = "config-server"
SECRET_FILE = "one-time-secret"  # noqa: S105 - the name of a file
MAX_PASSPHRASE_BYTES = 4096
RESTORED = """\
Before you start it:
 - the server that the backup is of must never run again: two with one authority contradict each other;
 - give the files to the daemon's user, if you restored as root; `names` must hold the address under which it is reached now.
After that:
 - agents and process servers go on with the certificates that they have, and without a resync: they are told the present state,
   whatever revision they saw last, and generations that the store knows better than this database are adopted;
 - what happened since the backup is not known: revoke again what was revoked (certificates, tokens, passphrases), protect again
   what was protected; items that were stopped or completed since are shown as they were: stop them;
 - `migratectl status` and `migratectl events` show how the site comes back."""
RESTORED_WITHOUT_INSTALLERS = (
    " - a backup holds no installers: offer them again with `config-server add-installer FILE`; until then nothing is at /downloads,\n"
    "   and agents can neither be installed from here nor upgraded."
)
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


for command in (paths_command("config-server"), add_installer, remove_installer, installers):
    main.add_command(command)


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
    help="Write the one-time secret there (mode 0600) instead of printing it; `migratectl` exchanges it in that file.",
)
@click.option(
    "--administrator",
    default=None,
    help="For programs that install: write a token of an administrator of this name into --token-file, no secret.",
)
@click.option(
    "--replace-keys",
    is_flag=True,
    help="The site's authority or key-encryption key is lost for good, and what is here, or made, takes its place.",
)
def init(config_path: Path, token_file: Path | None, administrator: str | None, *, replace_keys: bool) -> None:
    """Make authority, keys, database and a one-time secret for the first administrator; what is there stays."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    arm_or_exit(PROGRAM)
    if administrator is not None and token_file is None:
        fail(SettingsError("cannot hand out a token without a file for it", hint="give --token-file, too"))
    # What is no terminal may be a journal: a secret has no business there.
    place = token_file or (None if sys.stdout.isatty() else settings.state_dir / SECRET_FILE)
    file = None if place is None else SecretFile(place, asked_for=token_file is not None)
    try:
        installed = asyncio.run(
            initialize(settings, time.time_ns, administrator, replace_keys=replace_keys, secret_file=file)
        )
    except BlockferryError as error:
        fail(error)
    click.echo(f"authority fingerprint: {installed.fingerprint}")
    click.echo(f"key-encryption key:    {installed.key_encryption_key_file} (back it up: `config-server backup`)")
    if installed.secret is None and token_file is not None:
        click.echo(f"one-time secret:       none was made: with what is in {token_file} an administrator can come in")
    elif installed.secret is None:
        click.echo(
            "one-time secret:       none was made: an administrator's token was made earlier, or a secret waits, which"
        )
        click.echo("                       `config-server init --token-file FILE` replaces and writes into a file;")
        click.echo("                       `config-server create-administrator-token` makes another token")
    elif place is None:
        click.echo(f"one-time secret:       {installed.secret}")
        click.echo(
            "                       shown this once, good once, for a day: put it into a file that only you can read,"
        )
        click.echo("                       and `migratectl login --token-file FILE` exchanges it there for your token")
    else:
        what = "token:   " if administrator else "secret:  "
        click.echo(f"{'administrator' if administrator else 'one-time'} {what}    written to {place}")
        if not administrator:
            click.echo(
                "                       `migratectl login --token-file` exchanges it there for a token, within a day"
            )


@main.command("copy-database")
@_config
@click.option(
    "--from", "source_path", type=click.Path(path_type=Path), help="The file; by default state.sqlite in state_dir."
)
def copy(config_path: Path, source_path: Path | None) -> None:
    """Copy the state from SQLite into the PostgreSQL database of the configuration, while no server runs."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    file = source_path or settings.state_dir / DATABASE_FILE

    async def act() -> int:
        source, target = Database(sqlite_url(file)), settings.open_database()
        try:
            return await copy_database(source, target)
        finally:
            await source.close()
            await target.close()

    try:
        if not is_postgresql(settings.effective_database_url):
            raise SettingsError("cannot copy to SQLite", hint="set database_url to postgresql://… first")
        if not file.is_file():
            raise SettingsError(f"cannot find the database {file}", hint="name it with --from")
        rows = asyncio.run(act())
    except BlockferryError as error:
        fail(error)
    click.echo(f"copied {rows} rows; keep {file} until you have seen the site work")


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


def _address(text: str) -> str:
    """:raises SettingsError: if it is no IP address; as a name it would stand in the certificate, and nobody would find it."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise SettingsError(
            f"cannot use {text[:100]!r} for --ip: it is no IP address", hint="names are given with --dns"
        ) from None


def _no_address(text: str) -> str:
    """:raises SettingsError: if its last label is a number: then it is looked up as an address by all who connect, and it is none."""
    if text.rstrip(".").rpartition(".")[2].isdigit():
        raise SettingsError(f"cannot use {text[:100]!r} for --dns: it is no name", hint="addresses are given with --ip")
    return text


@main.command("issue-certificate")
@_config
@click.option("--role", type=click.Choice([Role.SINK.value]), default=Role.SINK.value, show_default=True)
@click.option("--dns", "dns_names", multiple=True, help="A DNS name to list; may be repeated.")
@click.option("--ip", "addresses", multiple=True, help="An IP address to list; may be repeated.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Directory for key, certificate, authorities."
)
@click.option("--renew", is_flag=True, help="The identity in --out goes on: a new key and certificate in its place.")
def issue(
    config_path: Path, role: str, dns_names: tuple[str, ...], addresses: tuple[str, ...], out: Path, renew: bool
) -> None:
    """Issue an identity for a server that does not enrol: the sink."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        names = ServerNames.parse([*map(_no_address, dns_names), *map(_address, addresses)])
        if renew:
            name = reissue_certificate(settings, names, out, time.time_ns)
        elif not dns_names and not addresses:
            raise SettingsError("cannot issue a server's certificate without a name", hint="give --dns or --ip")
        else:
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
        database = settings.open_database()
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
@click.option("--name", required=True, help="Whose it is; shown in events and in the audit log.")
@click.option("--role", type=click.Choice(ROLES), default=ADMINISTRATOR, show_default=True, help="What it may do.")
@click.option(
    "--valid-for",
    default=f"{DEFAULT_TOKEN_VALIDITY_S / 86400:.0f} d",
    show_default=True,
    help="Such as 8 h or 90 d; at most five years.",
)
def create_administrator_token(config_path: Path, name: str, role: str, valid_for: str) -> None:
    """Print a new token, an administrator's by default, for instance when the last one is lost."""
    settings = load_or_exit(Settings, config_path, check_only=False)

    async def create() -> str:
        database = settings.open_database()
        try:
            await database.upgrade()
            valid_for_s = parse_duration(valid_for, "--valid-for")
            made = await Administrators(database, time.time_ns).create_token(name, COMMAND_LINE, role, valid_for_s)
            return made.text
        finally:
            await database.close()

    try:
        click.echo(asyncio.run(create()))
    except BlockferryError as error:
        fail(error)


_passphrase_file = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    help="File with the backup's passphrase; `-` reads standard input.",
)


def _passphrase(path: Path) -> str:
    try:
        text = sys.stdin.read(MAX_PASSPHRASE_BYTES) if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the passphrase file {path}: {error}") from error
    return text.strip()


@main.command()
@_config
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The backup's file.")
@_passphrase_file
def backup(config_path: Path, out: Path, passphrase_file: Path) -> None:
    """Back up configuration, authority, key-encryption key and database, sealed with a passphrase; the server may run meanwhile."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        facts = back_up(settings, config_path, out, _passphrase(passphrase_file), time.time_ns)
    except BlockferryError as error:
        fail(error)
    except OSError as error:
        fail(SettingsError(f"cannot write the backup {out}: {error.strerror or error}"))
    click.echo(
        f"{out}: {out.stat().st_size} bytes, the site {facts.authority_fingerprint[:23]}... as of {facts.created_at}"
    )
    click.echo("without the passphrase it is worth nothing; with it, everything: keep them apart from each other")


@main.command()
@_config
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@_passphrase_file
@click.option("--check", is_flag=True, help="Only prove that the backup can be restored; nothing is changed.")
@click.option(
    "--work-in",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="With --check: a directory of this machine for what is in it, in clear meanwhile; by default beside ARCHIVE.",
)
@click.option(
    "--keep-database",
    is_flag=True,
    help="On PostgreSQL: the database has the site still; only authority, key and configuration are restored.",
)
def restore(
    config_path: Path, archive: Path, passphrase_file: Path, *, check: bool, work_in: Path | None, keep_database: bool
) -> None:
    """Restore a backup into an empty state directory (and an empty PostgreSQL database); then say what follows."""
    try:
        passphrase = _passphrase(passphrase_file)
        if check:
            facts = check_backup(archive, passphrase, work_in)
            click.echo(
                f"{archive} can be restored: the site {facts.authority_fingerprint[:23]}... as of {facts.created_at}"
            )
            return
        settings, facts = restore_backup(archive, config_path, passphrase, time.time_ns, keep_database=keep_database)
    except BlockferryError as error:
        fail(error)
    except OSError as error:
        fail(SettingsError(f"cannot restore {archive}: {error.strerror or error}"))
    if keep_database:
        click.echo(f"restored into {settings.state_dir}: the keys of the site {facts.authority_fingerprint}")
        click.echo("the database is as it was; `config-server init` makes this server's certificate")
        click.echo(RESTORED_WITHOUT_INSTALLERS)
        return
    place = " and its PostgreSQL database" if is_postgresql(settings.effective_database_url) else ""
    click.echo(
        f"restored into {settings.state_dir}{place}: the site {facts.authority_fingerprint} as of {facts.created_at}"
    )
    click.echo(RESTORED)
    click.echo(RESTORED_WITHOUT_INSTALLERS)
