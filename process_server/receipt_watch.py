"""Receipts: reads ``{disk}/{generation}/receipt`` of the generations that somebody waits for, and tells whoever asked.

Called by the intake (agents wait for receipts; the bytes are relayed as they are, the agent verifies the signature) and the uploader (what
is applied decides which manifests may go). A generation is polled while an agent waits for it or a manifest of it is not applied yet:
0.05 s after news or a new manifest, then more and more slowly, up to every 2 s while nothing happens.

A generation's receipt is read by one read after the other, so that a receipt which says less than the one before is no answer that was
overtaken: the store itself was put back to an older state (``on_step_back``). But one that is gone together with the record of its
generation was deleted if the generation is over (``is_over``): an operator stopped it. Who knows of more than the store is told so
(``SinkBehind``), on the word of a read that began after he asked, never of what is remembered here: a late answer is no such word.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from process_server.core.epoch_chain import NOTHING_APPLIED, ReceiptFacts
from replication.blob_client.api import BlobClient
from replication.clock import Clock
from replication.data_plane import SinkBehind, receipt_digest
from replication.documents import MAX_DOCUMENT_BYTES, document_context
from replication.errors import BlockferryError, NotFound, PeerProtocolError, Retryable
from replication.identifiers import EpochId, GenerationKey
from replication.store_documents import Receipt
from replication.store_layout import REPLICATION_CONTAINER, generation_record_name, receipt_name

FASTEST_S: Final = 0.05
SLOWEST_S: Final = 2.0
SLOWER_BY: Final = 1.5
FORGET_AFTER_S: Final = 60.0
_POLLS_AT_ONCE: Final = 8

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt as it lies in the store, and what it says (unverified here: only agents hold the writer's key)."""

    content: bytes
    facts: ReceiptFacts
    digest: str
    """``data_plane.receipt_digest`` of the content."""

    def is_news(self, after_epoch: int, seen: str | None) -> bool:
        """Whether it says something to an agent that knows ``after_epoch`` and, of that epoch, the receipt ``seen``."""
        if self.facts.epoch != after_epoch:
            return self.facts.epoch > after_epoch
        return seen is not None and seen != self.digest


@dataclass(slots=True)
class _Watched:
    interval_s: float = FASTEST_S
    next_poll_s: float = 0.0
    etag: str | None = None
    receipt: StoredReceipt | None = None
    waiting: int = 0
    wanted_until_s: float = 0.0
    expected_epoch: int = 0
    polling: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: int = 0
    """Reads of the store that were begun, and the newest of them that was answered."""
    answered: int = 0
    has_record: bool = True
    """False: the store has neither a receipt nor the record of this generation. Looked for only while somebody waits."""
    asked_epoch: int = 0
    """The highest epoch that somebody who waits knows of."""

    def shortfall(self, known_epoch: int) -> str | None:
        """What the store lacks of what was known to be applied, as the newest answered read says; None if it is not behind."""
        if not self.has_record:
            return "it has no record of this generation"
        if self.receipt is None:
            return None if known_epoch < 1 else "it has no receipt of this generation"
        applied = self.receipt.facts.epoch
        return None if applied >= known_epoch else f"its receipt says epoch {applied}"


def read_receipt(content: bytes, key: GenerationKey) -> ReceiptFacts:
    """What a signed receipt says; the signature is not verified.

    :raises PeerProtocolError: if it is no receipt of ``key``.
    """
    try:
        envelope = json.loads(content)
        context, payload = envelope["context"], envelope["payload"]
    except (ValueError, KeyError, TypeError) as error:
        raise PeerProtocolError("cannot parse a receipt", disk=key.disk) from error
    if context != document_context(Receipt) or not isinstance(payload, str):
        raise PeerProtocolError(f"cannot take a {str(context)[:80]!r} for a receipt", disk=key.disk)
    receipt = Receipt.decode(payload.encode())
    if (receipt.disk, receipt.generation) != (key.disk, key.generation):
        raise PeerProtocolError("cannot use a receipt of another disk or generation", disk=key.disk)
    return ReceiptFacts(EpochId(receipt.epoch), bytes.fromhex(receipt.manifest_hash), receipt.closed)


