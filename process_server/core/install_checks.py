"""Whether the agent can be installed on a server, judged by what the probe found, before anything is copied there. Pure.

Called by ``remote/installation.py``. Each reason is an error of its own with a remedy: what is wrong is told at once, not by an installer
that stops half way.
"""

from __future__ import annotations

from typing import Final

from replication.errors import Permanent
from replication.installer_catalogue import Installer, InstallerCatalogue
from replication.remote_access import DiscoveredFacts
from replication.surroundings import Reach, blocking, spared

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


def check_server(facts: DiscoveredFacts, installer: Installer) -> list[str]:
    """Warnings: each configuration server that is not reached, where another one is.

    :raises NoSpace: a file system is too full. :raises PortBlocked: the server does not reach the process server, or none of the
        configuration servers.
    """
    needed = installer.size_bytes * UNPACKED_RATIO + STATE_BYTES
    for space in facts.free:
        if space.path in INSTALL_PATHS and space.free_bytes < needed:
            raise NoSpace(
                f"cannot install the agent: {space.path} has {space.free_bytes // 2**20} MiB free, and {-(-needed // 2**20)} are needed",
                hint=f"free some on the file system of {space.path}",
            )
    missing = blocking(facts.reach)
    if missing:
        raise PortBlocked(
            f"cannot install the agent: the server does not reach {' nor '.join(map(_unreached, missing))}",
            hint=_way_out(missing),
        )
    return [f"the server does not reach {_unreached(reach)}" for reach in spared(facts.reach)]


def _unreached(reach: Reach) -> str:
    return f"the {reach.service} at {reach.host} port {reach.port}: {reach.result.replace('-', ' ')}"


def _way_out(missing: list[Reach]) -> str:
    """Of several configuration servers one is enough."""
    control = [f"{each.host} port {each.port}" for each in missing if each.service == "configuration server"]
    others = [f"{each.host} port {each.port}" for each in missing if each.service != "configuration server"]
    wanted = " and ".join([*([" or ".join(control)] if control else []), *others])
    runs = " and see that one of them runs" if len(control) > 1 else ""
    return f"let TCP from the server to {wanted} pass the firewall{runs}"
