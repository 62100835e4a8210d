"""Discovery at the configuration server: credentials at rest, reports that come twice, late, or from another, and the end of a run."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from config_server.config import PlacementSettings
from config_server.discoveries import MOST_OPEN_RUNS, RUN_TIMEOUT_S
from replication.remote_access import DiscoveredFacts, DiscoveryOrder
from replication.tls_identity import Role
from tests.harness.config_site import Lab, Reply, running_lab
from tests.harness.little_installer import little_installer
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import heartbeat
from tests.unit.config_server.test_discovered_readiness import PROBED

PASSWORD = "correct horse battery"
KEY = "SHA256:" + "k" * 43


@dataclass(slots=True)
class Site:
    """A lab whose clock is set by the test; ``ask`` is process server ``ps-1`` or ``ps-2``."""

    lab: Lab
    clock: list[int]

    def advance(self, seconds: float) -> None:
        self.clock[0] += int(seconds * 1e9)

    async def begin(self, *hosts: str, **more: Any) -> Reply:
        body = {"hosts": [{"address": host} for host in hosts], "credentials": {"password": PASSWORD}, **more}
        return await self.lab.administer("POST", "/api/v1/discoveries", body)

    async def ask(self, method: str, path: str, body: Any = None, who: str = "ps-1") -> Reply:
        identity = self.lab.identities[who]
        return await self.lab.request(method, f"/api/v1/process-server{path}", body, identity=identity)

    async def report(self, run: str, state: str, *, ordinal: int = 1, who: str = "ps-1", **more: Any) -> int:
        body = {"reports": [{"ordinal": ordinal, "state": state, **more}]}
        return (await self.ask("POST", f"/discoveries/{run}/reports", body, who)).status

    async def status(self, run: str) -> Any:
        return (await self.lab.administer("GET", f"/api/v1/discoveries/{run}")).json

    async def stored_credentials(self) -> list[Any]:
        async with self.lab.running.site.database.read() as session:
            return list(await session.scalars(text("SELECT credentials FROM discovery_runs")))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    clock = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: clock[0], reconcile=False) as lab:
        for number in (1, 2):
            await lab.enrol(Role.PROCESS_SERVER, f"ps-{number}", service_url=f"https://127.0.0.{number}:9443")
        found = Site(lab, clock)
        for number in (1, 2):
            beat = heartbeat(f"https://127.0.0.{number}:9443")
            assert (await found.ask("POST", "/heartbeats", beat, f"ps-{number}")).status == 200
        yield found


async def test_credentials_are_wrapped_at_rest_and_handed_to_the_one_that_goes_there(site: Site) -> None:
    begun = await site.begin("web1", "10.1.2.0/30", user="admin", process_server="ps-1")
    assert begun.status == 202, begun.body
    run = begun.json["id"]
    assert PASSWORD not in begun.body.decode()
    [stored] = await site.stored_credentials()
    assert len(stored) > 20
    assert PASSWORD.encode() not in stored
    for file in site.lab.settings.state_dir.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes()
    beat = (await site.ask("POST", "/heartbeats", heartbeat("https://127.0.0.1:9443"))).json
    assert beat["remote_orders"] == [{"kind": "discoveries", "identifier": run}]
    beat = (await site.ask("POST", "/heartbeats", heartbeat("https://127.0.0.2:9443"), "ps-2")).json
    assert beat.get("remote_orders", []) == []  # what says nothing is left out
    assert (await site.ask("GET", f"/discoveries/{run}", who="ps-2")).status == 404
    order = DiscoveryOrder.decode((await site.ask("GET", f"/discoveries/{run}")).body)
    assert order.credentials.password is not None
    assert order.credentials.password.get_secret_value() == PASSWORD
    assert [(host.target.host, host.target.user) for host in order.hosts] == [
        ("web1", "admin"),
        ("10.1.2.1", "admin"),
        ("10.1.2.2", "admin"),
    ]
    assert PASSWORD not in repr(order)


async def test_host_that_has_ended_stays_and_the_last_one_ends_the_run(site: Site) -> None:
    run = (await site.begin("web1", "web2", process_server="ps-1")).json["id"]
    facts = PROBED.model_dump(mode="json")
    assert await site.report(run, "found", offered_host_key=KEY, facts=facts) == 204
    assert await site.report(run, "failed", problem={"code": "x", "message": "late", "hint": None}) == 204
    assert await site.report(run, "found", who="ps-2") == 404
    assert await site.report(run, "found", ordinal=9) == 400
    order = DiscoveryOrder.decode((await site.ask("GET", f"/discoveries/{run}")).body)
    assert [host.ordinal for host in order.hosts] == [2]
    assert await site.report(run, "silent", ordinal=2) == 204
    status = await site.status(run)
    assert (status["state"], [host["state"] for host in status["hosts"]]) == ("ended", ["found", "silent"])
    assert await site.stored_credentials() == [None]
    assert await site.report(run, "found", ordinal=2) == 404
    [listed] = (await site.lab.administer("GET", "/api/v1/servers")).json["items"]
    assert listed["hostname"] == PROBED.hostname
    shown = (await site.lab.administer("GET", f"/api/v1/servers/{PROBED.hostname}")).json
    assert DiscoveredFacts.model_validate_json(json.dumps(shown["discovered"])) == PROBED


async def test_check_looks_at_the_installers_that_the_appliance_offers(site: Site, tmp_path: Path) -> None:
    async def installer_check() -> tuple[str, str]:
        report = (await site.lab.administer("GET", "/api/v1/servers/web-1/readiness")).json
        [check] = [check for check in report["checks"] if check["name"] == "agent installer"]
        return check["grade"], check["message"]

    run = (await site.begin("web1", process_server="ps-1")).json["id"]
    facts = PROBED.model_copy(update={"glibc": "glibc 2.17"}).model_dump(mode="json")
    assert await site.report(run, "found", offered_host_key=KEY, facts=facts) == 204
    assert (await installer_check())[0] == "warning"
    site.lab.running.site.installers.add(little_installer(tmp_path / "built"))
    assert await installer_check() == (
        "blocker",
        "cannot install the agent: the server has glibc 2.17, and it needs 2.36 or later",
    )


async def test_credentials_are_erased_when_the_time_is_over(site: Site) -> None:
    run = (await site.begin("web1", process_server="ps-1")).json["id"]
    await site.lab.running.reconciler.run_once()
    site.advance(RUN_TIMEOUT_S + 1)
    site.lab.running.reconciler.look_around_soon()
    await site.lab.running.reconciler.run_once()
    status = await site.status(run)
    assert status["state"] == "ended"
    assert status["hosts"][0]["problem"]["code"] == "not-looked-at"
    assert await site.stored_credentials() == [None]


async def test_run_of_which_no_order_can_be_made_ends_with_the_reason(site: Site) -> None:
    run = (await site.begin("web1", process_server="ps-1")).json["id"]
    async with site.lab.running.site.database.write() as session:
        await session.execute(text("UPDATE discovery_hosts SET address = '::1'"))  # as an older version took it
    fetched = await site.ask("GET", f"/discoveries/{run}")
    assert (fetched.status, DiscoveryOrder.decode(fetched.body).hosts) == (200, [])
    status = await site.status(run)
    assert (status["state"], status["message"]) == ("ended", "no host is left that can be looked at")
    assert "no order can be made of it" in status["hosts"][0]["problem"]["message"]
    assert await site.stored_credentials() == [None]


async def test_cancelled_run_is_over_and_its_credentials_are_erased(site: Site) -> None:
    run = (await site.begin("web1", process_server="ps-1")).json["id"]
    path = f"/api/v1/discoveries/{run}/cancellation"
    cancelled = (await site.lab.administer("POST", path)).json
    assert (cancelled["state"], cancelled["message"]) == ("ended", "cancelled")
    assert cancelled["hosts"][0]["problem"]["code"] == "cancelled"
    assert await site.stored_credentials() == [None]
    assert await site.report(run, "connecting") == 404
    assert (await site.lab.administer("POST", path)).status == 409


async def test_run_waits_openly_for_a_process_server_that_is_away(site: Site) -> None:
    run = (await site.begin("web1", process_server="ps-1")).json["id"]
    site.advance(100)
    assert (await site.status(run))["message"] == "process server ps-1 is not heard"
    assert (await site.begin("web2")).status == 409


async def test_credentials_go_to_no_process_server_that_came_a_moment_ago_unless_it_is_named(site: Site) -> None:
    site.advance(PlacementSettings().steady_after_s + 1)
    await site.lab.enrol(Role.PROCESS_SERVER, "ps-3", service_url="https://127.0.0.3:9443")
    assert (await site.ask("POST", "/heartbeats", heartbeat("https://127.0.0.3:9443"), "ps-3")).status == 200
    refused = await site.begin("web1")  # the older two are silent
    assert refused.status == 409
    assert "no process server has been heard for 600 s without a gap" in refused.json["detail"]
    assert "--process-server ps-3" in refused.json["hint"]
    assert (await site.begin("web1", process_server="ps-3")).status == 202
    assert (await site.ask("POST", "/heartbeats", heartbeat("https://127.0.0.2:9443"), "ps-2")).status == 200
    begun = await site.begin("web1")
    assert (begun.status, begun.json["process_server"]) == (202, "ps-2")


async def test_the_only_process_server_of_a_new_site_is_chosen_at_once(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        site = Site(lab, [0])
        await lab.enrol(Role.PROCESS_SERVER, "ps-1", service_url="https://127.0.0.1:9443")
        assert (await site.begin("web1")).status == 409, "it was never heard"
        assert (await site.ask("POST", "/heartbeats", heartbeat("https://127.0.0.1:9443"))).status == 200
        begun = await site.begin("web1")
        assert (begun.status, begun.json["process_server"]) == (202, "ps-1")
        await lab.enrol(Role.PROCESS_SERVER, "ps-2", service_url="https://127.0.0.2:9443")
        assert (await site.begin("web2")).status == 409, "there is another one now: who is trusted?"


async def test_every_hand_out_of_credentials_is_an_event(site: Site) -> None:
    run = (await site.begin("web1", process_server="ps-1")).json["id"]
    for _ in range(2):  # it was restarted in between
        assert (await site.ask("GET", f"/discoveries/{run}")).status == 200
    assert (await site.ask("GET", f"/discoveries/{run}", who="ps-2")).status == 404
    events = (await site.lab.administer("GET", "/api/v1/events")).json["items"]
    handed = [event for event in events if event["kind"] == "credentials-handed-out"]
    assert [event["message"] for event in handed] == [
        f"the credentials of discovery {run} were handed to process server ps-1"
    ] * 2


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"hosts": [{"address": "10.0.0.0/8"}]}, 400),
        ({"hosts": [{"address": "-oProxyCommand=x"}]}, 400),
        ({"hosts": [{"address": "::1"}]}, 400),
        ({"hosts": [{"address": "localhost"}]}, 400),
        ({"hosts": [{"address": "127.0.0.0/28"}]}, 400),
        ({"hosts": [{"address": "169.254.169.254"}]}, 400),
        ({"hosts": [{"address": "[::ffff:10.0.0.1]:22"}]}, 400),
        ({"hosts": [{"address": "fe80::1%eth0"}]}, 400),
        ({"hosts": []}, 400),
        ({"credentials": {}}, 400),
        ({"credentials": {"password": 7}}, 400),
        ({"credentials": {"password": "x" * 100_000}}, 400),
        ({"user": "a b"}, 400),
        ({"process_server": "nobody"}, 404),
    ],
)
async def test_what_cannot_be_asked_is_refused(site: Site, change: dict[str, Any], status: int) -> None:
    good = {"hosts": [{"address": "web1"}], "credentials": {"password": PASSWORD}, "process_server": "ps-1"}
    reply = await site.lab.administer("POST", "/api/v1/discoveries", {**good, **change})
    assert reply.status == status
    assert PASSWORD not in reply.body.decode()


async def test_too_many_at_once_are_told_to_wait(site: Site) -> None:
    for _ in range(MOST_OPEN_RUNS):
        assert (await site.begin("web1", process_server="ps-1")).status == 202
    assert (await site.begin("web1", process_server="ps-1")).status == 503
    listed = (await site.lab.administer("GET", "/api/v1/discoveries")).json["items"]
    assert len(listed) == MOST_OPEN_RUNS
