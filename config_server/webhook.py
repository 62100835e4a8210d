"""The webhook: tells one receiver of every change of an alert, at least once, in the order of each alert. Run by ``daemon.py``.

What is to be told stands in the database (``AlertDeliveryRow``), written in the transaction of the change itself; here it is sent, one
at a time. Which one, and when again, is ``core/delivery.py``'s. Nothing waits for the receiver but this task. What waits is bounded: beyond
``queue_limit``, or older than ``keep_s``, the oldest is given up, which is recorded and counted.

A notification is an HTTPS POST of ``alert_plane.Notification``. ``X-Blockferry-Signature`` is ``sha256=`` and the HMAC (hex) of
``X-Blockferry-Timestamp`` (seconds since 1970), a full stop, and the body: the receiver compares it, and the time with its own, against
replay. A delivery that was sent again has the same ``X-Blockferry-Delivery``. Redirections are not followed, no proxy of the environment
is used: this server speaks to the configured address only. Of the answer only the status counts; its body is not read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.alert_plane import Notification, WebhookTrial
from config_server.alert_settings import WebhookSettings
from config_server.alert_tables import AlertDeliveryRow
from config_server.alerts import DELIVERED, GIVEN_UP, PENDING
from config_server.core.delivery import Head, Outcome, Schedule, outcome_of
from config_server.database import Database
from config_server.events import SYSTEM, Clock, record_event
from config_server.operator_plane import WebhookStatus, timestamp
from config_server.postgresql import DatabaseUnavailable
from replication import __version__

LOOKS_EVERY_S: Final = 30.0
MAX_PROBLEM: Final = 300

_logger = logging.getLogger(__name__)


def signature(secret: bytes, timestamp_s: str, body: bytes) -> str:
    """The header ``X-Blockferry-Signature``."""
    return "sha256=" + hmac.new(secret, timestamp_s.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class WebhookFigures:
    """What waits, and how it goes."""

    receiver: str
    waiting: int
    oldest_waiting_s: float
    given_up: int
    last_delivered_ns: int | None
    problem: str | None

    def status(self) -> WebhookStatus:
        delivered_ns = self.last_delivered_ns
        return WebhookStatus(
            receiver=self.receiver,
            waiting=self.waiting,
            oldest_waiting_s=self.oldest_waiting_s,
            given_up=self.given_up,
            last_delivered_at=None if delivered_ns is None else timestamp(delivered_ns),
            problem=self.problem,
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of one attempt. ``problem`` None: delivered."""

    status: int | None
    problem: str | None


