"""Listening: an address, a TLS context, a running server, and the peer's certificate of a request.

Called by each ``daemon.py``. A port is never shared: ``SO_REUSEPORT`` stays off, so that a leftover daemon is noticed at start.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from replication.errors import SettingsError
from replication.service.connections import BACKLOG, ConnectionSettings, Listener, certificate_of

SHUTDOWN_GRACE_S: Final = 5.0

_ADDRESS_AND_PORT: Final = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})")
_BIND_HINTS: Final = {
    errno.EADDRINUSE: "another process listens there: choose another port or stop it",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
}


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """``host:port``; port 0 asks the kernel for a free one (tests)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Parse ``127.0.0.1:9443``, ``[::1]:443`` or ``0.0.0.0:443``.

        :raises SettingsError: for anything else; names must be addresses, so that nothing waits for DNS at start.
        """
        expected = "expected ADDRESS:PORT, such as 0.0.0.0:9443 or [::]:9443"
        match = _ADDRESS_AND_PORT.fullmatch(text)
        if match is None:
            raise SettingsError(f"cannot listen on {text[:64]!r}", hint=expected)
        try:
            address = ipaddress.IPv6Address(match["v6"]) if match["v6"] else ipaddress.IPv4Address(match["v4"])
        except ValueError:
            raise SettingsError(f"cannot listen on {text[:64]!r}", hint=expected) from None
        if int(match["port"]) > 65535:
            raise SettingsError(f"cannot listen on {text!r}", hint="the port is a number from 0 to 65535")
        return cls(str(address), int(match["port"]))


@dataclass(slots=True)
class RunningServer:
    """A started listener. ``port`` is the bound one. ``close`` lets requests end for ``SHUTDOWN_GRACE_S``, then cuts them."""

    runner: web.AppRunner
    listener: Listener
    host: str
    port: int

    def use_tls(self, tls: ssl.SSLContext) -> None:
        """Connections that are accepted from now on use ``tls``; those that are open go on."""
        self.listener.use_tls(tls)

    def end_connections(self, of: Callable[[bytes | None], bool]) -> int:
        """Cut the open connections whose client certificate (DER, or None) is ``of`` those meant; returns how many."""
        return self.listener.end_connections(of)

    async def close(self) -> None:
        await self.listener.stop()
        await self.runner.cleanup()


async def start_server(
    app: web.Application,
    address: ListenAddress,
    tls: ssl.SSLContext | None,
    connections: ConnectionSettings | None = None,
) -> RunningServer:
    """Listen and serve ``app``; on return connections are accepted, within the bounds of ``connections``.

    :raises SettingsError: if the address cannot be bound, with what to do about it.
    """
    try:
        listening = _listening_socket(address)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(
            f"cannot listen on {address.host}:{address.port}: {reason}", hint=_BIND_HINTS.get(error.errno or 0)
        ) from error
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_GRACE_S)
    try:
        await runner.setup()
    except BaseException:
        listening.close()
        raise
    server = runner.server
    assert server is not None, "a runner that is set up has a server"  # noqa: S101 - for mypy
    listener = Listener(server, listening, tls, connections or ConnectionSettings())
    listener.start()
    return RunningServer(runner, listener, address.host, int(listening.getsockname()[1]))


def _listening_socket(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def peer_certificate_der(request: web.Request) -> bytes | None:
    """The client certificate of this request's connection in DER form, or None if it showed none."""
    transport = request.transport
    if transport is None:
        raise asyncio.CancelledError
    return certificate_of(transport)
