"""Looking at one server over SSH: the shell probe, sent and read. Called by ``discovery.py`` and ``installation.py``."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from process_server.core.probe_output import MAX_OUTPUT_BYTES, Service, parse_probe
from process_server.remote.ssh_connection import SshConnection
from replication.clock import Clock
from replication.errors import PeerProtocolError
from replication.remote_access import DiscoveredFacts

PROBE_TIMEOUT_S: Final = 90.0
_SCRIPT: Final = Path(__file__).parent / "probe.sh"


def probe_script() -> bytes:
    """Read once a process, at the start: a later upgrade of the package does not mix two versions."""
    return _SCRIPT.read_bytes()


def is_loopback(host: str) -> bool:
    """Whether it is an address or the name of the machine that says it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Prober:
    """``services``: what servers will have to reach, tried from there; asked anew each time, as a port may change."""

    def __init__(self, clock: Clock, services: Callable[[], Sequence[Service]]) -> None:
        self._clock = clock
        self._services = services
        self._script = probe_script()

    async def look(self, connection: SshConnection) -> DiscoveredFacts:
        """As root if that is possible.

        :raises PeerUnavailable: if the connection breaks or the probe does not end. :raises PeerProtocolError: if what it prints is not
            what it prints. :raises NoSudo: if a sudo password was given and is wrong.
        """
        services = list(self._services())
        # An address of the loopback is this machine's: another server that tried it would find itself.
        tried = [each for each in services if is_loopback(connection.host) or not is_loopback(each.host)]
        as_root = await connection.may_become_root()
        began_s = self._clock.unix_ns() / 1e9
        done = await connection.run_script(
            self._script,
            [word for service in tried for word in (service.host, str(service.port))],
            as_root=as_root,
            deadline_s=PROBE_TIMEOUT_S,
            most_bytes=MAX_OUTPUT_BYTES,
        )
        if not done.output and done.errors:
            raise PeerProtocolError(
                f"cannot run the probe: {done.errors.splitlines()[-1][:300]}",
                hint="the login needs a POSIX shell that runs commands given by ssh",
            )
        return parse_probe(done.output, services, clock_s=began_s)
