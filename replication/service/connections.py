"""Accepting connections within a bound: how many may be open, how long an idle one may stay, and which one goes when there are too many.

Called by ``https.start_server``; services tell it who is known (``note_identified``). When every place is taken, a newcomer takes that of
another by the rules of ``places.py``: of one that has not said who it is, before any other, so that thousands of idle or dawdling clients
cost an honest one next to nothing. A request under way is not cut for that, once it is identified or here as a whole; if all are, accepting
pauses.
Memory: 40 to 60 KiB for an idle connection over TLS (measured under uvloop), so 120 MiB at most at the default bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import math
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from replication.errors import SettingsError
from replication.service.places import Places
from replication.service.reception import SCRATCH_BYTES, Reception

DEFAULT_MAX_CONNECTIONS: Final = 2048
DEFAULT_IDLE_TIMEOUT_S: Final = 75.0
DEFAULT_HANDSHAKE_TIMEOUT_S: Final = 20.0
TLS_CLOSE_TIMEOUT_S: Final = 5.0
"""How long a connection that is closed waits for the peer to say so too."""
RESERVED_DESCRIPTORS: Final = 256
"""File descriptors that the bound leaves to everything else."""
MIN_CONNECTIONS: Final = 16
BACKLOG: Final = 1024
"""Newcomers who wait in the kernel's queue: as many as have their turn within about a second at the default bound."""
_ACCEPT_RETRY_S: Final = 0.1
_ACCEPTED_IN_A_ROW: Final = 32
_SAID_EVERY_S: Final = 60.0
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_MALFORMED: Final = (HttpProcessingError, web.RequestPayloadError)
"""What aiohttp's parser raises for a head or a body that is no HTTP."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """``max_connections``: open at a time, never more than the limit of file descriptors less 256. ``idle_timeout_s``: how long a
    connection may stay without a whole request head, at its start and after each answer. ``handshake_timeout_s``: for the TLS handshake.
    """

    max_connections: int = DEFAULT_MAX_CONNECTIONS
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    handshake_timeout_s: float = DEFAULT_HANDSHAKE_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.max_connections < MIN_CONNECTIONS:
            raise SettingsError(
                f"cannot use {self.max_connections} max_connections", hint=f"at least {MIN_CONNECTIONS}"
            )
        if self.idle_timeout_s <= 0 or self.handshake_timeout_s <= 0:
            raise SettingsError("cannot use a timeout of connections that is not positive")

    def allowed(self) -> int:
        """``max_connections``, or what this process's limit of file descriptors leaves."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return self.max_connections
        return min(self.max_connections, max(MIN_CONNECTIONS, soft - RESERVED_DESCRIPTORS))


class _Connection(web.RequestHandler):
    """One connection from its acceptance on; ``listener`` is told what becomes of it. ``request``: what is being answered."""

    __slots__ = ("accepted", "listener", "reception", "request", "source")

    def __init__(
        self,
        server: web.Server,
        accepted: socket.socket,
        source: str,
        listener: Listener,
        idle_timeout_s: float,
        scratch: memoryview,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # that is what switches it off
            keepalive_timeout=idle_timeout_s,
            auto_decompress=False,  # no service takes encoded bodies, but for blobs that are stored as they are
        )
        self.accepted = accepted
        self.source = source
        self.listener = listener
        self.request: web.BaseRequest | None = None
        self.reception = Reception(self, scratch)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.listener.lost(self)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, _MALFORMED):
            self.listener.malformed_requests += 1
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *arguments: Any, **keywords: Any) -> None:
        """What anybody can send as often as he likes is no error of this service, and fills no disk with tracebacks."""
        error = keywords.get("exc_info")
        if isinstance(error, _MALFORMED):
            _logger.debug("malformed request", extra={"fields": {"error": str(error)}})
        else:
            super().log_exception(*arguments, **keywords)

    def cut(self) -> None:
        """End it now, whatever state it is in; ``connection_lost`` or the end of the handshake follows."""
        transport = self.transport
        if transport is not None:
            transport.abort()
            return
        with contextlib.suppress(OSError):  # closed already
            self.accepted.shutdown(socket.SHUT_RDWR)


def note_identified(request: web.BaseRequest) -> None:
    """The service knows who makes ``request``: it is not cut any more to make room, and its connection after all unidentified ones only."""
    connection = request.protocol
    if isinstance(connection, _Connection) and connection.request is request:
        connection.listener.identified(connection)


def note_unidentified(request: web.BaseRequest) -> None:
    """Who makes ``request`` is not who he was, or never was: his connection goes before those of others again."""
    connection = request.protocol
    if isinstance(connection, _Connection):
        connection.listener.doubted(connection)


def source_of(address: str) -> str:
    """Where a connection comes from, as far as one client may choose no other: an IPv4 address, or an IPv6 host's network (/64)."""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((int(ipaddress.IPv6Address(address.partition("%")[0])) >> 64 << 64, 64)))


def certificate_of(transport: asyncio.BaseTransport) -> bytes | None:
    """The client certificate that a connection showed, in DER form, or None."""
    tls_object = transport.get_extra_info("ssl_object")
    if tls_object is None:
        return None
    certificate: bytes | None = tls_object.getpeercert(binary_form=True)
    return certificate


