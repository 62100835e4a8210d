"""Who leads: of the configuration servers on one database the one that decides; the others serve the API and stand by.

Built and run by ``daemon.py``; asked by the reconciler (``guard``, ``may_act``), by ``api/site.py`` and by the registry. Theory: the leader
holds an advisory lock of the database (PostgreSQL) in a session of its own. Whoever gets the lock counts ``term`` up, in a writing
transaction, before it decides anything. Every writing transaction of the reconciler begins with ``guard``, which compares the term: since
writing transactions of the site run one after the other, whatever a leader of an earlier term still writes is refused, however long it
stood still. Before it changes anything in the store it asks ``may_act``, by the clock that nobody sets; what it does there in spite of that
is repeatable (``reconciler/mailbox.py``).

The seat is lost with the session: at once when the process dies, and after ``leader_timeout_s`` without a word when process, machine or
network stand still: the database ends a session that is idle so long. So the lock never waits for somebody who is not there.

The same session carries news between the servers (LISTEN, NOTIFY), at most one message each ``MIN_GAP_S``. On SQLite the one server that
has the file leads, always (``SoleLeadership``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.database import Database
from config_server.events import SYSTEM, Clock, record_event
from config_server.postgresql import BROKEN, LEADER_LOCK, DatabaseUnavailable, PostgresqlServer
from config_server.server_tables import ONLY, ConfigServerRow, LeadershipRow
from replication import __version__
from replication.errors import BlockferryError
from replication.service.health import HealthBoard, HealthState

CHANNEL: Final = "blockferry"
DESIRED: Final = "desired"
WORK: Final = "work"
"""News: agents that wait shall look again; the reconciler shall."""

POLL_S: Final = 1.0
"""So often does who stands by try to get the seat, and look at what the leader looks at."""

MIN_GAP_S: Final = 0.05
RECONNECT_S: Final = 1.0
REGISTER_S: Final = 5.0
FORGOTTEN_AFTER_S: Final = 7 * 86400.0
SAFE_SHARE: Final = 0.8
"""Of ``leader_timeout_s``: this process gives itself up before the database does, though their clocks do not run alike."""

CLOCK_TOLERANCE_S: Final = 1.0

Act = Callable[[], Coroutine[Any, Any, None]]

_logger = logging.getLogger(__name__)


class LeadershipLost(Exception):  # no BlockferryError: no job's step fails by it, the whole pass ends
    """This server does not lead any more; nothing was changed."""


_PASSING: Final = (*BROKEN, asyncpg.PostgresError, OSError, BlockferryError, LeadershipLost)
"""What ends one try for the seat, or one time in it, and not this process."""


class Leadership(Protocol):
    """What others ask of it. ``term`` None: another server leads, or nobody."""

    term: int | None

    async def guard(self, session: AsyncSession) -> None:
        """:raises LeadershipLost: if this server may not decide, in the transaction that has begun."""

    def may_act(self) -> None:
        """Before something is changed outside of the database.

        :raises LeadershipLost: if the seat may be another's by now.
        """

    def ring(self, news: str) -> None:
        """Tell the other servers, soon."""

    async def run(self, lead: Act, look: Act, hear: Callable[[str], None]) -> None:
        """Until cancelled: ``lead`` while this server leads, ``look`` again and again while it does not; ``hear`` what others tell."""


class SoleLeadership:
    """The one server of a site on SQLite."""

    term: int | None = 0

    async def guard(self, session: AsyncSession) -> None:
        pass

    def may_act(self) -> None:
        pass

    def ring(self, news: str) -> None:
        pass

    async def run(self, lead: Act, look: Act, hear: Callable[[str], None]) -> None:  # noqa: ARG002 -- nobody stands by
        await lead()


@dataclass(frozen=True, slots=True)
class OwnName:
    """How this server is known to the others: the identifier in its certificate, its host name."""

    identifier: str
    hostname: str


class SharedLeadership:
    """A seat on PostgreSQL, for which every server of the site competes."""

    def __init__(
        self,
        database: Database,
        server: PostgresqlServer,
        own: OwnName,
        board: HealthBoard,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self.term: int | None = None
        self._database = database
        self._server = server
        self._own = own
        self._board = board
        self._clock = clock
        self._monotonic = monotonic
        self._confirmed_s = float("-inf")
        self._rung = asyncio.Event()
        self._news: set[str] = set()
        self._timeout_s = server.settings.leader_timeout_s

    async def guard(self, session: AsyncSession) -> None:
        term = await session.scalar(select(LeadershipRow.term).where(LeadershipRow.id == ONLY))
        if self.term is None or term != self.term:
            raise LeadershipLost(f"term {self.term} is over, term {term} has begun")

    def may_act(self) -> None:
        if self.term is None or self._monotonic() - self._confirmed_s > self._timeout_s * SAFE_SHARE:
            raise LeadershipLost("the database was not heard for too long")

    def ring(self, news: str) -> None:
        if news == WORK and self.term is not None:
            return  # the work is this server's
        self._news.add(news)
        self._rung.set()

    async def run(self, lead: Act, look: Act, hear: Callable[[str], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._register())
            tasks.create_task(self._compete_for_ever(lead, look, hear))

    async def _compete_for_ever(self, lead: Act, look: Act, hear: Callable[[str], None]) -> None:
        while True:
            try:
                connection = await self._server.connect(idle_timeout_s=self._timeout_s)
                try:
                    await self._compete(connection, lead, look, hear)
                finally:
                    self.term = None
                    connection.terminate()  # with it goes the lock
            except _PASSING as error:
                self._stand_down(error)
            except BaseExceptionGroup as group:
                expected, others = group.split(_PASSING)
                if others is not None or expected is None:
                    raise
                self._stand_down(expected)
            await asyncio.sleep(RECONNECT_S)

    def _stand_down(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reason = str(error) or "the database does not answer"
        self._board.report("leadership", HealthState.DEGRADED, f"neither leads nor stands by: {reason}")
        _logger.warning("does not compete for the leader's seat just now", extra={"fields": {"reason": reason}})

    async def _compete(self, connection: Any, lead: Act, look: Act, hear: Callable[[str], None]) -> None:
        """Stand by until the seat is free, then lead; returns by an exception only."""

        def heard(_connection: object, _pid: int, _channel: str, message: str) -> None:
            sender, _, news = message.partition(" ")
            if sender != self._own.identifier:
                for word in news.split(","):
                    hear(word)

        await connection.add_listener(CHANNEL, heard)
        self._board.report("leadership", HealthState.OK, "stands by")
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look_on(look))
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEADER_LOCK):
                await self._beat(connection, POLL_S)
            looking.cancel()
        self._confirmed_s = self._monotonic()
        self.term = await self._begin_term()
        self._board.report("leadership", HealthState.OK, f"leads, term {self.term}")
        _logger.info("leads", extra={"fields": {"term": self.term}})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lead())
            while True:
                await self._beat(connection, self._timeout_s / 5)

    async def _begin_term(self) -> int:
        async with self._database.write() as session:
            row = await session.get(LeadershipRow, ONLY)
            if row is None:
                row = LeadershipRow(id=ONLY, term=0, server_id=self._own.identifier, since_ns=0)
                session.add(row)
            row.term, row.server_id, row.since_ns = row.term + 1, self._own.identifier, self._clock()
            message = f"configuration server {self._own.hostname} leads, term {row.term}"
            record_event(session, self._clock(), SYSTEM, "leader", message)
        return row.term

    async def _beat(self, connection: Any, interval_s: float) -> None:
        """Tell the news when there are any, at the latest after ``interval_s`` say something; the database has heard it on return."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await self._rung.wait()
        self._rung.clear()
        news, self._news = ",".join(sorted(self._news)), set()
        sent_s = self._monotonic()
        # Without news nobody is told anything: the statement alone keeps the session.
        message = f"{self._own.identifier} {news}"
        async with asyncio.timeout(self._timeout_s * SAFE_SHARE):
            await connection.fetchval("SELECT CASE WHEN $3 THEN pg_notify($1, $2) END", CHANNEL, message, bool(news))
        self._confirmed_s = sent_s
        await asyncio.sleep(MIN_GAP_S)

    async def _look_on(self, look: Act) -> None:
        while True:
            try:
                await look()
            except DatabaseUnavailable as error:
                self._board.report("database", HealthState.FAILED, str(error))
            else:
                self._board.report("database", HealthState.OK)
            await asyncio.sleep(POLL_S)

    async def _register(self) -> None:
        """Let the other servers and the operators know of this one."""
        while True:
            try:
                await self.register()
            except DatabaseUnavailable as error:
                self._board.report("database", HealthState.FAILED, str(error))
                _logger.warning("the database does not answer", extra={"fields": {"error": str(error)}})
            await asyncio.sleep(REGISTER_S)

    async def register(self) -> None:
        """Once."""
        async with self._database.write() as session:
            asked = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")
            before_us = self._clock() // 1000
            there_us = int((await session.execute(asked)).scalar_one())
            now_ns = self._clock()
            offset_us = (before_us + now_ns // 1000) // 2 - there_us
            row = await session.get(ConfigServerRow, self._own.identifier)
            if row is None:
                row = ConfigServerRow(id=self._own.identifier)
                session.add(row)
            row.hostname, row.version = self._own.hostname, __version__
            row.heard_ns, row.clock_offset_us = now_ns, offset_us
            gone_ns = now_ns - int(FORGOTTEN_AFTER_S * 1e9)
            await session.execute(
                delete(ConfigServerRow)
                .where(ConfigServerRow.heard_ns < gone_ns, ConfigServerRow.id != row.id)
                .execution_options(synchronize_session=False)
            )
        if abs(offset_us) > CLOCK_TOLERANCE_S * 1e6:
            problem = f"this server's clock is {offset_us / 1e6:+.1f} s off the database's: keep both by NTP"
            self._board.report("clock", HealthState.DEGRADED, problem)
        else:
            self._board.report("clock", HealthState.OK)


class LeadershipFigures(Collector):
    """For ``/metrics``."""

    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership

    def collect(self) -> Iterable[Metric]:
        term = self._leadership.term
        yield GaugeMetricFamily(
            "blockferry_leader", "1 if this configuration server leads", value=int(term is not None)
        )
        yield GaugeMetricFamily("blockferry_leader_term", "Of the leader; 0: no leader, or SQLite", value=term or 0)
