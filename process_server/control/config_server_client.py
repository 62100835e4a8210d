"""The configuration server as a process server sees it: data keys of generations, heartbeats. Surface: ``replication/control_plane.py``.

Called by the intake (``Grants``), ``retirement``, ``heartbeat`` and the renewal of the certificate. Each call is tried once within its
deadline, at each of the site's configuration servers until one answers; the data plane waits for it only when a generation begins.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final, Self

import aiohttp

from replication import control_plane
from replication.config_server_urls import ConfigServerUrls
from replication.control_plane import (
    DataKeyGrant,
    EnrolmentAnswer,
    ProcessServerDesired,
    ProcessServerObservation,
    RenewalRequest,
)
from replication.documents import MAX_DOCUMENT_BYTES
from replication.errors import PeerProtocolError, PeerUnavailable
from replication.identifiers import GenerationKey
from replication.service.problem import error_from_problem
from replication.tls_session import TlsSession

REQUEST_TIMEOUT_S: Final = 10.0
_CONNECTIONS: Final = 4


class ConfigServerClient:
    """Connections to the configuration server, or to one of several; use as an async context manager."""

    def __init__(self, urls: str | Sequence[str], tls: ssl.SSLContext, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._urls = ConfigServerUrls(urls)
        self._tls = tls
        self._timeout_s = timeout_s
        self._session: TlsSession | None = None

    async def __aenter__(self) -> Self:
        self._session = TlsSession(self._new_session, self._tls)
        return self

    def _new_session(self, tls: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        """Requests that begin from now on show the certificate of ``tls``."""
        self._tls = tls
        if self._session is not None:
            await self._session.use_tls(tls)

    async def __aexit__(self, *_exception: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        """Who may ship to a generation, and the key to seal with.

        :raises NotFound: if there is no such generation. :raises Refused: if it is assigned to another process server.
        :raises PeerUnavailable: if the configuration server does not answer.
        """
        return DataKeyGrant.decode(await self._call("GET", control_plane.data_key_path(key), None))

    async def heartbeat(self, observation: ProcessServerObservation) -> ProcessServerDesired:
        """Report; returns what this process server shall do. Raises as ``data_key`` does."""
        answer = await self._call("POST", control_plane.PROCESS_SERVER_HEARTBEATS_PATH, observation.encode())
        return ProcessServerDesired.decode(answer)

    async def renew_certificate(self, request: RenewalRequest) -> EnrolmentAnswer:
        """Raises as ``data_key`` does."""
        answer = await self._call("POST", control_plane.PROCESS_SERVER_CERTIFICATE_PATH, request.encode())
        return EnrolmentAnswer.decode(answer)

    async def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        """One after the other is tried, until one answers."""
        for url in self._urls.in_turn():
            try:
                return await self._ask(url, method, path, body)
            except PeerUnavailable as error:
                unavailable = error
        raise unavailable

    async def _ask(self, url: str, method: str, path: str, body: bytes | None) -> bytes:
        if self._session is None:
            raise RuntimeError("the client is used before it was opened")
        headers = {} if body is None else {"Content-Type": "application/json"}
        received = bytearray()
        try:
            async with self._session.request(
                method, url + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                async for chunk in response.content.iter_any():
                    received += chunk
                    if len(received) > MAX_DOCUMENT_BYTES:
                        raise PeerProtocolError(f"cannot use the answer of {url}: it is too long")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._urls.failed(url)
            reason = str(error) or type(error).__name__
            raise PeerUnavailable(
                f"cannot reach the configuration server {url}: {reason}",
                hint="known generations go on without it; check config_server.url and the firewall",
            ) from error
        if response.status >= 500:
            self._urls.failed(url)
        if response.status >= 300:
            raise error_from_problem(response.status, bytes(received), f"configuration server {url}")
        return bytes(received)
