"""The configuration server as a process server sees it: data keys of generations, heartbeats. Surface: ``replication/control_plane.py``.

Called by the intake (``Grants``), ``retirement``, ``heartbeat``, the renewal of the certificate, and the orders to go to servers over SSH
(``remote``). Each call is tried once within its deadline, at each of the site's configuration servers until one answers; the data plane
waits for it only when a generation begins.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
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
from replication.installer_catalogue import INDEX_PATH, Installer, InstallerCatalogue
from replication.problem_details import error_from_problem
from replication.remote_access import (
    DISCOVERIES,
    INSTALLATIONS,
    DiscoveryOrder,
    HostReports,
    InstallationOrder,
    InstallationReport,
    remote_order_path,
    remote_reports_path,
)
from replication.tls_session import TlsSession

REQUEST_TIMEOUT_S: Final = 10.0
DOWNLOAD_TIMEOUT_S: Final = 600.0
PIECE_BYTES: Final = 256 * 1024
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

    async def discovery(self, run: str) -> DiscoveryOrder:
        """The hosts to look at, with the credentials. :raises NotFound: if it is over. Raises as ``data_key`` does."""
        return DiscoveryOrder.decode(await self._call("GET", remote_order_path(DISCOVERIES, run), None))

    async def report_hosts(self, run: str, reports: HostReports) -> None:
        """Raises as ``discovery`` does."""
        await self._call("POST", remote_reports_path(DISCOVERIES, run), reports.encode())

    async def installation(self, identifier: str) -> InstallationOrder:
        """Where to install the agent, with the credentials. :raises NotFound: if it is over. Raises as ``data_key`` does."""
        return InstallationOrder.decode(await self._call("GET", remote_order_path(INSTALLATIONS, identifier), None))

    async def report_installation(self, identifier: str, report: InstallationReport) -> None:
        """Raises as ``installation`` does."""
        await self._call("POST", remote_reports_path(INSTALLATIONS, identifier), report.encode())

    async def installers(self) -> InstallerCatalogue:
        """The installers that the appliance offers. Raises as ``data_key`` does."""
        return InstallerCatalogue.decode(await self._call("GET", INDEX_PATH, None))

    async def installer_content(self, installer: Installer) -> AsyncIterator[bytes]:
        """The bytes of an installer, as they come; the caller counts and compares them. Raises as ``data_key`` does."""
        if self._session is None:
            raise RuntimeError("the client is used before it was opened")
        url = next(iter(self._urls.in_turn()))
        timeout = aiohttp.ClientTimeout(total=DOWNLOAD_TIMEOUT_S, sock_read=self._timeout_s)
        try:
            async with self._session.request(
                "GET", url + installer.path, allow_redirects=False, timeout=timeout
            ) as response:
                if response.status != 200:
                    problem = await response.content.read(MAX_DOCUMENT_BYTES)
                    raise error_from_problem(response.status, problem, f"configuration server {url}")
                async for piece in response.content.iter_chunked(PIECE_BYTES):
                    yield piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PeerUnavailable(
                f"cannot fetch {installer.file} from {url}: {str(error) or type(error).__name__}", hint="try again"
            ) from error

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
