"""Every folder that the product uses on a machine, for what scans files: the command ``paths``, the same in all four programs.

Called by each daemon's ``cli.py``. A virus scanner that opens, locks or quarantines what lies there breaks replication: so the list is the
program's, not only the documentation's. Where a role's configuration can be read, its folders are those that it names, else the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import yaml
from rich.table import Table

from replication.service.cli import make_console

CONFIGURATION_DIRECTORY: Final = Path("/etc/blockferry")
_STATE: Final = "/var/lib/blockferry"
ALL_ROLES: Final = "all"


@dataclass(frozen=True, slots=True)
class Folder:
    """``exists``: whether it is on this machine."""

    role: str
    path: str
    holds: str
    exists: bool


@dataclass(frozen=True, slots=True)
class _Kind:
    """``key``: where the configuration of ``role`` may name another place; empty: it cannot."""

    role: str
    key: str
    default: str
    holds: str


_KINDS: Final = (
    _Kind(ALL_ROLES, "", "/usr/lib/blockferry", "the programs"),
    _Kind(ALL_ROLES, "", "/etc/blockferry", "configuration, the store's key"),
    _Kind("agent", "state_dir", f"{_STATE}/agent", "identity, journals, digest tables"),
    _Kind("agent", "tracker.pin_root", "/sys/fs/bpf/blockferry", "the tracking, in the kernel"),
    _Kind("config-server", "state_dir", f"{_STATE}/config-server", "authority, keys, database, installers"),
    _Kind("process-server", "state_dir", f"{_STATE}/process-server", "identity, spool"),
    _Kind("azure-sink", "blob.state_dir", f"{_STATE}/azure-sink/blob", "the Blob service's data"),
    _Kind("azure-sink", "writer.state_dir", f"{_STATE}/azure-sink/writer", "the replica writer's identity"),
)


def installed_folders(configuration_directory: Path = CONFIGURATION_DIRECTORY) -> list[Folder]:
    """Of every role, whether or not it is on this machine."""
    return list(_folders(configuration_directory))


def _folders(configuration_directory: Path) -> Iterator[Folder]:
    for kind in _KINDS:
        path = _configured(configuration_directory / f"{kind.role}.yaml", kind.key) or kind.default
        yield Folder(kind.role, path, kind.holds, exists=Path(path).is_dir())


def _configured(file: Path, key: str) -> str | None:
    """What the configuration says, whatever else may be wrong with it: the daemon itself judges that."""
    if not key:
        return None
    try:
        value: object = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


@click.command("paths")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def paths_command(as_json: bool) -> None:
    """List every folder to leave out of virus scanning: the agent's, and those of the appliance and the sink."""
    folders = installed_folders()
    if as_json:
        click.echo(json.dumps([asdict(folder) for folder in folders], indent=2))
        return
    table = Table(box=None, header_style="bold")
    for title in ("ROLE", "FOLDER", "HOLDS", "HERE"):
        table.add_column(title, overflow="fold")
    for folder in folders:
        table.add_row(folder.role, folder.path, folder.holds, "yes" if folder.exists else "no")
    make_console().print(table)
