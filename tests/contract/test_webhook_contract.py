"""The webhook against a real receiver over TLS that fails, hangs, redirects, goes away and comes back: at least once, in order, signed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select

from config_server.alert_settings import WebhookSettings
from config_server.alert_tables import AlertDeliveryRow, AlertRow
from config_server.alerts import Outbox, forget_alerts, tell
from config_server.core.alerts import Change
from config_server.database import Database, sqlite_url
from config_server.events import SYSTEM
from config_server.postgresql import DatabaseUnavailable
from config_server.tables import EventRow
from config_server.webhook import Webhook, open_webhook, signature
from replication.errors import SettingsError
from tests.harness.tls import LabAuthority
from tests.harness.webhook_receiver import SECRET, Receiver

OUTBOX: Final = Outbox(enabled=True, site="ab:cd")
SOON_S: Final = 0.5


@dataclass
class Site:
    """A database with an outbox and its webhook, whose clock passes when it is told to."""

    database: Database
    webhook: Webhook
    settings: WebhookSettings
    now_s: float = 0.0
    rows: dict[str, AlertRow] = field(default_factory=dict)

    def clock(self) -> int:
        return 1_700_000_000 * 10**9 + int(self.now_s * 1e9)

    async def tell(self, name: str, change: Change) -> None:
        async with self.database.write() as session:
            row = await session.get(AlertRow, _identifier(name)) or _alert(name, self.clock())
            session.add(row)
            tell(session, row, change, SYSTEM, OUTBOX, self.clock())

    async def deliver(self, tries: int = 12) -> None:
        """Let time pass until nothing waits, or as many tries are over."""
        for _ in range(tries):
            pause_s = await self.webhook.work()
            if pause_s is None:
                return
            self.now_s += pause_s

    async def states(self) -> list[str]:
        async with self.database.read() as session:
            rows = await session.scalars(select(AlertDeliveryRow).order_by(AlertDeliveryRow.sequence))
            return [row.state for row in rows]


def _identifier(name: str) -> str:
    return f"00000000-0000-4000-8000-{name.encode().hex():0>12}"


def _alert(name: str, now_ns: int) -> AlertRow:
    return AlertRow(
        id=_identifier(name), code="state-space", subject_kind="site", subject_id=name, subject_name=name, severity="warning",
        message="full", remedy="free space", warning_latch="set", warning_since_ns=now_ns, critical_latch="calm",
        critical_since_ns=now_ns, first_seen_ns=now_ns, seen_ns=now_ns, looked_ns=now_ns, raised_ns=now_ns,
    )  # fmt: skip


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    made = Receiver(tmp_path)
    await made.start()
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def telling(
    receiver: Receiver, monotonic: Callable[[], float] | None = None, **changes: Any
) -> AsyncIterator[Site]:
    """Entering again is a restart. ``monotonic``: otherwise time passes with the site's clock."""
    settings = WebhookSettings(
        **{
            "url": receiver.url,
            "secret_file": receiver.secret_file,
            "ca_file": receiver.ca_file,
            "timeout_s": SOON_S,
            **changes,
        }
    )
    database = Database(sqlite_url(receiver.directory / "state.sqlite"))
    await database.upgrade()
    made: Site | None = None
    async with open_webhook(
        database,
        settings,
        CollectorRegistry(),
        site="ab:cd",
        clock=lambda: made.clock() if made else 0,
        monotonic=monotonic or (lambda: made.now_s if made else 0.0),
    ) as webhook:
        assert webhook is not None
        made = Site(database, webhook, settings)
        try:
            yield made
        finally:
            await database.close()


async def test_a_notification_is_signed_versioned_and_says_what_happened(receiver: Receiver) -> None:
    async with telling(receiver) as site:
        await site.tell("a", Change.RAISED)
        await site.deliver()
        headers, body = receiver.seen[0]
        document = json.loads(body)
        assert headers["X-Blockferry-Signature"] == signature(SECRET, headers["X-Blockferry-Timestamp"], body)
        assert headers["X-Blockferry-Delivery"] == document["delivery"]
        assert (document["version"], document["change"], document["site"]) == (1, "raised", "ab:cd")
        assert document["alert"]["code"] == "state-space"
        assert document["alert"]["remedy"] == "free space"
        assert document["alert"]["cause"]
        assert await site.states() == ["delivered"]


