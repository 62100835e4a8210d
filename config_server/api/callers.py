"""Where a request comes from. Asked by the handlers that judge addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import socket


def is_of_this_machine(address: str) -> bool:
    """Whether a connection from ``address`` began here: only to an address of its own does a machine go out from that very address.

    Connecting a datagram socket sends nothing; it asks the kernel for the route and the source.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError, ValueError), socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((str(ipaddress.ip_address(address)), 9))
        return str(asking.getsockname()[0]) == address
    return False
