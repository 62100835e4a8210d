"""The agent's uplink: one process server over HTTPS with mutual TLS. Surface: ``replication/data_plane.py``.

Called by ``epoch_shipper`` (batches, manifests) and ``disk_session`` (receipts). No hidden retries: each call is tried once within its
deadline, and the error's class says whether to try again. Bodies go out as slices, since one large ``bytes`` costs twice the CPU.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable
from typing import Final

import aiohttp

from replication.batch_frame import PROTOCOL_VERSION, BatchFrame
from replication.data_plane import (
    BatchAcknowledgement,
    Hello,
    batch_path,
    hello_path,
    manifest_path,
    receipt_path,
)
from replication.epoch_manifest import MAX_MANIFEST_BYTES
from replication.errors import NotFound, PeerProtocolError, PeerUnavailable
from replication.identifiers import EpochId, EpochKey, GenerationKey
from replication.service.problem import error_from_problem

_SLICE_BYTES: Final = 256 * 1024
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_CONNECT_TIMEOUT_S: Final = 10.0


async def _slices(views: Iterable[memoryview]) -> AsyncIterator[memoryview]:
    for view in views:
        for at in range(0, view.nbytes, _SLICE_BYTES):
            yield view[at : at + _SLICE_BYTES]


class ProcessServerClient:
    """Connections to one process server. ``close`` when done."""

    def __init__(self, url: str, tls: ssl.SSLContext, *, connections: int, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=connections, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=_CONNECT_TIMEOUT_S),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def hello(self) -> Hello:
        """:raises PeerProtocolError: if there is no common protocol version."""
        status, body = await self._request("GET", hello_path())
        hello = Hello.decode(self._expect(status, body, 200))
        if not hello.protocol_min <= PROTOCOL_VERSION <= hello.protocol_max:
            raise PeerProtocolError(
                f"cannot ship to process server {self.url}: it speaks protocol {hello.protocol_min} to "
                f"{hello.protocol_max}, this agent {PROTOCOL_VERSION}",
                hint="upgrade the older of the two",
            )
        return hello

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        """On return the batch is durable in the process server's spool (P1). Repeating it is harmless (P4)."""
        views = (memoryview(frame.head), *frame.data)
        status, body = await self._request("PUT", batch_path(frame.key), views=views, length=frame.frame_bytes)
        return BatchAcknowledgement.decode(self._expect(status, body, 200, 201))

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> None:
        """On return the manifest is durable at the process server.

        :raises SegmentsMissing: if it names batches that the process server does not have.
        :raises ManifestSuperseded: if another manifest decided this epoch or the one before it.
        """
        views = (memoryview(encoded),)
        status, body = await self._request("PUT", manifest_path(key), views=views, length=len(encoded))
        self._expect(status, body, 200, 201)

    async def stored_manifest(self, key: EpochKey) -> bytes | None:
        """The manifest that is in the store, or None if none is there yet."""
        status, body = await self._request("GET", manifest_path(key), max_answer_bytes=MAX_MANIFEST_BYTES)
        try:
            return self._expect(status, body, 200)
        except NotFound:
            return None

    async def receipt(self, key: GenerationKey, after_epoch: EpochId, wait_s: float) -> bytes | None:
        """The newest signed receipt beyond ``after_epoch``, or None after ``wait_s`` without one."""
        path = f"{receipt_path(key)}?after_epoch={after_epoch}&wait_s={wait_s:g}"
        status, body = await self._request("GET", path, extra_wait_s=wait_s)
        return None if status == 204 else self._expect(status, body, 200)

    def _expect(self, status: int, body: bytes, *expected: int) -> bytes:
        if status in expected:
            return body
        raise error_from_problem(status, body, f"process server {self.url}")

    async def _request(
        self,
        method: str,
        path: str,
        *,
        views: tuple[memoryview, ...] | None = None,
        length: int = 0,
        extra_wait_s: float = 0.0,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ) -> tuple[int, bytes]:
        headers = {} if views is None else {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        timeout = aiohttp.ClientTimeout(total=self._timeout_s + extra_wait_s, connect=_CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=None if views is None else _slices(views),
                headers=headers,
                timeout=timeout,
            ) as response:
                body = await response.content.read(max_answer_bytes + 1)
                while len(body) <= max_answer_bytes and (more := await response.content.readany()):
                    body += more
                if len(body) > max_answer_bytes:
                    raise PeerProtocolError(f"cannot use the answer of process server {self.url}: it is too long")
                return response.status, body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise PeerUnavailable(f"cannot reach process server {self.url}: {reason}") from error