async def _never_over(_key: GenerationKey) -> bool:
    return False


class ReceiptWatch:
    """``on_receipt`` is told of each new receipt, on the event loop; ``on_step_back`` of one that says less than the one before.

    ``on_outage``: the store did not answer about a generation; when it answers again it may be another one. ``is_over``: whether it is
    known that a generation has ended; asked only when its receipt and its record have gone. False if nobody can tell.
    """

    def __init__(
        self,
        client: BlobClient,
        clock: Clock,
        on_receipt: Callable[[GenerationKey, ReceiptFacts], None] = lambda _key, _facts: None,
        on_step_back: Callable[[GenerationKey, ReceiptFacts], None] = lambda _key, _facts: None,
        on_outage: Callable[[GenerationKey], None] = lambda _key: None,
        is_over: Callable[[GenerationKey], Awaitable[bool]] = _never_over,
    ) -> None:
        self._client = client
        self._clock = clock
        self.on_receipt = on_receipt
        self.on_step_back = on_step_back
        self.on_outage = on_outage
        self._is_over = is_over
        self._watched: dict[GenerationKey, _Watched] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._slots = asyncio.Semaphore(_POLLS_AT_ONCE)

    def expect(self, key: GenerationKey, epoch: EpochId) -> None:
        """A manifest of ``epoch`` is in the store: its receipt should come soon."""
        watched = self._watch(key)
        watched.expected_epoch = max(watched.expected_epoch, epoch)
        self._hurry(watched)

    def newest(self, key: GenerationKey) -> StoredReceipt | None:
        """The newest receipt that has been read."""
        watched = self._watched.get(key)
        return None if watched is None else watched.receipt

    async def wait_for_news(
        self, key: GenerationKey, after_epoch: int, wait_s: float, seen: str | None = None
    ) -> StoredReceipt | None:
        """The newest receipt if it is news (``StoredReceipt.is_news``); None if there is none within ``wait_s``.

        :raises SinkBehind: if the store, read after this was called, knows less than ``after_epoch``.
        """
        deadline_s = self._clock.monotonic_s() + wait_s
        watched = self._watch(key)
        watched.waiting += 1
        watched.asked_epoch = max(watched.asked_epoch, after_epoch)
        begun = watched.begun
        if watched.receipt is None or watched.receipt.facts.epoch < after_epoch:
            self._hurry(watched)
        try:
            while watched.receipt is None or not watched.receipt.is_news(after_epoch, seen):
                if watched.answered > begun and (shortfall := watched.shortfall(after_epoch)) is not None:
                    raise _behind(key, watched, after_epoch, shortfall)
                left_s = deadline_s - self._clock.monotonic_s()
                if left_s <= 0 or self._stopping:
                    return None
                self._wake.set()
                try:
                    async with asyncio.timeout(left_s):
                        await watched.news.wait()
                except TimeoutError:
                    continue
        finally:
            watched.waiting -= 1
            watched.asked_epoch = watched.asked_epoch if watched.waiting else 0
            watched.wanted_until_s = self._clock.monotonic_s() + FORGET_AFTER_S
        return watched.receipt

    def release_waiters(self) -> None:
        """The daemon stops: whoever waits for a receipt is answered that there is none."""
        self._stopping = True
        for watched in self._watched.values():
            watched.news.set()

    def forget(self, key: GenerationKey) -> None:
        """The generation is over."""
        watched = self._watched.get(key)
        if watched is not None and not watched.waiting:
            del self._watched[key]

    def _watch(self, key: GenerationKey) -> _Watched:
        found = self._watched.get(key)
        if found is None:
            found = self._watched[key] = _Watched()
            self._wake.set()
        found.wanted_until_s = self._clock.monotonic_s() + FORGET_AFTER_S
        return found

    def _hurry(self, watched: _Watched) -> None:
        watched.interval_s = FASTEST_S
        watched.next_poll_s = min(watched.next_poll_s, self._clock.monotonic_s() + FASTEST_S)
        self._wake.set()

    async def read_now(self, key: GenerationKey) -> None:
        """Read a generation's receipt once; raises as ``BlobClient.get_blob`` does, and ``PeerProtocolError``."""
        await self._read(key, self._watch(key))

    # -- polling ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Poll until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                now_s = self._clock.monotonic_s()
                next_s = now_s + SLOWEST_S
                for key, watched in list(self._watched.items()):
                    if watched.polling:
                        continue
                    if not self._is_wanted(watched):
                        if now_s > watched.wanted_until_s:
                            del self._watched[key]
                        continue
                    if watched.next_poll_s <= now_s:
                        watched.polling = True
                        tasks.create_task(self._poll(key, watched))
                    else:
                        next_s = min(next_s, watched.next_poll_s)
                try:
                    async with asyncio.timeout(max(0.0, next_s - now_s)):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    @staticmethod
    def _is_wanted(watched: _Watched) -> bool:
        applied = 0 if watched.receipt is None else watched.receipt.facts.epoch
        return watched.waiting > 0 or watched.expected_epoch > applied

    async def _poll(self, key: GenerationKey, watched: _Watched) -> None:
        try:
            async with self._slots:
                changed = await self._read(key, watched)
        except BlockferryError as error:
            changed = False
            if isinstance(error, Retryable):
                self.on_outage(key)
            level = logging.DEBUG if isinstance(error, Retryable) else logging.WARNING
            _logger.log(level, "cannot read a receipt", extra={"fields": {"generation": str(key), "error": str(error)}})
        finally:
            watched.polling = False
        watched.interval_s = FASTEST_S if changed else min(SLOWEST_S, watched.interval_s * SLOWER_BY)
        watched.next_poll_s = self._clock.monotonic_s() + watched.interval_s
        self._wake.set()

    async def _read(self, key: GenerationKey, watched: _Watched) -> bool:
        async with watched.reading:
            watched.begun += 1
            begun = watched.begun
            changed = await self._read_in_turn(key, watched)
            watched.answered = begun
        if changed or watched.shortfall(watched.asked_epoch) is not None:
            news, watched.news = watched.news, asyncio.Event()
            news.set()
        return changed

    async def _read_in_turn(self, key: GenerationKey, watched: _Watched) -> bool:
        """Whether the store says something else than before."""
        try:
            blob = await self._client.get_blob(
                REPLICATION_CONTAINER, receipt_name(key), max_bytes=MAX_DOCUMENT_BYTES, if_none_match=watched.etag
            )
        except NotFound:
            was_there = watched.receipt is not None
            watched.has_record = not (watched.waiting or was_there) or await self._has_record(key)
            if was_there and not watched.has_record and await self._is_over(key):
                watched.receipt, watched.etag, watched.expected_epoch = None, None, 0
                return False
            return self._note(key, watched, None, NOTHING_APPLIED)
        if blob is None:
            return False
        facts = read_receipt(blob.content, key)
        watched.etag, watched.has_record = blob.properties.etag, True
        return self._note(key, watched, StoredReceipt(blob.content, facts, receipt_digest(blob.content)), facts)

    async def _has_record(self, key: GenerationKey) -> bool:
        """The record is in the store before anybody is given the generation."""
        try:
            await self._client.head_blob(REPLICATION_CONTAINER, generation_record_name(key))
        except NotFound:
            return False
        return True

    def _note(self, key: GenerationKey, watched: _Watched, found: StoredReceipt | None, facts: ReceiptFacts) -> bool:
        before = watched.receipt
        if found is None and before is None:
            return False
        watched.receipt = found
        if found is None:
            watched.etag = None
        if before is not None and facts.is_behind(before.facts):
            fields = {"generation": str(key), "known_epoch": before.facts.epoch, "found_epoch": facts.epoch}
            _logger.warning("the store was put back to an older state", extra={"fields": fields})
            self.on_step_back(key, facts)
        elif found is not None:
            self.on_receipt(key, facts)
        return True


def _behind(key: GenerationKey, watched: _Watched, known_epoch: int, shortfall: str) -> SinkBehind:
    return SinkBehind(
        f"cannot wait for what comes after epoch {known_epoch}: the store has fallen behind it: {shortfall}",
        disk=key.disk,
        epoch=EpochId(0 if watched.receipt is None else watched.receipt.facts.epoch),
        hint="the store was probably put back to an older state",
    )
