"""The aiohttp application: one catch-all handler that parses, authenticates, routes, runs, and turns failures into answers.

Made by the composition root. Every answer has x-ms-request-id, x-ms-version, Server and, if sent, x-ms-client-request-id.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from azure_sink.blob_service.authentication import authenticate
from azure_sink.blob_service.error_table import answer_for, error_response
from azure_sink.blob_service.metrics import BlobMetrics
from azure_sink.blob_service.operation import Operation, ServiceLimits
from azure_sink.blob_service.request_parser import OLDEST_VERSION, parse
from azure_sink.blob_service.router import route
from azure_sink.blob_store.store import BlobStore
from replication.errors import BlockferryError
from replication.service.connections import note_identified

SERVER_NAME: Final = "Blockferry-Blob/1.0"
MAX_CLIENT_REQUEST_ID: Final = 1024
_UNROUTED: Final = "Unrouted"
_WORTH_A_LINE: Final = (500, 503)
_REQUEST_ID: Final = web.RequestKey("request_id", str)
_IS_STREAMING: Final = web.RequestKey("is_streaming", bool)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """The one account that is served; more than one key while a key is being changed."""

    name: str
    keys: Sequence[bytes] = field(repr=False)


class BlobService:
    """Serves one account from one store."""

    def __init__(
        self,
        store: BlobStore,
        account: Account,
        limits: ServiceLimits | None = None,
        metrics: BlobMetrics | None = None,
    ) -> None:
        self._store = store
        self._account = account
        self._limits = limits or ServiceLimits()
        self._metrics = metrics or BlobMetrics(CollectorRegistry())

    def application(self) -> web.Application:
        """An application whose every path is this service."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        app.on_response_prepare.append(_add_common_headers)
        return app

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        http[_REQUEST_ID] = str(uuid.uuid4())
        begun = time.monotonic()
        name = [_UNROUTED]
        status = 0
        try:
            response = await self._answer(http, name)
            status = response.status
            return response
        finally:
            self._metrics.requests.labels(name[0], str(status or "cut")).inc()
            self._metrics.seconds.labels(name[0]).observe(time.monotonic() - begun)

    async def _answer(self, http: web.Request, name: list[str]) -> web.StreamResponse:
        """``name[0]`` becomes the operation's, as soon as it is known."""
        try:
            return await self._run(http, name)
        except (ConnectionError, web.RequestPayloadError) as error:
            raise _cut(http, "the client went away") from error
        except TimeoutError as error:
            raise _cut(http, "the client stalled") from error
        except Exception as error:  # whatever it is, the client gets an answer or a cut connection
            if not isinstance(error, BlockferryError):
                _logger.exception("request failed", extra={"fields": {"operation": name[0], "path": http.raw_path}})
            answer = answer_for(error)
            if answer.status in _WORTH_A_LINE and isinstance(error, BlockferryError):
                _logger.warning(
                    "request failed", extra={"fields": {"operation": name[0], "code": answer.code, "error": str(error)}}
                )
            if http.get(_IS_STREAMING):
                raise _cut(http, str(error)) from error
            return error_response(answer, http.method, http[_REQUEST_ID])

    async def _run(self, http: web.Request, name: list[str]) -> web.StreamResponse:
        request = parse(http.method, http.raw_path, http.host, http.headers, self._account.name)
        authenticate(
            account=self._account.name,
            keys=self._account.keys,
            method=http.method,
            raw_target=http.raw_path,
            headers=http.headers,
            now=time.time(),
        )
        note_identified(http)
        found = route(request)
        name[0] = found.operation
        operation = Operation(
            request, self._store, self._limits, http, self._metrics.received_bytes.inc, self._metrics.sent_bytes.inc
        )
        return await found.handler(operation)


class _ConnectionCut(web.HTTPClientError):
    """Ends a handler whose client hears nothing more; unlike other exceptions, it is no error of this service that would be logged."""

    status_code = 499


def _cut(http: web.Request, reason: str) -> _ConnectionCut:
    """End a connection whose answer cannot be completed, so that the client does not take a part for the whole."""
    if http.transport is not None:
        http.transport.abort()
    return _ConnectionCut(text=reason)


async def _add_common_headers(http: web.Request, response: web.StreamResponse) -> None:
    http[_IS_STREAMING] = True
    response.headers["Server"] = SERVER_NAME
    response.headers["x-ms-request-id"] = http.get(_REQUEST_ID, "")
    response.headers["x-ms-version"] = http.headers.get("x-ms-version", OLDEST_VERSION)
    sent = http.headers.get("x-ms-client-request-id")
    if sent is not None and len(sent) <= MAX_CLIENT_REQUEST_ID and sent.isprintable():
        response.headers["x-ms-client-request-id"] = sent
