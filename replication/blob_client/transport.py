"""One signed HTTPS request to a Blob endpoint: built, signed, sent, its failure turned into the error tree.

Called by ``http_client.py`` only. Measured (docs/blob-service.md): a large ``bytes`` body costs aiohttp twice the processor time of
slices, so bodies go out as memoryviews of at most 256 KiB; answers are read as they come into the caller's memory.
No retries here: the caller knows whether the call may be made again. With a ``Pace`` nothing is sent that it has not let pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from yarl import URL

from replication.blob_client.api import Body
from replication.blob_client.failures import failure_from_answer
from replication.blob_client.pace import Pace, on_the_wire
from replication.blob_client.settings import DEFAULT_CONNECTIONS, BlobEndpointSettings, client_tls, read_account_key
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable, Refused
from replication.shared_key import authorization
from replication.standstill import put_off

API_VERSION: Final = "2021-12-02"
SLICE_BYTES: Final = 256 * 1024
READ_BUFFER_BYTES: Final = 256 * 1024
LONGEST_REQUEST: Final = 30
"""A request that moves may take so many times ``timeout_s``: 8 MiB need 18 minutes if eight of them share 512 Kbps."""
MAX_DOCUMENT_BYTES: Final = 16 * 2**20
"""Largest XML answer that is read; a page of a listing is far smaller."""

_UNSIGNED_AUTOMATIC_HEADERS: Final = ("Content-Type", "Accept-Encoding", "User-Agent")


def body_length(body: Body) -> int:
    if isinstance(body, bytes | bytearray | memoryview):
        return memoryview(body).nbytes
    return sum(view.nbytes for view in body)


@dataclass(frozen=True, slots=True)
class Outflow:
    """What watches over a body on its way out: ``deadline`` runs while the line has it, and stands while our own pace holds it back."""

    pace: Pace | None
    deadline: asyncio.Timeout
    standstill_s: float

    async def let_pass(self, left_bytes: int) -> int:
        """Called before each slice, which is when the one before went out. How much of what is left the next one may be."""
        wanted_bytes = min(SLICE_BYTES, left_bytes)
        amount_bytes = wanted_bytes if self.pace is None else self.pace.try_take_slice(wanted_bytes)
        if self.pace is not None and not amount_bytes:
            with contextlib.suppress(RuntimeError):  # as below
                self.deadline.reschedule(None)
            amount_bytes = await self.pace.take_slice(wanted_bytes)
        # An answer may come before the whole body has gone out: then nobody waits for it here any more.
        put_off(self.deadline, self.standstill_s)
        return amount_bytes


async def paced_slices(body: Body, outflow: Outflow) -> AsyncIterator[memoryview]:
    """The body in pieces, as fast as ``outflow`` lets them pass."""
    views: Sequence[memoryview] = [memoryview(body)] if isinstance(body, bytes | bytearray | memoryview) else body
    for view in views:
        octets = view.cast("B") if view.nbytes else view
        start = 0
        while start < octets.nbytes:
            end = start + await outflow.let_pass(octets.nbytes - start)
            yield octets[start:end]
            start = end


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``what`` completes "cannot ..." in messages; ``headers`` are sent and signed as they stand."""

    what: str
    method: str
    container: str
    name: str | None
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Body = b""


def encoded_path(container: str, name: str | None) -> str:
    """``/container/name`` percent-encoded as it goes over the wire; a blob's slashes stay."""
    return f"/{quote(container, safe='$-')}" + ("" if name is None else f"/{quote(name, safe='/~')}")


