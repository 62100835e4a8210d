"""Which address a process server may have: never one by which it could be taken for the configuration server or another process server.

Called by ``enrolments.py`` before a certificate is issued and by ``observations.py`` before a heartbeat moves an address. Pure. A
certificate is what a client trusts at an address, so the address in it must be its holder's alone (R11). On an appliance the configuration
server and a process server share a machine, and with it its name: who enrols from that very machine may list it, but on another port.
Clients of this product look at the role in the certificate besides (``tls_identity``); this is for the others, such as a browser or curl.
Loopback addresses mean nothing to another machine, so only their port matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from replication.errors import Conflict, Refused
from replication.service_address import ServiceAddress


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """The configuration server's own: every name and address in its certificate, and the port where it listens."""

    hosts: frozenset[str]
    port: int


def check_claim(
    wanted: ServiceAddress,
    own: OwnAddresses,
    others: Iterable[tuple[str, ServiceAddress]],
    *,
    same_machine: bool,
) -> None:
    """``others``: the addresses of the other process servers, each with its holder. ``same_machine``: as the configuration server.

    :raises Refused: if ``wanted`` is the configuration server's own.
    :raises Conflict: if it is another process server's.
    """
    if wanted.host in own.hosts and wanted.port == own.port:
        raise Refused(
            f"cannot have a process server at {wanted}: that is the configuration server's own address",
            hint="set listen or service_url in the process server's configuration",
        )
    if wanted.host in own.hosts and not wanted.is_loopback and not same_machine:
        raise Refused(
            f"cannot have a process server at {wanted}: {wanted.host} is the configuration server's own, on another machine",
            hint="set service_url to the process server's own name or address; on the appliance itself, enrol from there",
        )
    for holder, address in others:
        if wanted == address or (wanted.host == address.host and not wanted.is_loopback):
            raise Conflict(
                f"cannot have a process server at {wanted}: the process server {holder} has this address",
                hint="set service_url to an address of its own; if the other one is gone, "
                "`migratectl servers allow-reenrolment` with its identifier frees its address for an hour",
            )
