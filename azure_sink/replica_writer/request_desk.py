"""Requests of the configuration server: found by listing, worked on one at a time each, answered with signed documents.

Called by ``replica_writer.py``. A request is deleted only after its terminal answer is durable; every kind of work may be begun again
after a crash. While a writer works on a request it holds the lease of the answer's blob, so that no other writer does the same. The
request's blob itself stays free: deleting it withdraws the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from azure_sink.replica_writer.failures import FenceLost, ReplicaHeld, problem_of
from azure_sink.replica_writer.metrics import WriterMetrics
from replication.blob_client.api import BlobClient
from replication.blob_client.failures import BlobConflict, BlobNotFound
from replication.clock import Clock
from replication.documents import MAX_DOCUMENT_BYTES, WriterIdentity
from replication.errors import BlockferryError, NotFound, PeerProtocolError, Retryable
from replication.failpoint import reached
from replication.identifiers import parse_uuid
from replication.store_documents import MadeDisk, WriterAnswer, WriterRequest, decode_writer_request
from replication.store_layout import REPLICATION_CONTAINER, REQUESTS_PREFIX, answer_name, request_name

ANSWER_LEASE_S: Final = 60
REPORT_INTERVAL_S: Final = 1.0
RETRY_DELAY_S: Final = 2.0
_PUT_ATTEMPTS: Final = 3

_logger = logging.getLogger(__name__)


class RequestWithdrawn(NotFound):
    """The request's blob was deleted before its work was done."""

    code = "request-withdrawn"


class AnswerHeld(Retryable):
    """Another writer that is alive works on the request."""

    code = "answer-held"


class RequestWork:
    """One request being worked on: where its handler reports progress to."""

    def __init__(self, client: BlobClient, identity: WriterIdentity, clock: Clock, request: str, lease_id: str) -> None:
        self.request = request
        self._client = client
        self._identity = identity
        self._clock = clock
        self._lease_id = lease_id
        self._reported_s = clock.monotonic_s()
        self._etag: str | None = None

    async def report(
        self, done_bytes: int = 0, total_bytes: int = 0, disks: Sequence[MadeDisk] = (), *, now: bool = False
    ) -> None:
        """State progress, at most once a second unless ``now``; also keeps the answer's lease.

        :raises RequestWithdrawn: nobody waits for this work any more.
        """
        now_s = self._clock.monotonic_s()
        if not now and now_s < self._reported_s + REPORT_INTERVAL_S:
            return
        self._reported_s = now_s
        try:
            await self._client.head_blob(REPLICATION_CONTAINER, request_name(self.request))
        except BlobNotFound as error:
            raise RequestWithdrawn("cannot go on with a request: it was withdrawn") from error
        await self.put(
            WriterAnswer(
                request=self.request,
                state="in-progress",
                done_bytes=done_bytes,
                total_bytes=total_bytes,
                disks=list(disks),
            )
        )

    async def put(self, answer: WriterAnswer) -> None:
        """Put the answer over the one that this writer knows, so that an earlier one which arrives late is refused.

        Its lease starts anew, or is had again if it has expired in a long step and nobody took it.

        :raises AnswerHeld: another writer works on the request now.
        """
        name, signed = answer_name(self.request), self._identity.sign(answer)
        for _ in range(_PUT_ATTEMPTS):
            try:
                await self._client.acquire_lease(REPLICATION_CONTAINER, name, ANSWER_LEASE_S, self._lease_id)
                etag, self._etag = self._etag, None
                if etag is None:
                    etag = (await self._client.head_blob(REPLICATION_CONTAINER, name)).etag
                stamp = await self._client.put_blob(
                    REPLICATION_CONTAINER, name, signed, if_match=etag, lease_id=self._lease_id
                )
            except BlobConflict:
                continue  # an earlier call of this writer has just arrived, or another writer holds the answer
            self._etag = stamp.etag
            return
        raise AnswerHeld("cannot put an answer: another writer works on the request", retry_after_s=ANSWER_LEASE_S / 4)


Handler = Callable[[WriterRequest, RequestWork], Awaitable[WriterAnswer]]
"""Does the work and returns the succeeded answer; raises of the error tree: ``Retryable`` to be called again later, else failed."""


