"""Every folder that the product uses on a machine, for what scans files: the command ``paths``, the same in all four programs.

Called by each daemon's ``cli.py``. A virus scanner that opens, locks or quarantines what lies there breaks replication: so the list is the
program's, not only the documentation's. Where a role's configuration can be read, its folders are those that it names, else the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import yaml
from rich.table import Table

from replication.errors import SettingsError
from replication.remote_access import INSTALLATIONS_DIRECTORY
from replication.service.cli import fail
from replication.service.console import make_console

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
    _Kind("agent", "", "/run/blockferry", "what is frozen at the moment"),
    _Kind("agent", "", INSTALLATIONS_DIRECTORY, "an installation from the appliance, while it runs"),
    _Kind("config-server", "state_dir", f"{_STATE}/config-server", "authority, keys, database, installers"),
    _Kind("process-server", "state_dir", f"{_STATE}/process-server", "identity, spool"),
    _Kind("azure-sink", "blob.state_dir", f"{_STATE}/azure-sink/blob", "the Blob service's data"),
    _Kind("azure-sink", "writer.state_dir", f"{_STATE}/azure-sink/writer", "the replica writer's identity"),
)


def installed_folders(
    configuration_directory: Path = CONFIGURATION_DIRECTORY, other: Mapping[str, Path] | None = None
) -> list[Folder]:
    """Of every role, whether or not it is on this machine. ``other``: the configuration files of roles that have theirs elsewhere.

    :raises SettingsError: if one of those cannot be read.
    """
    return list(_folders(configuration_directory, {} if other is None else other))


def _folders(configuration_directory: Path, other: Mapping[str, Path]) -> Iterator[Folder]:
    content = {role: _read(file) for role, file in other.items()}
    for kind in _KINDS:
        if kind.role not in content:
            try:
                content[kind.role] = _read(configuration_directory / f"{kind.role}.yaml")
            except SettingsError:
                content[kind.role] = None
        path = _configured(content[kind.role], kind.key) or kind.default
        yield Folder(kind.role, path, kind.holds, exists=Path(path).is_dir())


def _read(file: Path) -> object:
    try:
        content: object = yaml.safe_load(file.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {file}: it is not YAML", hint=" ".join(str(error).split())) from error
    return content


def _configured(value: object, key: str) -> str | None:
    """What the configuration says, whatever else may be wrong with it: the daemon itself judges that."""
    if not key:
        return None
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def paths_command(role: str) -> click.Command:
    """``paths`` of the program of ``role``: whose configuration ``--config`` names."""

    @click.command(
        "paths", help="List every folder to leave out of virus scanning: the agent's, the appliance's, the sink's."
    )
    @click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help=f"Configuration file (YAML) of this program, instead of {CONFIGURATION_DIRECTORY / role}.yaml.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
    def paths(config_path: Path | None, as_json: bool) -> None:
        try:
            folders = installed_folders(other=None if config_path is None else {role: config_path})
        except SettingsError as error:
            fail(error)
        _print(folders, as_json=as_json)

    return paths


def _print(folders: list[Folder], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(folder) for folder in folders], indent=2))
        return
    table = Table(box=None, header_style="bold")
    for title in ("ROLE", "FOLDER", "HOLDS", "HERE"):
        table.add_column(title, overflow="fold")
    for folder in folders:
        table.add_row(folder.role, folder.path, folder.holds, "yes" if folder.exists else "no")
    make_console().print(table)
