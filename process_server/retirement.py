"""Generations that are over: what the spool still holds of them is given up, their keys leave the memory, idle ones are forgotten.

Built by ``daemon``; told by the intake of each generation's first batch, asked by the receipt watch, and run now and then. Giving up
costs at most a new attempt: an agent drops nothing before a receipt. A generation is over when a newer one of its disk ships (the older
was closed at the sink first, R8), or when the configuration server, asked about one that has not moved for long or has gone from the
store, says that there is no such generation any more.

It is over here, too, when its item belongs to another process server: what was complete has gone to the store by then, where the first
manifest of an epoch decides (R5), whoever puts it. What has not moved for long although the store answers never will. While the store does
not answer it is kept: it may be there first.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import Final, Protocol

from process_server.core.backlog import Backlog
from process_server.metrics import ProcessServerMetrics
from process_server.spool.record import RecordKind
from process_server.spool.spool import Spool
from replication.clock import Clock
from replication.control_plane import AssignedElsewhere, DataKeyGrant
from replication.errors import BlockferryError, NotFound
from replication.identifiers import GenerationKey

REVIEW_EVERY_S: Final = 600.0
_UNKNOWN_NOW: Final = "the configuration server has no such generation any more"
_logger = logging.getLogger(__name__)


class _Standing(enum.Enum):
    """Of a generation at the configuration server; an answer that did not come, or was not understood, may be that it is wanted."""

    WANTED = enum.auto()
    UNKNOWN = enum.auto()
    ELSEWHERE = enum.auto()


class KeySource(Protocol):
    """The configuration server, as far as it knows generations."""

    async def data_key(self, key: GenerationKey) -> DataKeyGrant: ...


class Retirement:
    """``forget`` callbacks are called with each generation that is over or idle. ``store_answers``: as far as is known."""

    def __init__(
        self,
        backlog: Backlog,
        spool: Spool,
        source: KeySource,
        clock: Clock,
        metrics: ProcessServerMetrics,
        forget: tuple[Callable[[GenerationKey], None], ...],
        store_answers: Callable[[], bool] = lambda: True,
    ) -> None:
        self._backlog = backlog
        self._spool = spool
        self._source = source
        self._clock = clock
        self._metrics = metrics
        self._forget = forget
        self._store_answers = store_answers
        self._quiet: dict[GenerationKey, int] = {}

    def ships(self, key: GenerationKey) -> None:
        """A batch of ``key`` was accepted: older generations of its disk are over."""
        older = [
            other for other in self._backlog.generations if other.disk == key.disk and other.generation < key.generation
        ]
        for other in older:
            self.retire(other, "a newer generation of the disk ships")

    def retire(self, key: GenerationKey, reason: str) -> None:
        """Give up everything the spool holds of a generation."""
        places = self._backlog.discard_generation(key)
        for place in places:
            self._spool.release(place, RecordKind.DISCARDED)
        self._metrics.discarded_records.inc(len(places))
        for forget in self._forget:
            forget(key)
        _logger.info(
            "a generation is over",
            extra={"fields": {"generation": str(key), "reason": reason, "given_up": len(places)}},
        )

    async def run(self) -> None:
        """Review generations until cancelled."""
        while True:
            await self._clock.sleep(REVIEW_EVERY_S)
            await self.review()

    async def review(self) -> None:
        """Forget what is idle; ask about what waits and has not moved since the last review."""
        quiet: dict[GenerationKey, int] = {}
        for key, generation in list(self._backlog.generations.items()):
            quiet[key] = generation.activity
            if self._quiet.get(key) != generation.activity:
                continue
            if not generation.epochs:
                self._backlog.discard_generation(key)
                for forget in self._forget:
                    forget(key)
            else:
                await self._ask(key)
        self._quiet = quiet

    async def is_over(self, key: GenerationKey) -> bool:
        """Whether the configuration server says now that there is no such generation any more: then it is retired. False if it does not
        answer: who stops or completes an item does it there.
        """
        is_over = await self._standing(key) is _Standing.UNKNOWN
        if is_over:
            self.retire(key, _UNKNOWN_NOW)
        return is_over

    async def _ask(self, key: GenerationKey) -> None:
        match await self._standing(key):
            case _Standing.UNKNOWN:
                self.retire(key, _UNKNOWN_NOW)
            case _Standing.ELSEWHERE:
                kept = self._backlog.generations.get(key)  # it may be gone by now
                if kept is not None and (self._store_answers() or kept.next_manifest is None):
                    self.retire(key, "its item belongs to another process server")
            case _Standing.WANTED:
                pass

    async def _standing(self, key: GenerationKey) -> _Standing:
        try:
            await self._source.data_key(key)
        except NotFound:
            return _Standing.UNKNOWN
        except AssignedElsewhere:
            return _Standing.ELSEWHERE
        except BlockferryError as error:
            _logger.debug(
                "cannot ask about a generation", extra={"fields": {"generation": str(key), "error": str(error)}}
            )
        return _Standing.WANTED
