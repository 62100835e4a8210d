"""The command line of ``process-server``: run the daemon, enrol, look into the spool.

Called by ``__main__``. Exit codes: 0 done, 1 failed, 2 wrong use or unusable configuration.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from process_server import daemon
from process_server.config import DEFAULT_CONFIG, Settings
from process_server.control.machine_identity import hostname, machine_fingerprint
from process_server.spool.files import DirectoryFiles
from process_server.spool.inventory import SpoolInventory, take_inventory
from replication.enrolment import enrol_with_any
from replication.errors import BlockferryError, InvalidInput, NotFound
from replication.service.cli import arm_or_exit, daemon_options, fail, hand_on_options, load_or_exit, version_option
from replication.service.console import make_console
from replication.service.installed_folders import paths_command
from replication.service.logs import configure_logging
from replication.service.runtime import run_daemon
from replication.tls_identity import Role

PROGRAM: Final = "process-server"
MAX_PASSPHRASE_FILE_BYTES: Final = 4096
_MIB: Final = 2**20

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Configuration file (YAML).",
)


@click.group(invoke_without_command=True)
@daemon_options(DEFAULT_CONFIG)
@version_option(PROGRAM)
@click.pass_context
def main(context: click.Context, config_path: Path, check_config: bool) -> None:
    """Process server: receives replication data, seals it, spools it, uploads it to the store."""
    if context.invoked_subcommand is None:
        _run(config_path, check_config=check_config)
    else:
        hand_on_options(context)


main.add_command(paths_command("process-server"))


@main.command()
@daemon_options(DEFAULT_CONFIG)
@version_option(PROGRAM)
def run(config_path: Path, check_config: bool) -> None:
    """Serve until SIGTERM."""
    _run(config_path, check_config=check_config)


def _run(config_path: Path, *, check_config: bool) -> None:
    settings = load_or_exit(Settings, config_path, check_only=check_config)
    configure_logging(PROGRAM, log_format=settings.log.format, level=settings.log.level)
    sys.exit(run_daemon(PROGRAM, functools.partial(daemon.run, settings, config_path)))


@main.command()
@config_option
@click.option("--url", default=None, help="The configuration server; by default the configuration's config_server.url.")
@click.option("--fingerprint", required=True, help="SHA-256 fingerprint of the site's authority.")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    help="File with the enrolment passphrase; `-` reads standard input.",
)
def enrol(config_path: Path, url: str | None, fingerprint: str, passphrase_file: Path) -> None:
    """Get a certificate from the configuration server. The passphrase is sent only after the authority's fingerprint matched."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    arm_or_exit(PROGRAM)
    try:
        name = asyncio.run(
            enrol_with_any(
                [url] if url else settings.config_server.urls,
                fingerprint,
                _passphrase(passphrase_file),
                Role.PROCESS_SERVER,
                hostname(),
                machine_fingerprint(settings.state_dir),
                settings.identity_directory,
                settings.effective_service_url,
            )
        )
    except BlockferryError as error:
        fail(error)
    click.echo(f"enrolled as {name.urn}")


def _passphrase(path: Path) -> str:
    try:
        text = sys.stdin.read(MAX_PASSPHRASE_FILE_BYTES) if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read the passphrase file {path}: {error}") from error
    if not text.strip() or len(text) > MAX_PASSPHRASE_FILE_BYTES:
        raise InvalidInput(f"cannot use the passphrase file {path}: it is empty or too long")
    return text.strip()


@main.command("spool-status")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def spool_status(config_path: Path, as_json: bool) -> None:
    """Show what waits in the spool, also beside a running process server. Changes nothing."""
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        found = _inventory(settings.spool_directory)
    except BlockferryError as error:
        fail(error)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found, make_console())


def _inventory(directory: Path) -> SpoolInventory:
    if not directory.is_dir():
        raise NotFound(f"cannot find a spool in {directory}", hint="the process server makes it when it first starts")
    for attempt in range(3):
        try:
            return take_inventory(DirectoryFiles(directory))
        except FileNotFoundError as error:  # the running server removed a file it has uploaded
            if attempt == 2:
                raise NotFound(f"cannot read the spool in {directory}: its files keep changing") from error
        except OSError as error:
            raise NotFound(f"cannot read the spool in {directory}: {error.strerror}") from error
    raise AssertionError("the loop returns or raises")


def _as_json(found: SpoolInventory) -> dict[str, object]:
    return {
        "files": found.files,
        "used_bytes": found.used_bytes,
        "waiting_segments": found.waiting_segments,
        "waiting_bytes": found.waiting_bytes,
        "waiting_manifests": found.waiting_manifests,
        "oldest_age_s": found.oldest_age_s,
        "generations": [
            {
                "disk": key.disk,
                "generation": key.generation,
                "machine": entry.machine,
                "epochs": len(entry.epochs),
                "segments": entry.segments,
                "segment_bytes": entry.segment_bytes,
                "manifests": entry.manifests,
            }
            for key, entry in sorted(found.generations.items())
        ],
        "damages": [
            {
                "file": damage.file,
                "offset_bytes": damage.offset_bytes,
                "length_bytes": damage.length_bytes,
                "lost_records": len(damage.lost),
                "acknowledged": damage.acknowledged,
            }
            for damage in found.damages
        ],
    }


def _print(found: SpoolInventory, console: Console) -> None:
    console.print(
        f"{found.files} files, {found.used_bytes / _MIB:.1f} MiB used; waiting: {found.waiting_segments} segments with "
        f"{found.waiting_bytes / _MIB:.1f} MiB, {found.waiting_manifests} manifests"
    )
    if found.oldest_age_s is not None:
        console.print(f"the oldest was accepted {found.oldest_age_s:.0f} s ago")
    if found.generations:
        table = Table("disk", "generation", "epochs", "segments", "MiB", "manifests")
        for key, entry in sorted(found.generations.items()):
            table.add_row(
                key.disk,
                str(key.generation),
                str(len(entry.epochs)),
                str(entry.segments),
                f"{entry.segment_bytes / _MIB:.1f}",
                str(entry.manifests),
            )
        console.print(table)
    for damage in found.damages:
        what = f"{len(damage.lost)} records" if damage.lost else "an unknown number of records"
        console.print(f"damaged: {damage.file} at {damage.offset_bytes}: {what} cannot be read")