class Webhook:
    """``run`` until cancelled; ``work`` sends everything that is due. Built by ``open_webhook``."""

    def __init__(
        self,
        database: Database,
        settings: WebhookSettings,
        secret: bytes,
        session: aiohttp.ClientSession,
        registry: CollectorRegistry,
        *,
        site: str,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._settings = settings
        self._secret = secret
        self._session = session
        self._site = site
        self._clock = clock
        self._monotonic = monotonic
        self._schedule = Schedule(settings.retry_max_s)
        self._woken = asyncio.Event()
        self._attempts = Counter(
            "blockferry_webhook_attempts",
            "Attempts to deliver a notification: delivered, unavailable, refused.",
            ["outcome"],
            registry=registry,
        )

    def wake(self) -> None:
        """Something was queued."""
        self._woken.set()

    async def run(self) -> None:
        """Send what is due, for ever."""
        while True:
            self._woken.clear()
            try:
                pause_s = await self.work()
            except DatabaseUnavailable as error:
                _logger.warning("notifications wait", extra={"fields": {"error": str(error)}})
                pause_s = None
            wait_s = LOOKS_EVERY_S if pause_s is None else min(pause_s, LOOKS_EVERY_S)
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def work(self) -> float | None:
        """Send all that is due; returns in how many seconds the next becomes due, None: nothing waits."""
        await self._give_up_what_is_too_much()
        while True:
            heads = await self._heads()
            self._schedule.forget_others(heads)
            head = self._schedule.due(heads, self._monotonic())
            if head is None:
                return self._schedule.next_s(heads, self._monotonic())
            await self._deliver(head)

    async def _heads(self) -> list[Head]:
        async with self._database.read() as session:
            found = await session.execute(
                select(AlertDeliveryRow.alert_id, func.min(AlertDeliveryRow.sequence))
                .where(AlertDeliveryRow.state == PENDING)
                .group_by(AlertDeliveryRow.alert_id)
            )
            return [Head(alert, sequence) for alert, sequence in found]

    async def _deliver(self, head: Head) -> None:
        async with self._database.read() as session:
            row = await session.get_one(AlertDeliveryRow, head.sequence)
        answer = await self._post(row.id, row.document.encode())
        outcome = outcome_of(answer.status)
        self._attempts.labels(outcome.value).inc()
        self._schedule.note(head.alert, outcome, self._monotonic())
        now_ns = self._clock()
        async with self._database.write() as session:
            row = await session.get_one(AlertDeliveryRow, head.sequence)
            row.attempts, row.attempted_ns, row.problem = row.attempts + 1, now_ns, answer.problem
            if outcome is Outcome.DELIVERED and row.state == PENDING:
                row.state, row.ended_ns = DELIVERED, now_ns
        if answer.problem is not None:
            _logger.warning(
                "a notification was not delivered",
                extra={"fields": {"delivery": row.id, "attempts": row.attempts, "error": answer.problem}},
            )

    async def _post(self, delivery: str, body: bytes) -> _Answer:
        """One attempt, within the time that is configured; nothing is raised."""
        sent_at = str(self._clock() // 10**9)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"blockferry/{__version__}",
            "X-Blockferry-Delivery": delivery,
            "X-Blockferry-Timestamp": sent_at,
            "X-Blockferry-Signature": signature(self._secret, sent_at, body),
        }
        try:
            async with self._session.post(
                self._settings.address(), data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except TimeoutError:
            return _Answer(None, f"cannot wait any longer for {self._settings.shown}: {self._settings.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _Answer(None, f"cannot reach {self._settings.shown}: {_told(error)}")
        if outcome_of(status) is Outcome.DELIVERED:
            return _Answer(status, None)
        return _Answer(status, f"{self._settings.shown} answers {status}")

    async def _give_up_what_is_too_much(self) -> None:
        now_ns = self._clock()
        waiting = AlertDeliveryRow.state == PENDING
        async with self._database.write() as session:
            too_many = (
                select(AlertDeliveryRow.sequence)
                .where(waiting)
                .order_by(AlertDeliveryRow.sequence.desc())
                .offset(self._settings.queue_limit)
            )
            too_old = AlertDeliveryRow.created_ns < now_ns - int(self._settings.keep_s * 1e9)
            doomed = list(
                await session.scalars(
                    select(AlertDeliveryRow.sequence).where(waiting, too_old | AlertDeliveryRow.sequence.in_(too_many))
                )
            )
            if not doomed:
                return
            await session.execute(
                update(AlertDeliveryRow)
                .where(AlertDeliveryRow.sequence.in_(doomed))
                .values(state=GIVEN_UP, ended_ns=now_ns)
                .execution_options(synchronize_session=False)
            )
            message = f"{len(doomed)} notifications were given up: the receiver has not taken them in time"
            record_event(session, now_ns, SYSTEM, "notifications-given-up", message)

    async def figures(self, session: AsyncSession) -> WebhookFigures:
        """What waits, and how it goes."""
        row = AlertDeliveryRow
        counted = await session.execute(select(row.state, func.count(), func.min(row.created_ns)).group_by(row.state))
        by_state = {state: (count, oldest_ns) for state, count, oldest_ns in counted}
        waiting, oldest_ns = by_state.get(PENDING, (0, None))
        delivered_ns = await session.scalar(select(func.max(row.ended_ns)).where(row.state == DELIVERED))
        newest = await session.scalars(
            select(row.problem).where(row.attempted_ns.is_not(None)).order_by(row.attempted_ns.desc()).limit(1)
        )
        return WebhookFigures(
            receiver=self._settings.shown,
            waiting=waiting,
            oldest_waiting_s=0.0 if oldest_ns is None else max(0.0, (self._clock() - oldest_ns) / 1e9),
            given_up=by_state.get(GIVEN_UP, (0, None))[0],
            last_delivered_ns=delivered_ns,
            problem=newest.first(),
        )

    async def try_out(self) -> WebhookTrial:
        """Send a test notification now, once; it is not queued."""
        delivery, began_s = str(uuid.uuid4()), time.monotonic()
        document = Notification(
            delivery=delivery, change="test", at=timestamp(self._clock()), site=self._site, alert=None
        )
        answer = await self._post(delivery, document.encode())
        return WebhookTrial(
            delivered=answer.problem is None,
            receiver=self._settings.shown,
            status=answer.status,
            duration_s=time.monotonic() - began_s,
            problem=answer.problem,
        )


def _told(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:MAX_PROBLEM]


@asynccontextmanager
async def open_webhook(
    database: Database,
    settings: WebhookSettings,
    registry: CollectorRegistry,
    *,
    site: str,
    clock: Clock,
    monotonic: Callable[[], float],
) -> AsyncIterator[Webhook | None]:
    """The webhook with its connections, closed at the end; None: none is configured.

    :raises SettingsError: if its secret or authority cannot be used.
    """
    if settings.url is None:
        yield None
        return
    secret = settings.load_secret()
    connector = aiohttp.TCPConnector(ssl=settings.tls(), limit=2)
    timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield Webhook(database, settings, secret, session, registry, site=site, clock=clock, monotonic=monotonic)
