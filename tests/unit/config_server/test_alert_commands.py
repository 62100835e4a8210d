"""``migratectl health``, ``alerts``, ``acknowledge-alert``, ``test-webhook`` against a real server whose alert reaches a real receiver."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from config_server.alert_settings import WebhookSettings
from config_server.config import Settings
from config_server.migratectl.cli import main
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import heartbeat
from tests.harness.webhook_receiver import Receiver


@dataclass
class Operated:
    """A site with one process server, its time, and the command line."""

    lab: Lab
    receiver: Receiver
    now_ns: list[int]

    async def passes(self, seconds: int, **changes: Any) -> None:
        for _ in range(0, seconds, 25):
            self.now_ns[0] += 25 * 10**9
            await self.lab.request(
                "POST", "/api/v1/process-server/heartbeats", heartbeat(**changes), identity=self.lab.identities["ps-1"]
            )
            await self.lab.running.reconciler.run_once()
        webhook = self.lab.running.site.webhook
        assert webhook is not None
        await webhook.work()

    async def type(self, *words: str) -> Result:
        authority = self.lab.directory / "authority.pem"
        authority.write_text(self.lab.authority_pem)
        token = self.lab.directory / "token"
        token.write_text(self.lab.token)
        options = ["--url", self.lab.url, "--token-file", str(token), "--authority", str(authority)]
        return await asyncio.to_thread(CliRunner().invoke, main, [*options, *words])


@pytest.fixture
async def operated(tmp_path: Path) -> AsyncIterator[Operated]:
    receiver = Receiver(tmp_path)
    await receiver.start()
    now_ns = [time.time_ns()]

    def with_webhook(settings: Settings) -> Settings:
        webhook = WebhookSettings(url=receiver.url, secret_file=receiver.secret_file, ca_file=receiver.ca_file)
        return dataclasses.replace(settings, webhook=webhook)

    async with running_lab(
        tmp_path, MemoryBlobClient(), clock=lambda: now_ns[0], change=with_webhook, reconcile=False
    ) as lab:
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        made = Operated(lab, receiver, now_ns)
        await made.passes(75)
        yield made
    await receiver.stop()


async def test_an_alert_from_its_condition_to_the_receiver_and_to_its_end(operated: Operated) -> None:
    done = await operated.type("health")
    assert (done.exit_code, done.output.strip()) == (0, "healthy")
    done = await operated.type("alerts")
    assert (done.exit_code, done.output.strip()) == (0, "no alerts")

    await operated.passes(100, spool_free_fraction=0.28)
    done = await operated.type("health", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["health"]) == (10, "warning")
    alert = found["reasons"][0]["alert"]
    await operated.passes(100, spool_free_fraction=0.1)
    assert (await operated.type("health")).exit_code == 11
    done = await operated.type("alerts", "--json")
    assert [item["severity"] for item in json.loads(done.stdout)["items"]] == ["critical"]
    assert "spool-nearly-full" in (await operated.type("alerts", "--all")).output

    done = await operated.type("acknowledge-alert", alert[:8], "--for", "2h", "--note", "on its way")
    assert done.exit_code == 0, done.output
    assert "spool-nearly-full of ps-1 is silent until" in done.output
    assert "on its way" in (await operated.type("alerts", "--json")).output
    await operated.passes(75, spool_free_fraction=0.29)
    await operated.passes(325, spool_free_fraction=0.29)
    done = await operated.type("acknowledge-alert", alert[:8], "--withdraw")
    assert (done.exit_code, "speaks again" in done.output) == (0, True)
    await operated.passes(400)
    assert (await operated.type("health")).exit_code == 0

    changes = ["raised", "worsened", "acknowledged", "acknowledgement-ended", "cleared"]
    assert operated.receiver.messages == [("ps-1", change) for change in changes], "it eased while it was silent"
    done = await operated.type("site")
    assert "health:       healthy (no alerts)" in done.output
    assert f"webhook:      https://127.0.0.1:{operated.receiver.port}: 0 waiting, 0 given up" in done.output


async def test_a_test_notification_says_what_the_receiver_answered(operated: Operated) -> None:
    done = await operated.type("test-webhook")
    assert (done.exit_code, "taken (204)" in done.output) == (0, True), done.output
    assert json.loads(operated.receiver.seen[-1][1])["change"] == "test"
    operated.receiver.answers = [403]
    done = await operated.type("test-webhook", "--json")
    assert (done.exit_code, json.loads(done.stdout)["status"]) == (1, 403)
    await operated.receiver.stop()
    done = await operated.type("test-webhook")
    assert (done.exit_code, "not taken: cannot reach" in done.output) == (1, True), done.output


@pytest.mark.parametrize(
    ("words", "exit_code", "complaint"),
    [
        (("acknowledge-alert", "abcdef"), 1, "cannot find the alert"),
        (("acknowledge-alert", "x"), 1, "cannot tell which alert"),
        (("acknowledge-alert", "abcdef", "--for", "31 d"), 2, "cannot use --for"),
        (("acknowledge-alert", "abcdef", "--for", "soon"), 2, "--for"),
        (("acknowledge-alert", "abcdef", "--note", "x" * 501), 2, "cannot use --note"),
    ],
)
async def test_what_cannot_be_acknowledged_is_said(
    operated: Operated, words: tuple[str, ...], exit_code: int, complaint: str
) -> None:
    done = await operated.type(*words)
    assert (done.exit_code, complaint in done.output) == (exit_code, True), done.output
