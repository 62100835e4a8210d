"""The HTTP surface that agents see (``replication/data_plane.py``): routes, identity of every request, documents in and out.

Built by ``daemon``. Every request is authenticated by its client certificate; errors leave as problem documents.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from aiohttp import web

from process_server.intake.batch_intake import BatchIntake
from process_server.intake.body import Body, awaits_leave, leave_is_given_later
from process_server.intake.grants import Grants
from process_server.intake.manifest_intake import ManifestIntake
from process_server.intake.peers import Peers
from process_server.intake.warm_connections import WarmConnections
from process_server.metrics import ProcessServerMetrics
from process_server.receipt_watch import ReceiptWatch
from replication.data_plane import MAX_RECEIPT_WAIT_S, Hello, hello_path
from replication.errors import InvalidInput
from replication.identifiers import (
    MAX_U32,
    MAX_U64,
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
    MachineId,
)
from replication.service.connections import note_identified
from replication.service.https import peer_certificate_der
from replication.service.problem import problem_middleware

MANIFEST_CONTENT_TYPE: Final = "application/octet-stream"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MACHINE: Final = web.RequestKey("machine", str)
_GENERATION: Final = "/v1/disks/{disk}/generations/{generation}"

NumberT = TypeVar("NumberT", int, float)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpSurface:
    """The handlers; ``application`` makes the aiohttp application."""

    hello: Hello
    peers: Peers
    grants: Grants
    batches: BatchIntake
    manifests: ManifestIntake
    receipts: ReceiptWatch
    metrics: ProcessServerMetrics
    connections: WarmConnections
    body_deadline_s: float

    def application(self) -> web.Application:
        @web.middleware
        async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[_MACHINE] = self.peers.machine_of(peer_certificate_der(request))
            note_identified(request)
            return await handler(request)

        @web.middleware
        async def close_what_must(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if awaits_leave(request) and not request.content.is_eof():
                # The client was never told to send its body: whether it comes all the same, nobody knows (RFC 9110, 10.1.1).
                response.force_close()
            elif request.content_length and not self.connections.carried(request.protocol, request.content_length):
                response.force_close()
            return response

        app = web.Application(middlewares=[close_what_must, problem_middleware, identify])
        app.on_shutdown.append(self._release_waiters)
        app.router.add_get(hello_path(), self._hello)
        epoch = _GENERATION + "/epochs/{epoch}"
        batch = epoch + "/attempts/{attempt}/batches/{batch}"
        app.router.add_put(batch, self._put_batch, expect_handler=leave_is_given_later)
        app.router.add_put(epoch + "/manifest", self._put_manifest, expect_handler=leave_is_given_later)
        app.router.add_get(epoch + "/manifest", self._get_manifest)
        app.router.add_get(_GENERATION + "/receipt", self._get_receipt)
        return app

    async def _release_waiters(self, _app: web.Application) -> None:
        self.receipts.release_waiters()

    async def _hello(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.hello.encode(), content_type="application/json")

    async def _put_batch(self, request: web.Request) -> web.Response:
        epoch = _epoch_key(request)
        key = BatchKey(
            epoch.disk,
            epoch.generation,
            epoch.epoch,
            AttemptNumber(_number(request, "attempt", MAX_U32)),
            BatchNumber(_number(request, "batch", MAX_U32)),
        )
        answer = await self.batches.put(key, _machine(request), Body(request, self.body_deadline_s))
        return web.Response(
            status=201 if answer.created else 200, body=answer.acknowledgement.encode(), content_type="application/json"
        )

    async def _put_manifest(self, request: web.Request) -> web.Response:
        body = Body(request, self.body_deadline_s)
        created = await self.manifests.put(_epoch_key(request), _machine(request), body)
        return web.Response(status=201 if created else 200)

    async def _get_manifest(self, request: web.Request) -> web.Response:
        content = await self.manifests.stored(_epoch_key(request), _machine(request))
        return web.Response(body=content, content_type=MANIFEST_CONTENT_TYPE)

    async def _get_receipt(self, request: web.Request) -> web.Response:
        key = _generation_key(request)
        after_epoch = _query_number(request, "after_epoch", int, -1)
        wait_s = min(_query_number(request, "wait_s", float, 0.0), MAX_RECEIPT_WAIT_S)
        seen = request.query.get("seen")
        if seen is not None and not _DIGEST.fullmatch(seen):
            raise InvalidInput(f"cannot use {seen[:80]!r} as seen", hint="64 hexadecimal digits are expected")
        await self.grants.check_owner(key, _machine(request))
        found = await self.receipts.wait_for_news(key, after_epoch, wait_s, seen)
        if found is None:
            return web.Response(status=204)
        self.metrics.receipts.inc()
        return web.Response(body=found.content, content_type="application/json")


def _machine(request: web.Request) -> MachineId:
    return MachineId(request[_MACHINE])


def _number(request: web.Request, name: str, most: int) -> int:
    text = request.match_info[name]
    if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) > most:
        raise InvalidInput(f"cannot use {text[:40]!r} as {name}", hint=f"a number up to {most} is expected")
    return int(text)


def _query_number(request: web.Request, name: str, parse: Callable[[str], NumberT], default: NumberT) -> NumberT:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = parse(text[:40])
    except ValueError:
        value = None
    if value is None or not -1 <= value <= MAX_U64:
        raise InvalidInput(f"cannot use {text[:40]!r} as {name}", hint="a number is expected")
    return value


def _generation_key(request: web.Request) -> GenerationKey:
    return GenerationKey(DiskId(request.match_info["disk"]), GenerationId(_number(request, "generation", MAX_U32)))


def _epoch_key(request: web.Request) -> EpochKey:
    key = _generation_key(request)
    return EpochKey(key.disk, key.generation, EpochId(_number(request, "epoch", MAX_U64)))
