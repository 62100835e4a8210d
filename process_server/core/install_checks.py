"""Whether the agent can be installed on a server, judged by what the probe found, before anything is copied there. Pure.

Called by ``remote/installation.py``. Each reason is an error of its own with a remedy: what is wrong is told at once, not by an installer
that stops half way.
"""

from __future__ import annotations

from typing import Final

from replication.errors import Permanent
from replication.installer_catalogue import Installer, InstallerCatalogue
from replication.remote_access import DiscoveredFacts

UNPACKED_RATIO: Final = 5
"""An installer's file, what it unpacks to, and the copy that it replaces: so many times its size."""
STATE_BYTES: Final = 64 * 2**20
INSTALL_PATHS: Final = ("/usr/lib", "/var/lib")
"""Programs, and state and the copied installer; ``probe.sh`` looks at these."""


class NoSpace(Permanent):
    """A file system of the server is too full."""

    code = "no-space"


class PortBlocked(Permanent):
    """The server does not reach the appliance."""

    code = "port-blocked"


def choose_installer(catalogue: InstallerCatalogue, facts: DiscoveredFacts) -> Installer:
    """The newest installer that runs on the server.

    :raises NotFound: the appliance has none. :raises Unsupported: none for this processor or this old a C library.
    """
    return catalogue.choose(facts.architecture, facts.glibc or "no glibc")


def check_server(facts: DiscoveredFacts, installer: Installer) -> None:
    """:raises NoSpace: a file system is too full. :raises PortBlocked: the server does not reach a service of the appliance."""
    needed = installer.size_bytes * UNPACKED_RATIO + STATE_BYTES
    for space in facts.free:
        if space.path in INSTALL_PATHS and space.free_bytes < needed:
            raise NoSpace(
                f"cannot install the agent: {space.path} has {space.free_bytes // 2**20} MiB free, and {-(-needed // 2**20)} are needed",
                hint=f"free some on the file system of {space.path}",
            )
    for reach in facts.reach:
        if reach.result not in ("open", "untested"):
            raise PortBlocked(
                f"cannot install the agent: the server does not reach the {reach.service} at {reach.host} port {reach.port}: "
                + reach.result.replace("-", " "),
                hint=f"let TCP from the server to {reach.host} port {reach.port} pass the firewall",
            )