async def test_all_arrives_in_order_after_failures_of_every_kind(receiver: Receiver) -> None:
    receiver.answers = [500, 503, 429, 302, 0, 204, 500]
    async with telling(receiver) as site:
        for change in (Change.RAISED, Change.WORSENED, Change.EASED, Change.CLEARED):
            await site.tell("a", change)
        await site.deliver()
        assert await site.states() == ["delivered"] * 4
    arrived = [change for _, change in receiver.messages]
    assert list(dict.fromkeys(arrived)) == ["raised", "worsened", "eased", "cleared"]
    assert arrived == sorted(arrived, key=["raised", "worsened", "eased", "cleared"].index), "none overtakes"
    deliveries = {json.loads(body)["change"]: set() for _, body in receiver.seen}  # type: ignore[var-annotated]
    for headers, body in receiver.seen:
        deliveries[json.loads(body)["change"]].add(headers["X-Blockferry-Delivery"])
    assert all(len(names) == 1 for names in deliveries.values()), "sent again under the same name"


async def test_redirections_are_not_followed(receiver: Receiver) -> None:
    receiver.answers = [302]
    async with telling(receiver) as site:
        trial = await site.webhook.try_out()
    assert (trial.delivered, trial.status) == (False, 302)
    assert len(receiver.seen) == 1


async def test_one_that_is_refused_does_not_keep_others_waiting(receiver: Receiver) -> None:
    receiver.refuses = '"name":"bad"'
    async with telling(receiver) as site:
        for name in ("bad", "a", "bad", "b"):
            await site.tell(name, Change.RAISED)
        await site.deliver(3)
        assert await site.states() == ["pending", "delivered", "pending", "delivered"]
        receiver.refuses = ""
        await site.deliver()
        assert set(await site.states()) == {"delivered"}


async def test_while_the_receiver_is_away_changes_wait_durably_over_a_restart_and_go_out_when_it_is_back(
    receiver: Receiver,
) -> None:
    await receiver.stop()
    async with telling(receiver) as site:
        for name, change in (("a", Change.RAISED), ("b", Change.RAISED), ("a", Change.CLEARED)):
            await site.tell(name, change)
        began_s = time.monotonic()
        await site.deliver(3)
        assert time.monotonic() - began_s < 30, "nobody waits for it"
        async with site.database.read() as session:
            figures = await site.webhook.figures(session)
        assert figures.waiting == 3
        assert figures.problem is not None
        assert "cannot reach https://127.0.0.1" in figures.problem
        assert "/hook" not in figures.problem
        assert figures.oldest_waiting_s > 0
    await receiver.start()
    async with telling(receiver) as site:
        await site.deliver()
        assert await site.states() == ["delivered"] * 3
        async with site.database.read() as session:
            figures = await site.webhook.figures(session)
        assert (figures.waiting, figures.problem, figures.last_delivered_ns is None) == (0, None, False)
    assert receiver.messages == [("a", "raised"), ("b", "raised"), ("a", "cleared")]