class RequestDesk:
    """Takes requests and has them handled, at most ``parallel`` at a time."""

    def __init__(
        self,
        client: BlobClient,
        identity: WriterIdentity,
        clock: Clock,
        lease_id: str,
        handler: Handler,
        metrics: WriterMetrics,
        parallel: int,
    ) -> None:
        self._client = client
        self._identity = identity
        self._clock = clock
        self._lease_id = lease_id
        self._handler = handler
        self._metrics = metrics
        self._running: dict[str, asyncio.Task[None]] = {}
        self._not_before_s: dict[str, float] = {}
        self._free = asyncio.Semaphore(parallel)

    async def waiting(self) -> list[str]:
        """Names of the requests in the store that nobody here works on."""
        names = [
            item.name.removeprefix(REQUESTS_PREFIX)
            async for item in self._client.list_blobs(REPLICATION_CONTAINER, REQUESTS_PREFIX)
        ]
        self._not_before_s = {name: at_s for name, at_s in self._not_before_s.items() if name in names}
        now_s = self._clock.monotonic_s()
        return [name for name in names if name not in self._running and self._not_before_s.get(name, now_s) <= now_s]

    async def start_waiting(self, tasks: asyncio.TaskGroup) -> bool:
        """Start work on every waiting request; returns whether there was one."""
        names = await self.waiting()
        for name in names:
            task = tasks.create_task(self._bounded(name))
            self._running[name] = task
            task.add_done_callback(lambda _, name=name: self._running.pop(name, None))  # type: ignore[misc]
        return bool(names)

    async def _bounded(self, name: str) -> None:
        async with self._free:
            await self.handle(name)

    async def handle(self, name: str) -> None:
        """Work on one request until it is answered for good, or put it off: another writer's, or the store does not answer."""
        try:
            parse_uuid(name, "request")
            await self._handle(name)
        except (Retryable, FenceLost) as error:
            after_s = error.retry_after_s if isinstance(error, Retryable) else None
            self._not_before_s[name] = self._clock.monotonic_s() + max(RETRY_DELAY_S, after_s or 0)
            _logger.log(
                logging.DEBUG if isinstance(error, ReplicaHeld | AnswerHeld) else logging.WARNING,
                str(error),
                extra={"fields": {"request": name, "code": error.code}},
            )
        except BlockferryError as error:
            # The answer could not be put (its lease is another's, or the name is no request's): left to others.
            self._not_before_s[name] = self._clock.monotonic_s() + ANSWER_LEASE_S
            _logger.warning(str(error), extra={"fields": {"request": name, "code": error.code}})

    async def _handle(self, name: str) -> None:
        if await self._answered(name):  # by this writer before a crash, maybe: then the lease is its own still
            await self._release_answer(name)
            await self._delete_request(name)
            return
        try:
            found = await self._client.get_blob(
                REPLICATION_CONTAINER, request_name(name), max_bytes=2 * MAX_DOCUMENT_BYTES
            )
        except BlobNotFound:
            return  # withdrawn
        content = b"" if found is None else found.content
        if not await self._lease_answer(name):
            return
        reached("sink.request.taken")
        work = RequestWork(self._client, self._identity, self._clock, name, self._lease_id)
        kind = "unknown"
        try:
            request = decode_writer_request(content)
            kind = request.kind
            if request.request != name:
                raise PeerProtocolError(f"cannot accept request {request.request} under the name {name}")
            answer = await self._handler(request, work)
        except AnswerHeld:
            raise
        except (Retryable, FenceLost):
            # Not a failure of the request: it is done again, here or by the writer that holds the replica.
            with contextlib.suppress(BlobConflict, Retryable):
                await self._client.release_lease(REPLICATION_CONTAINER, answer_name(name), self._lease_id)
            raise
        except BlockferryError as error:
            answer = WriterAnswer(request=name, state="failed", problem=problem_of(error))
        await work.put(answer)
        reached("sink.answer.put")
        self._metrics.requests.labels(kind, answer.state).inc()
        fields = {"request": name, "kind": kind, "state": answer.state}
        if answer.problem is not None:
            fields["problem"] = answer.problem.message
        _logger.info("request answered", extra={"fields": fields})
        await self._release_answer(name)
        await self._delete_request(name)

    async def _release_answer(self, name: str) -> None:
        """Nobody else's lease on it is touched."""
        with contextlib.suppress(BlobConflict):
            await self._client.release_lease(REPLICATION_CONTAINER, answer_name(name), self._lease_id)

    async def _answered(self, name: str) -> bool:
        try:
            found = await self._client.get_blob(
                REPLICATION_CONTAINER, answer_name(name), max_bytes=2 * MAX_DOCUMENT_BYTES
            )
        except BlobNotFound:
            return False
        if found is None:
            return False
        try:
            answer = self._identity.public.open_signed(WriterAnswer, found.content)
        except PeerProtocolError:
            return False  # another identity's, or damaged: the work is done again
        return answer.request == name and answer.state != "in-progress"

    async def _lease_answer(self, name: str) -> bool:
        """Make the answer say *in progress* if it says nothing yet, and hold it. False if another writer does."""
        begun = self._identity.sign(WriterAnswer(request=name, state="in-progress"))
        try:
            await self._client.put_blob(REPLICATION_CONTAINER, answer_name(name), begun, if_none_match_any=True)
        except BlobConflict:
            _logger.debug("request is taken up again", extra={"fields": {"request": name}})
        try:
            await self._client.acquire_lease(REPLICATION_CONTAINER, answer_name(name), ANSWER_LEASE_S, self._lease_id)
        except BlobConflict:
            self._not_before_s[name] = self._clock.monotonic_s() + RETRY_DELAY_S
            return False
        return True

    async def _delete_request(self, name: str) -> None:
        try:
            await self._client.delete_blob(REPLICATION_CONTAINER, request_name(name))
        except BlobNotFound:
            return
