"""What the installer's agent consists of on a server, and the program tree that this process runs from.

Called by the operations of this room and by ``installation_commands``.

    /usr/lib/blockferry/agent/VERSION/…    a program tree, complete or absent
    /usr/lib/blockferry/agent/current      → VERSION: what units and commands run
    /usr/lib/blockferry/bin/mobility-agent → ../agent/current/bin/mobility-agent
    /usr/bin/mobility-agent                → ../lib/blockferry/bin/mobility-agent
    /etc/systemd/system, /etc/sysusers.d, /etc/tmpfiles.d: blockferry-agent.*

Debian packages of the appliance, which may be on the same machine, have their programs beside ``agent``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replication.errors import Conflict, Refused, Unsupported

UNIT: Final = "blockferry-agent.service"
PREFIX: Final = Path("/usr/lib/blockferry")
TREES: Final = PREFIX / "agent"
CURRENT: Final = TREES / "current"
PROGRAM: Final = Path("bin", "mobility-agent")
COMMAND: Final = Path("/usr/bin/mobility-agent")
CONFIGURATION: Final = Path("/etc/blockferry/agent.yaml")
DROP_INS: Final = Path("/etc/systemd/system", f"{UNIT}.d")
SYSTEM_FILES: Final = (
    Path("/etc/systemd/system", UNIT),
    Path("/etc/sysusers.d/blockferry-agent.conf"),
    Path("/etc/tmpfiles.d/blockferry-agent.conf"),
)
GROUP: Final = "blockferry"
_DEBIAN_PACKAGE: Final = Path("/var/lib/dpkg/info/blockferry-agent.list")
_BOOTED_WITH_SYSTEMD: Final = Path("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class Tree:
    """One version's program tree."""

    directory: Path

    @property
    def version(self) -> str:
        return self.directory.name

    @property
    def install_script(self) -> Path:
        return self.directory / "share" / "systemd" / "install.sh"

    @property
    def sample_configuration(self) -> Path:
        return self.directory / "share" / "config" / "agent.yaml"

    @property
    def is_complete(self) -> bool:
        return self.install_script.is_file() and (self.directory / PROGRAM).is_file()


def own_tree() -> Tree:
    """The tree that this process runs from.

    :raises Unsupported: if it runs from something else: a clone, a virtual environment, a container image.
    """
    tree = Tree(Path(sys.prefix))
    if tree.directory.parent != TREES or not tree.is_complete:
        raise Unsupported(
            f"cannot do this: the agent runs from {tree.directory}, not from an installer's programs",
            hint="run the installer: sh blockferry-agent-VERSION-ARCHITECTURE.run install …",
        )
    return tree


def current_tree() -> Tree | None:
    """The version that is in use; None if none is."""
    try:
        return Tree(TREES / os.readlink(CURRENT))
    except OSError:
        return None


def installed_trees() -> Iterator[Tree]:
    """Every version that is there."""
    for path in sorted(TREES.iterdir()) if TREES.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and Tree(path).is_complete:
            yield Tree(path)


def require_own_ground() -> None:
    """That this process may install here at all.

    :raises Refused: without root. :raises Unsupported: without systemd. :raises Conflict: where a Debian package has the agent.
    """
    if os.geteuid() != 0:
        raise Refused("cannot do this: it needs root", hint="run it with sudo")
    if not _BOOTED_WITH_SYSTEMD.is_dir():
        raise Unsupported(
            "cannot do this: this machine was not booted with systemd", hint="in a container, run the agent itself"
        )
    if _DEBIAN_PACKAGE.exists():
        raise Conflict(
            "cannot do this: the agent is the Debian package blockferry-agent",
            hint="use apt: apt install ./blockferry-agent_VERSION.deb, apt purge blockferry-agent",
        )