class Listener:
    """A listening socket and the connections that it accepted. ``start`` needs a running loop; ``stop`` ends accepting, not requests."""

    def __init__(
        self, server: web.Server, listening: socket.socket, tls: ssl.SSLContext | None, settings: ConnectionSettings
    ) -> None:
        self._server = server
        self._listening = listening
        self._tls = tls
        self._settings = settings
        self._limit = settings.allowed()
        self.places: Places[_Connection] = Places(self._limit)
        self.malformed_requests = 0
        """So many since the start, by their head."""
        self.cut_for_room = 0
        self._changed = asyncio.Event()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._said_at_s = -_SAID_EVERY_S
        self._task: asyncio.Task[None] | None = None
        self._handler = server.request_handler
        server.request_handler = self._handle

    @property
    def open_connections(self) -> int:
        return len(self.places)

    def start(self) -> None:
        """Begin to accept."""
        if self._limit < self._settings.max_connections:
            _logger.warning(
                "fewer connections than configured: the limit of file descriptors is too low",
                extra={"fields": {"max_connections": self._settings.max_connections, "allowed": self._limit}},
            )
        self._task = asyncio.get_running_loop().create_task(self._run())

    def use_tls(self, tls: ssl.SSLContext) -> None:
        """For handshakes that begin from now on."""
        self._tls = tls

    def end_connections(self, of: Callable[[bytes | None], bool]) -> int:
        """Cut those of a client certificate (DER, or None) for which ``of`` holds, requests under way included: it is revoked."""
        meant = [
            connection
            for connection in self.places
            if connection.transport is not None and of(certificate_of(connection.transport))
        ]
        for connection in meant:
            connection.cut()
        return len(meant)

    async def stop(self) -> None:
        """Accept no more; handshakes are cut, requests go on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._listening.close()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as handshakes:
            accepted = 0
            while True:
                connection = await self._accept()
                if connection is None:
                    continue
                try:
                    await self._until_there_is_room()
                except asyncio.CancelledError:
                    connection.accepted.close()
                    raise
                self.places.take(connection, connection.source, asyncio.get_running_loop().time())
                handshakes.create_task(self._admit(connection))
                accepted += 1
                if accepted % _ACCEPTED_IN_A_ROW == 0:
                    await asyncio.sleep(0)  # a burst of connections does not hold up those that are here

    async def _until_there_is_room(self) -> None:
        while self.places.is_full:
            self._say_that_it_is_full()
            wait_s = self._cut_one(asyncio.get_running_loop().time())
            if wait_s != 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()

    def _cut_one(self, now_s: float) -> float | None:
        """Take a place from whoever has to give it up. Returns 0 if one was, else how long to wait; None: until a change."""
        leaving = self.places.leaving(now_s)
        if not isinstance(leaving, _Connection):
            return leaving
        self.places.give_up(leaving)
        leaving.cut()
        self.cut_for_room += 1
        return 0

    def _say_that_it_is_full(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._said_at_s >= _SAID_EVERY_S:
            self._said_at_s = now_s
            places = self.places
            fields: dict[str, object] = {
                "connections": len(places),
                "busy": places.busy,
                "unidentified": places.unidentified,
            }
            if places.largest_crowd is not None:
                fields["most_from"] = places.largest_crowd
            _logger.warning(
                "every connection is taken: those that do not say who they are, then idle ones, are closed for new ones",
                extra={"fields": fields},
            )

    async def _accept(self) -> _Connection | None:
        try:
            accepted, address = await asyncio.get_running_loop().sock_accept(self._listening)
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self._say_that_it_is_full()
                self._cut_one(math.inf)
            if error.errno != errno.ECONNABORTED:  # which is a client that went away before it was accepted
                await asyncio.sleep(_ACCEPT_RETRY_S)
            return None
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source = source_of(address[0])
        return _Connection(self._server, accepted, source, self, self._settings.idle_timeout_s, self._scratch)

    async def _admit(self, connection: _Connection) -> None:
        """The handshake; on return the connection is the server's, or gone."""
        has_tls = self._tls is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection.reception,
                connection.accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self._settings.handshake_timeout_s if has_tls else None,
                ssl_shutdown_timeout=TLS_CLOSE_TIMEOUT_S if has_tls else None,
            )
        except asyncio.CancelledError:
            connection.cut()
            self.lost(connection)
            raise
        except Exception as error:  # whatever one client does in its handshake, the others are served
            connection.cut()
            self.lost(connection)
            if isinstance(error, OSError):  # of which ssl.SSLError is one
                _logger.debug("connection refused", extra={"fields": {"error": str(error)}})
            else:
                _logger.exception("handshake failed")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, _Connection):
            return await self._handler(request)
        connection.request = request
        # Of an EmptyStreamReader it is told at once; of a body, once its last byte is here.
        request.content.on_eof(functools.partial(self._is_whole, connection, request))
        try:
            return await self._handler(request)
        finally:
            connection.request = None
            self.places.end(connection)
            self._changed.set()

    def _is_whole(self, connection: _Connection, request: web.BaseRequest) -> None:
        if connection.request is request:  # not the rest of a body that came after its answer
            self.places.begin(connection)

    # -- called by connections --------------------------------------------------------------------------------

    def identified(self, connection: _Connection) -> None:
        self.places.identify(connection)
        self.places.begin(connection)

    def doubted(self, connection: _Connection) -> None:
        self.places.doubt(connection)

    def lost(self, connection: _Connection) -> None:
        self.places.give_up(connection)
        self._changed.set()