class BlobTransport:
    """The connections to one account. Use as an async context manager; leaving it closes them."""

    def __init__(self, settings: BlobEndpointSettings, pace: Pace | None = None) -> None:
        """Read key and authorities; raises ``SettingsError`` if they cannot be used. Opens nothing yet."""
        self._settings = settings
        self._pace = pace
        self._base = settings.url.rstrip("/")
        self._origin = "{0.scheme}://{0.netloc}".format(urlsplit(self._base))
        self._base_path = urlsplit(self._base).path
        self._key = read_account_key(settings.key_file)
        self._tls: ssl.SSLContext = client_tls(settings.ca_file)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._tls, limit=self._settings.connections or DEFAULT_CONNECTIONS, keepalive_timeout=30.0
            ),
            # sock_read counts from the end of the request; while its body goes out, ``send`` watches that it moves.
            timeout=aiohttp.ClientTimeout(
                total=self._settings.timeout_s * LONGEST_REQUEST,
                sock_connect=self._settings.connect_timeout_s,
                sock_read=self._settings.timeout_s,
            ),
            auto_decompress=False,
            skip_auto_headers=_UNSIGNED_AUTOMATIC_HEADERS,
            read_bufsize=READ_BUFFER_BYTES,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def address_of(self, container: str, name: str, query: Mapping[str, str]) -> str:
        """The absolute address of a blob, as ``x-ms-copy-source`` wants it."""
        suffix = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return f"{self._base}{encoded_path(container, name)}{suffix}"

    @contextlib.asynccontextmanager
    async def send(self, call: Call, *, expect: tuple[int, ...]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send ``call``; inside the context the answer's status is one of ``expect`` and its body has not been read.

        :raises BlockferryError: as ``BlobClient`` says; also while the body is read inside the context.
        """
        if self._session is None:
            raise RuntimeError("the Blob client is used before it was opened")
        path = self._base_path + encoded_path(call.container, call.name)
        target = path + (f"?{urlencode(call.query, quote_via=quote)}" if call.query else "")
        length = body_length(call.body)
        headers = {
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-version": API_VERSION,
            "Content-Length": str(length),
            **call.headers,
        }
        headers["Authorization"] = authorization(self._settings.account, self._key, call.method, target, headers)
        if call.method in ("GET", "HEAD"):
            del headers["Content-Length"]
        standstill_s = self._settings.timeout_s
        if self._pace is not None:
            await self._pace.take(on_the_wire(_head_bytes(call.method, self._origin + target, headers)))
        try:
            async with contextlib.AsyncExitStack() as answered:
                async with asyncio.timeout(standstill_s) as sending:
                    response = await answered.enter_async_context(
                        self._session.request(
                            call.method,
                            URL(self._origin + target, encoded=True),
                            headers=headers,
                            data=paced_slices(call.body, Outflow(self._pace, sending, standstill_s))
                            if length
                            else None,
                            allow_redirects=False,
                        )
                    )
                if response.status not in expect:
                    await _raise_failure(response, call.what)
                yield response
        except BlockferryError:
            raise
        except TimeoutError as error:
            raise PeerUnavailable(f"cannot {call.what}: nothing moved for {standstill_s:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise _not_trusted(call.what, error.certificate_error) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise PeerUnavailable(f"cannot {call.what}: {_said(error)}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise PeerProtocolError(f"cannot {call.what}: {_said(error)}") from error


def _head_bytes(method: str, url: str, headers: Mapping[str, str]) -> int:
    """A request's line and headers; the host stands in the header and not in the line, and aiohttp adds ``Accept: */*``."""
    return len(method) + len(url) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + 40


def _not_trusted(what: str, error: Exception) -> Refused:
    """What keeps the endpoint from being taken for the store, each with its own remedy."""
    match getattr(error, "verify_code", None):
        case 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            said = "the endpoint's certificate has expired"
            hint = "renew it, the sink's by `config-server issue-certificate --renew`; if it is good still, this machine's clock is wrong"
        case 9:  # X509_V_ERR_CERT_NOT_YET_VALID
            said, hint = "the endpoint's certificate is not valid yet", "correct the clock of this machine"
        case _:
            said, hint = (
                f"the endpoint's certificate is not trusted: {error}",
                "check ca_file and the name in the endpoint's url",
            )
    return Refused(f"cannot {what}: {said}", hint=hint)


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _raise_failure(response: aiohttp.ClientResponse, what: str) -> None:
    code = response.headers.get("x-ms-error-code", "")
    retry_after = response.headers.get("Retry-After", "")
    await read_document(response, what)
    raise failure_from_answer(response.status, code, what, float(retry_after) if retry_after.isdigit() else None)


async def read_into(response: aiohttp.ClientResponse, buffer: memoryview, what: str) -> int:
    """Read the whole answer into ``buffer``; returns its length.

    :raises PeerProtocolError: it is longer than ``buffer``.
    """
    filled = 0
    while piece := await response.content.readany():
        if filled + len(piece) > len(buffer):
            raise PeerProtocolError(f"cannot {what}: the answer is longer than asked for")
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


async def read_document(response: aiohttp.ClientResponse, what: str) -> bytes:
    """Read a small answer (XML), bounded by ``MAX_DOCUMENT_BYTES``."""
    content = bytearray()
    while piece := await response.content.readany():
        content += piece
        if len(content) > MAX_DOCUMENT_BYTES:
            raise PeerProtocolError(f"cannot {what}: the answer is larger than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(content)
