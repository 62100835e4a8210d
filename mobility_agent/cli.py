"""The command line of ``mobility-agent``: run the daemon, enrol, show the disks that can be protected, know a changed one again.

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
from rich.table import Table

from mobility_agent import daemon
from mobility_agent.block_device.identity import DiskIdentity
from mobility_agent.block_device.listing import describe_disk
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, read_machine_facts
from mobility_agent.config import DEFAULT_CONFIG_PATH, AgentSettings
from mobility_agent.disk_memory import DISKS_DIRECTORY, DiskMemory
from mobility_agent.doctor_command import doctor
from mobility_agent.installation_commands import install, note_remains, uninstall, upgrade
from mobility_agent.inventory import find_disks, take_inventory
from mobility_agent.passphrase_file import read_passphrase
from replication.enrolment import enrol_with_any
from replication.errors import BlockferryError, NotFound
from replication.identifiers import DiskId, parse_uuid
from replication.service.cli import arm_or_exit, daemon_options, fail, hand_on_options, load_or_exit, version_option
from replication.service.console import make_console
from replication.service.installed_folders import paths_command
from replication.service.logs import configure_logging
from replication.service.runtime import run_daemon
from replication.settings import load_settings
from replication.tls_identity import Role

PROGRAM: Final = "mobility-agent"


@click.group(invoke_without_command=True)
@daemon_options(DEFAULT_CONFIG_PATH)
@version_option(PROGRAM)
@click.pass_context
def main(context: click.Context, config_path: Path, check_config: bool) -> None:
    """Agent of a protected server: tracks the dirty blocks of its disks and ships them to a process server."""
    if context.invoked_subcommand is None:
        _run(config_path, check_config=check_config)
    else:
        hand_on_options(context)


for command in (install, upgrade, uninstall, note_remains, doctor, paths_command("agent")):
    main.add_command(command)


@main.command()
@daemon_options(DEFAULT_CONFIG_PATH)
def run(config_path: Path, check_config: bool) -> None:
    """Replicate until SIGTERM."""
    _run(config_path, check_config=check_config)


def _run(config_path: Path, *, check_config: bool) -> None:
    settings = load_or_exit(AgentSettings, config_path, check_only=check_config)
    configure_logging(PROGRAM, log_format=settings.log.format, level=settings.log.level)
    sys.exit(run_daemon(PROGRAM, functools.partial(daemon.run, settings)))


@main.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG_PATH,
    show_default=True,
    help="Configuration file (YAML).",
)
@click.option("--fingerprint", required=True, help="SHA-256 fingerprint of the site's authority.")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File with the enrolment passphrase; `-` reads standard input.",
)
def enrol(config_path: Path, fingerprint: str, passphrase_file: Path) -> None:
    """Get a certificate from the configuration server. The passphrase is sent only after the authority's fingerprint matched."""
    settings = load_or_exit(AgentSettings, config_path, check_only=False)
    arm_or_exit(PROGRAM)
    try:
        facts = read_machine_facts(substitute=settings.state_dir / MACHINE_ID_FILE)
        name = asyncio.run(
            enrol_with_any(
                settings.config_server.urls,
                fingerprint,
                read_passphrase(passphrase_file),
                Role.AGENT,
                facts.hostname,
                facts.fingerprint,
                settings.identity_dir,
            )
        )
    except BlockferryError as error:
        fail(error)
    click.echo(f"enrolled as {name.urn}")


@main.command("adopt-disk")
@click.argument("disk")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG_PATH,
    show_default=True,
    help="Configuration file (YAML).",
)
def adopt_disk(disk: str, path: Path, config_path: Path) -> None:
    """Say that the protected DISK (its id) is the one at PATH now, although something of it changed. A copy would replace the replica."""
    settings = load_or_exit(AgentSettings, config_path, check_only=False)
    try:
        wanted = DiskId(parse_uuid(disk, "disk id"))
        memory = DiskMemory(settings.state_dir / DISKS_DIRECTORY)
        if wanted not in memory.known():
            raise NotFound("cannot adopt for a disk that is not protected here", disk=wanted)
        facts = read_machine_facts(substitute=settings.state_dir / MACHINE_ID_FILE)
        found = describe_disk(path, facts.machine_id)
        memory.replace(wanted, DiskIdentity(found.identifiers, found.size_bytes))
    except BlockferryError as error:
        fail(error)
    click.echo(f"disk {wanted} is {found.path}; the agent goes on with it within two minutes")


@main.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=None,
    help="Configuration file, for the plain files that it lists as disks, and for the disks that are known by their id.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole inventory as JSON.")
def disks(config_path: Path | None, as_json: bool) -> None:
    """List the disks of this machine: what can be protected, and why not. What is replicated is the whole block device."""
    try:
        settings = None if config_path is None else load_settings(AgentSettings, config_path)
        files = () if settings is None else settings.disk_files
        facts = read_machine_facts(substitute=None if settings is None else settings.state_dir / MACHINE_ID_FILE)
        known = {} if settings is None else DiskMemory(settings.state_dir / DISKS_DIRECTORY).known()
        if as_json:
            click.echo(json.dumps(take_inventory(facts, files, known).model_dump(mode="json"), indent=2))
            return
        found, unusable = find_disks(facts, files, known)
    except BlockferryError as error:
        fail(error)
    table = Table(box=None, header_style="bold")
    for title in ("PATH", "SIZE", "KIND", "CONTENT", "MOUNTED AT", "PROTECTABLE", "DISK"):
        table.add_column(title, overflow="fold", no_wrap=title in ("PATH", "DISK"))
    for disk in found:
        judged = disk.protectability
        table.add_row(
            str(disk.path),
            f"{disk.size_bytes / 2**30:.1f} GiB",
            disk.kind.value,
            ", ".join(disk.contents) or "-",
            ", ".join(mount.mount_point for mount in disk.mounts) or "-",
            "yes" if judged.is_protectable else f"no: {judged.why_not}; {judged.remedy}",
            disk.disk,
        )
    for file in unusable:
        table.add_row(str(file.path), "-", "file", "-", "-", f"no: {file.reason}", "-")
    make_console().print(table)
