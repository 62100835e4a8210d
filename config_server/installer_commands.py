"""``config-server add-installer``, ``remove-installer``, ``installers``: what the appliance offers under ``/downloads``.

Called by ``cli``. They work on the files alone: a configuration server that runs serves the change at once.
"""

from __future__ import annotations

import socket
from pathlib import Path

import click
from rich.table import Table

from config_server.api.downloads import install_command
from config_server.config import DEFAULT_CONFIG, Settings
from config_server.installation import load_authority
from config_server.installers import Installers
from replication.config_server_urls import check_standby_urls
from replication.errors import BlockferryError, NotFound
from replication.service.cli import fail, load_or_exit
from replication.service.console import make_console
from replication.service.https import ListenAddress
from replication.service_address import HTTPS_PORT, ServiceAddress

_config = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Configuration file (YAML).",
)


def _installers(config_path: Path) -> Installers:
    settings = load_or_exit(Settings, config_path, check_only=False)
    return Installers(settings.state_dir, load_authority(settings))


def _own_address(settings: Settings) -> str:
    host = next(iter(settings.names), socket.gethostname())
    return str(ServiceAddress(host, ListenAddress.parse(settings.listen).port or HTTPS_PORT))


def _url(address: str) -> str:
    return address if "://" in address else f"https://{address}"


@click.command("add-installer")
@_config
@click.argument("file", type=click.Path(path_type=Path))
def add_installer(config_path: Path, file: Path) -> None:
    """Offer the agent's installer FILE to servers, beside those that are offered."""
    try:
        added = _installers(config_path).add(file)
    except BlockferryError as error:
        fail(error)
    click.echo(
        f"offered as {added.path}: {added.architecture}, glibc {added.oldest_glibc} or later, SHA-256 {added.sha256}"
    )


@click.command("remove-installer")
@_config
@click.argument("name")
def remove_installer(config_path: Path, name: str) -> None:
    """Offer the installer NAME no longer, and delete it."""
    try:
        _installers(config_path).remove(name)
    except BlockferryError as error:
        fail(error)


@click.command("installers")
@_config
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue as it is served.")
@click.option(
    "--command", "wants_command", is_flag=True, help="Print the line that installs the newest one on a server."
)
@click.option("--address", default=None, help="HOST[:PORT] at which servers reach the appliance, for --command.")
@click.option(
    "--standby",
    "standbys",
    multiple=True,
    help="HOST[:PORT] of the site's other configuration server, for --command; may be repeated.",
)
def installers(
    config_path: Path, as_json: bool, wants_command: bool, address: str | None, standbys: tuple[str, ...]
) -> None:
    """List the installers that are offered, or print the line that installs one, with the authority's fingerprint in it."""
    try:
        settings = load_or_exit(Settings, config_path, check_only=False)
        authority = load_authority(settings)
        signed = Installers(settings.state_dir, authority).read()
        if wants_command:
            newest = next(iter(signed.catalogue.installers), None)
            if newest is None:
                raise NotFound(
                    "cannot print a line: no installer is offered", hint="`config-server add-installer FILE`"
                )
            at = str(ServiceAddress.parse(_url(address or _own_address(settings))))
            others = [str(ServiceAddress.parse(_url(standby))) for standby in standbys]
            check_standby_urls(_url(at), [_url(other) for other in others])
            click.echo(install_command(at, newest.file, authority.fingerprint, others))
            return
    except BlockferryError as error:
        fail(error)
    if as_json:
        click.echo(signed.index.decode())
        return
    table = Table(box=None, header_style="bold")
    for title in ("FILE", "VERSION", "ARCHITECTURE", "GLIBC", "SIZE", "SHA-256"):
        table.add_column(title, no_wrap=True)
    for each in signed.catalogue.installers:
        size = f"{each.size_bytes / 2**20:.1f} MiB"
        table.add_row(each.file, each.version, each.architecture, f">= {each.oldest_glibc}", size, each.sha256)
    make_console().print(table)