async def test_what_was_taken_and_could_not_be_marked_is_sent_again_under_the_same_name(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with telling(receiver) as site:
        await site.tell("a", Change.RAISED)
        write, calls = site.database.write, iter((True, False))
        monkeypatch.setattr(site.database, "write", lambda: write() if next(calls, True) else _broken())
        with pytest.raises(DatabaseUnavailable):
            await site.webhook.work()
        assert (await site.states(), len(receiver.seen)) == (["pending"], 1)
        await site.deliver()
        assert await site.states() == ["delivered"]
    assert len({headers["X-Blockferry-Delivery"] for headers, _ in receiver.seen}) == 1
    assert len(receiver.seen) == 2


def _broken() -> Any:
    raise DatabaseUnavailable("cannot use the database: the disk is gone")


async def test_a_receiver_that_hangs_costs_its_timeout_and_then_pauses(receiver: Receiver) -> None:
    receiver.answers = [0]
    async with telling(receiver) as site:
        await site.tell("a", Change.RAISED)
        assert await site.webhook.work() == pytest.approx(1.0)
        await site.deliver()
        assert await site.states() == ["delivered"]
    assert len(receiver.seen) == 2


async def test_a_receiver_that_another_authority_certifies_is_told_nothing(receiver: Receiver) -> None:
    other = receiver.directory / "other.pem"
    other.write_bytes(LabAuthority("another").certificate_pem)
    async with telling(receiver, ca_file=other) as site:
        trial = await site.webhook.try_out()
    assert not trial.delivered
    assert receiver.seen == []


async def test_what_waits_is_bounded_by_number_and_age_and_giving_up_is_recorded(receiver: Receiver) -> None:
    await receiver.stop()
    async with telling(receiver, queue_limit=3, keep_s=3600.0) as site:
        for _ in range(5):
            await site.tell("a", Change.RAISED)
        await site.webhook.work()
        assert await site.states() == ["given-up", "given-up", "pending", "pending", "pending"]
        site.now_s += 3601
        await site.tell("a", Change.CLEARED)
        await site.webhook.work()
        assert await site.states() == ["given-up"] * 5 + ["pending"]
        async with site.database.read() as session:
            events = await session.scalars(select(EventRow.message).where(EventRow.kind == "notifications-given-up"))
            assert [message.split()[0] for message in events] == ["2", "3"]
            assert (await site.webhook.figures(session)).given_up == 5


async def test_what_was_delivered_is_forgotten_after_a_week_what_waits_never(receiver: Receiver) -> None:
    receiver.refuses = '"name":"bad"'
    async with telling(receiver) as site:
        await site.tell("bad", Change.RAISED)
        await site.tell("a", Change.RAISED)
        await site.deliver(2)
        for days, left in ((6, ["pending", "delivered"]), (8, ["pending"])):
            async with site.database.write() as session:
                later_ns = site.clock() + days * 86400 * 10**9
                await forget_alerts(session, 0, later_ns, 500)
            assert await site.states() == left


async def test_the_task_goes_on_by_itself_and_is_woken_by_what_is_queued(receiver: Receiver) -> None:
    receiver.answers = [500]
    async with (
        telling(receiver, time.monotonic, retry_max_s=1.0) as site,
        asyncio.timeout(30),
        asyncio.TaskGroup() as tasks,
    ):
        task = tasks.create_task(site.webhook.run())
        await asyncio.sleep(0)
        await site.tell("a", Change.RAISED)
        site.webhook.wake()
        while await site.states() != ["delivered"]:
            await asyncio.sleep(0.01)
        task.cancel()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://receiver.example/hook", "https://HOST"),
        ("https:///hook", "https://HOST"),
        ("ftp://receiver.example", "https://HOST"),
        ("https://user:secret@receiver.example/", "signed"),
        ("https://receiver.example/#part", "signed"),
        ("https://receiver.example:port/", "no address"),
        ("https://", "https://HOST"),
    ],
)
def test_addresses_that_are_refused_without_repeating_them(url: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        WebhookSettings(url=url, secret_file=tmp_path / "secret")
    assert complaint in str(refused.value)
    assert "secret@" not in str(refused.value)


def test_an_address_needs_a_secret_and_without_one_nobody_is_told() -> None:
    with pytest.raises(SettingsError, match="without a secret_file"):
        WebhookSettings(url="https://receiver.example/")
    assert WebhookSettings().url is None


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (SECRET, 0o644, "others may read it"),
        (b"short", 0o600, "at least 16"),
        (b"x" * 5000, 0o600, "at least 16"),
        (None, 0o600, "cannot read"),
    ],
)
def test_secrets_that_are_refused(content: bytes | None, mode: int, complaint: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
        secret.chmod(mode)
    with pytest.raises(SettingsError, match=complaint):
        WebhookSettings(url="https://receiver.example/", secret_file=secret).load_secret()
