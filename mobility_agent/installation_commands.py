"""The commands that install, upgrade and remove the agent: ``install``, ``upgrade``, ``uninstall``; the Debian package's ``note-remains``.

Called by ``cli``, which adds them to the program. The installer (``deploy/packaging/installer-stub.sh``) unpacks a version and hands over
to ``install`` or ``upgrade --activate`` of what it unpacked. On a terminal what is missing is asked for; with ``--unattended`` nothing is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from mobility_agent.config import AgentSettings, LimitsSettings
from mobility_agent.installation.install import Wanted, is_enrolled
from mobility_agent.installation.install import install as install_tree
from mobility_agent.installation.places import CONFIGURATION, TREES, own_tree, require_own_ground
from mobility_agent.installation.remains import REMAINS
from mobility_agent.installation.remains import note_remains as note
from mobility_agent.installation.uninstall import uninstall as remove
from mobility_agent.installation.upgrade import activate, fetch_from_any
from mobility_agent.passphrase_file import read_passphrase
from replication.agent_limits import CPU_RANGE, READ_RANGE
from replication.errors import BlockferryError, InvalidInput, NotFound, Refused
from replication.service.cli import fail
from replication.service_address import ServiceAddress
from replication.settings import load_settings, parse_byte_rate, parse_size
from replication.tls_identity import Role, TlsIdentity

_UNATTENDED: Final = "ask nothing: what is missing is an error."


@click.command()
@click.option("--appliance", help="Where the configuration server is: https://HOST[:PORT].")
@click.option("--standby", "standbys", multiple=True, help="The site's other configuration server; may be repeated.")
@click.option("--fingerprint", help="SHA-256 fingerprint of the site's authority.")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the enrolment passphrase; `-` reads standard input. Not needed where the agent is enrolled already.",
)
@click.option("--unattended", is_flag=True, help=f"For scripts: {_UNATTENDED}")
@click.option("--read-rate", help=f"How much may be read of all disks: {READ_RANGE}.")
@click.option("--cpu-limit", type=float, help=f"Processor time: {CPU_RANGE}, such as 0.5 for half a core.")
@click.option("--memory-limit", help="Such as 256 MiB.")
def install(
    appliance: str | None,
    standbys: tuple[str, ...],
    fingerprint: str | None,
    passphrase_file: Path | None,
    unattended: bool,
    read_rate: str | None,
    cpu_limit: float | None,
    memory_limit: str | None,
) -> None:
    """Install the unpacked version as a service, enrol it, and start it. May be repeated."""
    try:
        limits = LimitsSettings(
            None if read_rate is None else parse_byte_rate(read_rate, "--read-rate"),
            cpu_limit,
            None if memory_limit is None else parse_size(memory_limit, "--memory-limit"),
        )
        require_own_ground()
        tree = own_tree()
        enrolled = is_enrolled()
        asks = not unattended and sys.stdin.isatty()
        passphrase = None
        wanted = Wanted(
            _given(appliance, "--appliance", "Appliance (https://HOST[:PORT])", asks=asks),
            _given(fingerprint, "--fingerprint", "Fingerprint of the site's authority", asks=asks),
            passphrase,
            limits,
            standbys,
        )
        if passphrase_file is not None:
            passphrase = read_passphrase(passphrase_file)
        elif not enrolled:
            passphrase = _given(None, "--passphrase-file", "Enrolment passphrase", asks=asks, secret=True)
        install_tree(tree, replace(wanted, passphrase=passphrase), click.echo)
    except BlockferryError as error:
        fail(error)


def _given(value: str | None, option: str, question: str, *, asks: bool, secret: bool = False) -> str:
    if value:
        return value
    if not asks:
        raise click.UsageError(f"Missing option '{option}'.")
    answer: str = click.prompt(question, hide_input=secret, err=True)
    return answer.strip()


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--version", "version", help="Take this version from the appliance instead of the newest.")
@click.option("--allow-downgrade", is_flag=True, help="Also an older version than the installed one.")
@click.option(
    "--activate", "activates", is_flag=True, hidden=True, help="The program tree that this runs from takes over."
)
def upgrade(file: Path | None, version: str | None, allow_downgrade: bool, activates: bool) -> None:
    """Replace the installed agent by the version in FILE (an installer), or by one that the appliance offers. Tracking goes on."""
    try:
        require_own_ground()
        if activates:
            activate(own_tree(), click.echo, allow_downgrade=allow_downgrade)
            return
        extra = ["--allow-downgrade"] if allow_downgrade else []
        if file is not None:
            sys.exit(_run_installer(file.resolve(), extra))
        with tempfile.TemporaryDirectory(prefix=".download-", dir=TREES) as directory:
            status = _fetch_and_run(Path(directory), version, extra)
        sys.exit(status)
    except BlockferryError as error:
        fail(error)


def _fetch_and_run(directory: Path, version: str | None, extra: list[str]) -> int:
    settings = load_settings(AgentSettings, CONFIGURATION)
    identity = TlsIdentity(settings.identity_dir)
    if not identity.exists():
        raise NotFound("cannot upgrade from the appliance: this agent is not enrolled", hint="mobility-agent enrol")
    urls = [f"https://{ServiceAddress.parse(url)}" for url in settings.config_server.urls]
    chosen, path = asyncio.run(fetch_from_any(urls, identity.client_context(Role.CONFIG_SERVER), directory, version))
    click.echo(f"fetched {chosen.file}")
    return _run_installer(path, extra)


def _run_installer(path: Path, extra: list[str]) -> int:
    """It replaces what runs here; this process only waits for it."""
    return subprocess.run(["/bin/sh", os.fspath(path), "upgrade", *extra], check=False).returncode


@click.command("note-remains", hidden=True)
def note_remains() -> None:
    """Write down what is left when the Debian package is removed, for the time when it is purged. Called by the package."""
    try:
        note(CONFIGURATION, click.echo)
    except BlockferryError as error:
        fail(error)
    except OSError as error:
        fail(Refused(f"cannot write {REMAINS}: {error.strerror or error}"))


@click.command()
@click.option("--purge", is_flag=True, help="Also configuration, identity, state, and the tracking in the kernel.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def uninstall(purge: bool, yes: bool) -> None:
    """Stop the agent and remove its programs. Its configuration, state and tracking stay, unless --purge is given."""
    try:
        require_own_ground()
        if not yes:
            if not sys.stdin.isatty():
                raise InvalidInput("cannot uninstall without being told so", hint="give --yes")
            click.confirm(
                "Nothing of the agent will be left; replication ends. Go on?" if purge else "Remove the programs?",
                abort=True,
                err=True,
            )
        remove(click.echo, purge=purge)
    except BlockferryError as error:
        fail(error)
