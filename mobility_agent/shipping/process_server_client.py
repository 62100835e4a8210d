"""The agent's uplink: one process server over HTTPS with mutual TLS. Surface: ``replication/data_plane.py``.

Called by ``epoch_shipper`` (batches, manifests) and ``disk_session`` (receipts). No hidden retries: each call is tried once, and the
error's class says whether to try again. Bodies go out as slices, since one large ``bytes`` costs twice the CPU.

A call's deadline runs from the last progress: each slice that the connection takes begins it anew, so that a slow line is slow and not
broken, while a peer that stands still is noticed after ``timeout_s``. Answers are bounded in length and in time as a whole.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import aiohttp

from replication.batch_frame import PROTOCOL_VERSION, BatchFrame
from replication.data_plane import (
    BatchAcknowledgement,
    Hello,
    batch_path,
    hello_path,
    manifest_path,
    receipt_digest,
    receipt_path,
)
from replication.epoch_manifest import MAX_MANIFEST_BYTES
from replication.errors import NotFound, Overloaded, PeerProtocolError, PeerUnavailable, Refused, Unsupported
from replication.identifiers import EpochId, EpochKey, GenerationKey
from replication.problem_details import error_from_problem
from replication.standstill import put_off
from replication.tls_session import TlsSession

_SLICE_BYTES: Final = 256 * 1024
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_CONNECT_TIMEOUT_S: Final = 10.0


async def _slices(views: Iterable[memoryview], progressed: Callable[[], None]) -> AsyncIterator[memoryview]:
    for view in views:
        for at in range(0, view.nbytes, _SLICE_BYTES):
            progressed()
            yield view[at : at + _SLICE_BYTES]
    progressed()


class ProcessServerClient:
    """Connections to one process server. ``close`` when done."""

    def __init__(self, url: str, tls: ssl.SSLContext, *, connections: int, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session = TlsSession(
            lambda context: aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=connections, keepalive_timeout=60.0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                auto_decompress=False,
            ),
            tls,
        )
        self._hello: Hello | None = None
        self._asks_first = False
        """Since there was no room for the last batch: the next body goes out when there is, not in vain (Expect: 100-continue)."""

    async def close(self) -> None:
        await self._session.close()

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        """Requests that begin from now on show the certificate of ``tls``; those under way end on their connections."""
        await self._session.use_tls(tls)

    async def hello(self) -> Hello:
        """What the process server can take; asked before the first batch.

        :raises PeerProtocolError: if there is no common protocol version.
        """
        status, body = await self._request("GET", hello_path())
        hello = Hello.decode(self._expect(status, body, 200))
        if not hello.protocol_min <= PROTOCOL_VERSION <= hello.protocol_max:
            raise PeerProtocolError(
                f"cannot ship to process server {self.url}: it speaks protocol {hello.protocol_min} to "
                f"{hello.protocol_max}, this agent {PROTOCOL_VERSION}",
                hint="upgrade the older of the two",
            )
        self._hello = hello
        return hello

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        """On return the batch is durable in the process server's spool (P1). Repeating it is harmless (P4).

        :raises KeyConflict: if the process server has another batch under this key (R4).
        """
        hello = self._hello or await self.hello()
        if frame.data_bytes > hello.max_batch_data_bytes:
            raise Unsupported(
                f"cannot ship to process server {self.url}: it takes batches of {hello.max_batch_data_bytes} bytes",
                hint="lower shipping.batch_bytes in the agent's configuration",
            )
        views = (memoryview(frame.head), *frame.data)
        status, body = await self._request(
            "PUT", batch_path(frame.key), views=views, length=frame.frame_bytes, expect100=self._asks_first
        )
        try:
            content = self._expect(status, body, 200, 201)
        except Overloaded:
            self._asks_first = True
            raise
        self._asks_first = False
        return BatchAcknowledgement.decode(content)

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

    async def receipt(
        self, key: GenerationKey, after_epoch: EpochId, wait_s: float, seen: bytes | None = None
    ) -> bytes | None:
        """The newest signed receipt beyond ``after_epoch``, or one of ``after_epoch`` that is not ``seen``; None after ``wait_s``
        without one."""
        path = f"{receipt_path(key)}?after_epoch={after_epoch}&wait_s={wait_s:g}"
        if seen is not None:
            path += f"&seen={receipt_digest(seen)}"
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
        expect100: bool = False,
        extra_wait_s: float = 0.0,
        max_answer_bytes: int = _MAX_ANSWER_BYTES,
    ) -> tuple[int, bytes]:
        if not self.url.startswith("https://"):
            raise Refused(f"cannot ship to {self.url}: it is not an https address")
        headers = {} if views is None else {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        deadline_s = self._timeout_s + extra_wait_s
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S + deadline_s) as deadline:
                async with self._session.request(
                    method,
                    self.url + path,
                    data=None if views is None else _slices(views, lambda: put_off(deadline, deadline_s)),
                    headers=headers,
                    expect100=expect100,
                    allow_redirects=False,
                ) as response:
                    return response.status, await self._answer(response, max_answer_bytes)
        except aiohttp.ClientError as error:
            reason = str(error) or type(error).__name__
            raise PeerUnavailable(f"cannot reach process server {self.url}: {reason}") from error
        except TimeoutError as error:
            raise PeerUnavailable(f"cannot reach process server {self.url}: no progress in {deadline_s:g} s") from error
        except OSError as error:
            raise PeerUnavailable(f"cannot reach process server {self.url}: {error}") from error

    async def _answer(self, response: aiohttp.ClientResponse, max_answer_bytes: int) -> bytes:
        body = bytearray()
        while piece := await response.content.readany():
            body += piece
            if len(body) > max_answer_bytes:
                raise PeerProtocolError(f"cannot use the answer of process server {self.url}: it is too long")
        return bytes(body)
