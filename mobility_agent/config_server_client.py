"""The agent's client of the configuration server. Surface: ``replication/control_plane.py``.

Called by ``daemon`` (inventory, observations, desired state, certificate) and ``disk_supervisor`` (generations). Each call is tried once
within its deadline, at each of the site's configuration servers until one answers. The data plane waits for these calls only when a
generation begins.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

import aiohttp

from replication import control_plane
from replication.agent_limits import ObservationAnswer
from replication.config_server_urls import ConfigServerUrls
from replication.control_plane import (
    AgentDesired,
    AgentObservation,
    EnrolmentAnswer,
    GenerationGrant,
    GenerationRequest,
    InventoryAnswer,
    MachineInventory,
    RenewalRequest,
)
from replication.documents import MAX_DOCUMENT_BYTES, Document
from replication.errors import PeerProtocolError, PeerUnavailable
from replication.identifiers import DiskId
from replication.problem_details import error_from_problem
from replication.tls_session import TlsSession

REQUEST_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 10.0


class ConfigServerClient:
    """Connections to the configuration server, or to one of several. ``close`` when done."""

    def __init__(self, urls: str | Sequence[str], tls: ssl.SSLContext) -> None:
        self._urls = ConfigServerUrls(urls)
        self._session = TlsSession(
            lambda context: aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=4)), tls
        )

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        """Requests that begin from now on show the certificate of ``tls``."""
        await self._session.use_tls(tls)

    async def close(self) -> None:
        await self._session.close()

    async def renew_certificate(self, request: RenewalRequest) -> EnrolmentAnswer:
        """A certificate for a fresh key."""
        return EnrolmentAnswer.decode(await self._call("POST", control_plane.AGENT_CERTIFICATE_PATH, request))

    async def put_inventory(self, inventory: MachineInventory) -> InventoryAnswer | None:
        """What the configuration server answers; None: it is from before it answered anything."""
        body = await self._call("PUT", control_plane.AGENT_INVENTORY_PATH, inventory)
        return InventoryAnswer.decode(body) if body else None

    async def post_observation(self, observation: AgentObservation) -> ObservationAnswer | None:
        """What the configuration server answers; None: it is from before it answered anything."""
        body = await self._call("POST", control_plane.AGENT_OBSERVATIONS_PATH, observation)
        return ObservationAnswer.decode(body) if body else None

    async def desired(self, after_revision: int, wait_s: float) -> AgentDesired | None:
        """Desired state newer than ``after_revision``, or None after ``wait_s`` without one."""
        path = f"{control_plane.AGENT_DESIRED_PATH}?after_revision={after_revision}&wait_s={wait_s:g}"
        body = await self._call("GET", path, None, extra_wait_s=wait_s)
        return AgentDesired.decode(body) if body else None

    async def new_generation(self, disk: DiskId, request: GenerationRequest) -> GenerationGrant:
        """:raises Retryable: while the older generation is being closed at the sink (R8)."""
        body = await self._call("POST", control_plane.agent_generations_path(disk), request)
        return GenerationGrant.decode(body)

    async def _call(self, method: str, path: str, document: Document | None, extra_wait_s: float = 0.0) -> bytes:
        """One after the other is tried, until one answers."""
        for url in self._urls.in_turn():
            try:
                return await self._ask(url, method, path, document, extra_wait_s)
            except PeerUnavailable as error:
                unavailable = error
        raise unavailable

    async def _ask(self, url: str, method: str, path: str, document: Document | None, extra_wait_s: float) -> bytes:
        headers = {} if document is None else {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S + extra_wait_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method,
                url + path,
                data=None if document is None else document.encode(),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                received = bytearray()
                async for chunk in response.content.iter_any():
                    received += chunk
                    if len(received) > MAX_DOCUMENT_BYTES:
                        raise PeerProtocolError(f"cannot use the answer of {url}: it is too long")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._urls.failed(url)
            reason = str(error) or type(error).__name__
            raise PeerUnavailable(f"cannot reach the configuration server {url}: {reason}") from error
        if response.status >= 500:
            self._urls.failed(url)
        if response.status >= 300:
            raise error_from_problem(response.status, bytes(received), f"configuration server {url}")
        return bytes(received)
