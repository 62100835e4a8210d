"""Raw signed requests to a Blob service, for what the client of the product never sends: odd headers, wrong lengths, other versions.

Called by the service's tests. ``SignedRequests.send`` signs whatever it is given and returns the whole answer.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from types import TracebackType
from typing import Self
from urllib.parse import quote
from xml.etree import ElementTree as ET

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from replication.shared_key import authorization
from tests.harness.blob_site import ACCOUNT, KEY, BlobSite

VERSION = "2021-12-02"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def code(self) -> str | None:
        """The error code; a body, if there is one, must say the same."""
        shown = self.headers.get("x-ms-error-code")
        if shown is not None and self.body:
            assert self.xml.findtext("Code") == shown
            assert self.headers["x-ms-request-id"] in (self.xml.findtext("Message") or "")
        return shown

    @property
    def xml(self) -> ET.Element:
        return ET.fromstring(self.body)  # noqa: S314 - our own service wrote it


class SignedRequests:
    """A session with one service. ``host`` other than the address makes host-style requests."""

    def __init__(self, site: BlobSite, *, host: str | None = None, account: str = ACCOUNT, key: bytes = KEY) -> None:
        self._site = site
        self._host = host
        self._account = account
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=str(self._site.ca_file))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            skip_auto_headers=("Content-Type", "User-Agent", "Accept-Encoding"),
            timeout=aiohttp.ClientTimeout(total=30),
        )
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        signed: bool = True,
        date: str | None = None,
    ) -> Answer:
        """``path`` begins after the account: ``/container/blob?query``, percent-encoded by the caller."""
        assert self._session is not None
        target = path if self._host is not None else f"/{self._account}{path}"
        sent = {"x-ms-version": VERSION, "x-ms-date": date or formatdate(usegmt=True)}
        if method in ("PUT", "POST") or body:
            sent["Content-Length"] = str(len(body))
        if self._host is not None:
            sent["Host"] = self._host
        sent |= headers or {}
        if signed:
            sent["Authorization"] = authorization(self._account, self._key, method, target, sent)
        url = URL(f"https://127.0.0.1:{self._site.port}{target}", encoded=True)
        async with self._session.request(method, url, headers=sent, data=body or None) as response:
            return Answer(response.status, response.headers, await response.read())

    async def put_blob(self, name: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.send("PUT", f"/lab/{quote(name)}", {"x-ms-blob-type": "BlockBlob", **(headers or {})}, body)

    async def put_block(self, name: str, block_id: str, body: bytes) -> Answer:
        return await self.send("PUT", f"/lab/{name}?comp=block&blockid={quote(block_id, safe='')}", {}, body)

    async def create_page_blob(self, name: str, size: int, headers: Mapping[str, str] | None = None) -> Answer:
        fixed = {"x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": str(size)}
        return await self.send("PUT", f"/lab/{name}", {**fixed, **(headers or {})})


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def is_request_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None
