"""Hosts as operators write them: a name, an address, a network, a range; with user and port if need be. Pure.

Called by ``discoveries.py``, which bounds what a discovery may reach, and by ``host_import.py``. Spellings: ``web1.example``,
``admin@web1``, ``web1:2222``, ``[2001:db8::1]:22``, ``10.1.2.0/24``, ``10.1.2.10-10.1.2.40``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from replication.errors import InvalidInput
from replication.remote_access import MAX_HOSTS, SSH_PORT, SshTarget
from replication.server_addresses import is_loopback_name, why_no_server
from replication.service_address import is_dns_name

_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,99}")
_RANGE: Final = re.compile(r"([0-9.]+)-([0-9.]+)")
_MAX_SHOWN: Final = 100
_HINT: Final = "a name, an address, a network such as 10.1.2.0/24, or a range such as 10.1.2.10-10.1.2.40"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Host:
    """One host. ``of_range``: it was not named itself, so nobody misses it if nothing answers there."""

    host: str
    port: int | None = None
    user: str | None = None
    host_key: str | None = None
    of_range: bool = False


def parse_hosts(text: str, *, allow_loopback: bool = False) -> list[Host]:
    """:raises InvalidInput: if it is no host, network or range, one of more than ``MAX_HOSTS`` addresses, or has one of no other server."""
    hosts = _parsed(text)
    for host in hosts:
        _refuse_nobodys(text, host.host, allow_loopback=allow_loopback)
        try:
            SshTarget(host=host.host, user=host.user or "root")
        except ValueError:
            # Such as ::1 and ::ffff:10.0.0.1: the process server's own, another spelling.
            raise _unusable(
                text, f"{host.host[:_MAX_SHOWN]} is no name or address under which another machine is reached"
            ) from None
    return hosts


def _refuse_nobodys(text: str, host: str, *, allow_loopback: bool) -> None:
    """:raises InvalidInput: if ``host`` can be no other server's; the process server, or a service beside it, would answer itself."""
    try:
        why = why_no_server(ipaddress.ip_address(host), allow_loopback=allow_loopback)
    except ValueError:
        # What a name means is known where it is looked up: the process server judges that.
        why = "is the process server itself" if is_loopback_name(host) and not allow_loopback else None
    if why is not None:
        raise _unusable(text, f"{host} {why}")


def target_of(host: Host) -> SshTarget:
    """What a process server is told of a host that ``expand`` has completed.

    :raises InvalidInput: if it cannot be told.
    """
    try:
        return SshTarget(host=host.host, port=host.port or SSH_PORT, user=host.user or "", host_key=host.host_key)
    except ValueError:
        raise _unusable(host.host, f"no order can be made of it with user {host.user!r} and port {host.port}") from None


def _parsed(text: str) -> list[Host]:
    rest = text.strip()
    user, at, after = rest.rpartition("@")
    if at:
        rest = after
        if not _USER.fullmatch(user):
            raise _unusable(text, f"{user[:_MAX_SHOWN]!r} is no user name")
    if "/" in rest:
        return [Host(str(each), user=user or None, of_range=True) for each in _network(text, rest)]
    between = _RANGE.fullmatch(rest)
    if between is not None:
        return [Host(str(each), user=user or None, of_range=True) for each in _between(text, between[1], between[2])]
    host, port = _host_and_port(text, rest)
    return [Host(host, port, user or None)]


def expand(hosts: Iterable[Host], *, user: str, port: int) -> list[Host]:
    """Every host with a user and a port, each once, a named one before one of a range.

    :raises InvalidInput: if there is none, or more than ``MAX_HOSTS``.
    """
    found: dict[tuple[str, int], Host] = {}
    for each in hosts:
        complete = replace(each, user=each.user or user, port=each.port or port)
        key = (each.host.lower(), each.port or port)
        known = found.get(key)
        if known is None or (known.of_range and not each.of_range):
            found[key] = complete
        if len(found) > MAX_HOSTS:
            raise InvalidInput(
                f"cannot discover more than {MAX_HOSTS} hosts at once",
                hint="a /22 at most; begin one discovery for each",
            )
    if not found:
        raise InvalidInput("cannot discover no host at all", hint=_HINT)
    return list(found.values())


def _network(text: str, network: str) -> list[Address]:
    try:
        parsed = ipaddress.ip_network(network, strict=True)
    except ValueError as error:
        raise _unusable(text, str(error)) from error
    _bound(text, parsed.num_addresses - 2)
    return list(parsed.hosts())


def _between(text: str, first: str, last: str) -> list[Address]:
    try:
        low, high = ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)
    except ValueError as error:
        raise _unusable(text, str(error)) from error
    if low > high:
        raise _unusable(text, "it ends before it begins")
    _bound(text, int(high) - int(low) + 1)
    return [ipaddress.IPv4Address(number) for number in range(int(low), int(high) + 1)]


def _bound(text: str, count: int) -> None:
    if count > MAX_HOSTS:
        raise _unusable(text, f"it has {count} addresses, more than the {MAX_HOSTS} of a /22")


def _host_and_port(text: str, rest: str) -> tuple[str, int | None]:
    port: str | None = None
    if rest.startswith("["):
        host, closed, after = rest[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise _unusable(text, "a bracket is missing")
        port = after[1:] if after else None
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    else:
        host = rest
    if port is not None and not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise _unusable(text, f"{port[:_MAX_SHOWN]!r} is no port")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        # What looks like an address and is none is not looked up as a name.
        if not is_dns_name(host) or host.replace(".", "").isdigit() or not host[0].isalnum():
            raise _unusable(text, "it is neither a name nor an address") from None
    return host, None if port is None else int(port)


def _unusable(text: str, why: str) -> InvalidInput:
    return InvalidInput(f"cannot use {text[:_MAX_SHOWN]!r} as a host: {why}", hint=_HINT)
