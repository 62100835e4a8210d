"""Which addresses can be those of another server, and which are nobody's, a link's, or the asking machine's own. Pure.

Called by the configuration server, which refuses the others to operators as they are written (``config_server/core/host_list.py``), and by
the process server, which judges what a name resolves to before it connects (``process_server/remote/ssh_connection.py``). Else an operator
could have it try the ports of its own loopback, or ask the metadata service of the cloud that it runs in.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_THIS_NETWORK: Final = ipaddress.IPv4Network("0.0.0.0/8")
_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
_CLOUD_SERVICES: Final = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "fd00:ec2::254")))
"""Of Azure, and of EC2 over IPv6. The others' metadata services are at 169.254.169.254, on the link."""
_LOOPBACK_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    """``allow_loopback``: servers may be at loopback addresses; for laboratories on one machine, where servers are programs beside it."""

    allow_loopback: bool = False


def why_no_server(address: IpAddress, *, allow_loopback: bool = False) -> str | None:
    """What keeps ``address`` from being another server's, as the end of a sentence that it begins; None: nothing does."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return None if allow_loopback else "is a loopback address, under which the process server finds itself only"
    for is_so, what in (
        (address.is_unspecified, "stands for every address, no machine has it"),
        (address == _BROADCAST, "is the broadcast address, no machine has it"),
        (address.is_multicast, "is a multicast address, no machine has it"),
        (address in _THIS_NETWORK if address.version == 4 else False, "is an address of no network (0.0.0.0/8)"),
        (address.is_link_local, "is a link-local address, known on one link only"),
        (address in _CLOUD_SERVICES, "is a service of the cloud, no server"),
    ):
        if is_so:
            return what
    return None


def is_loopback_name(host: str) -> bool:
    """Whether ``host`` is a name that means the asking machine everywhere."""
    name = host.lower().rstrip(".")
    return name in _LOOPBACK_NAMES or name.endswith(".localhost")
