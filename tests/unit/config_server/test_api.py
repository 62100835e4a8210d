"""The API over real TLS: who is let in, what is refused, and that everything served is documented."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import validate
from sqlalchemy import select

from config_server.api.openapi import openapi_document
from config_server.api.routes import Access
from config_server.api.table import ROUTES
from config_server.database import Database
from config_server.tables import AdministratorTokenRow, CertificateRow, MachineRow
from replication.control_plane import AgentDesired, ProcessServerDesired
from replication.surroundings import FreeSpace, Reach, Surroundings
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import (
    DISK,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    new_id,
    observation,
)
from tests.harness.tls import LabAuthority


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        await running.running.reconciler.run_once()
        yield running


def filled(path: str) -> str:
    return re.sub(r"\{generation\}", "1", re.sub(r"\{disk\}", DISK, re.sub(r"\{\w+\}", "x", path)))


async def test_every_route_refuses_who_shows_no_identity(lab: Lab) -> None:
    for route in ROUTES:
        if route.access is not Access.PUBLIC:
            reply = await lab.request(route.method, filled(route.full_path), {})
            assert (route.full_path, reply.status, reply.json["status"]) == (route.full_path, 401, 401)
            assert reply.headers["Content-Type"].startswith("application/problem+json")
            assert ("WWW-Authenticate" in reply.headers) == route.access.is_of_operators


async def test_certificates_open_only_the_routes_of_their_role(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    await lab.enrol(Role.PROCESS_SERVER, "ps-1")
    for route in ROUTES:
        for name, own in (("web-1", Access.AGENT), ("ps-1", Access.PROCESS_SERVER)):
            if route.access in (Access.AGENT, Access.PROCESS_SERVER) and route.access is not own:
                reply = await lab.request(route.method, filled(route.full_path), {}, identity=lab.identities[name])
                assert (route.full_path, reply.status) == (route.full_path, 403)


async def test_certificate_is_no_administrator_s_token(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    assert (await lab.request("GET", "/api/v1/servers", identity=lab.identities["web-1"])).status == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic abc", "Bearer blockferry-0000000000000000-" + "0" * 64]
)
async def test_wrong_tokens_are_refused(lab: Lab, header: str) -> None:
    assert (await lab.request("GET", "/api/v1/site", headers={"Authorization": header})).status == 401


async def test_revoked_and_expired_tokens_are_refused(lab: Lab) -> None:
    assert (await lab.administer("GET", "/api/v1/site")).status == 200
    for column in ("expires_ns", "revoked_ns"):
        async with lab.running.site.database.write() as session:
            token = await session.scalar(select(AdministratorTokenRow))
            assert token is not None
            token.expires_ns = token.revoked_ns = None
            setattr(token, column, time.time_ns() - 1)
        assert (await lab.administer("GET", "/api/v1/site")).status == 401


async def test_certificate_of_another_authority_does_not_get_through_tls(lab: Lab, tmp_path: Path) -> None:
    stranger = LabAuthority().issue(Role.AGENT, new_id(), tmp_path / "stranger")
    context = stranger.client_context(Role.CONFIG_SERVER)
    context.load_verify_locations(cadata=lab.authority_pem)
    stranger.authorities_path.write_text(lab.authority_pem)
    with pytest.raises(Exception, match=r"(?i)ssl|reset|disconnected|certificate"):
        await lab.request("GET", "/api/v1/agent/desired", identity=stranger)


async def test_revoked_certificate_is_refused_and_told_to_process_servers(lab: Lab) -> None:
    name = await lab.enrol(Role.AGENT, "web-1")
    await lab.enrol(Role.PROCESS_SERVER, "ps-1")
    async with lab.running.site.database.write() as session:
        row = await session.scalar(select(CertificateRow).where(CertificateRow.holder_id == name.identifier))
        assert row is not None
        row.revoked_ns = time.time_ns()
    refused = await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-1"])
    assert (refused.status, "revoked" in refused.json["detail"]) == (403, True)
    reply = await lab.request("POST", "/api/v1/process-server/heartbeats", heartbeat(), identity=lab.identities["ps-1"])
    serial = lab.identities["web-1"].certificate().serial_number
    assert ProcessServerDesired.decode(reply.body).revoked_serials == [format(serial, "x")]


async def test_machine_that_is_not_known_is_refused_though_its_certificate_is_good(lab: Lab) -> None:
    name = await lab.enrol(Role.AGENT, "web-1")
    async with lab.running.site.database.write() as session:
        await session.delete(await session.get_one(MachineRow, name.identifier))
    reply = await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-1"])
    assert (reply.status, "not enrolled" in reply.json["detail"]) == (403, True)


async def test_clone_of_a_machine_is_refused_and_recorded_once(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    clone = observation("clone")
    for _ in range(3):
        reply = await lab.request("POST", "/api/v1/agent/observations", clone, identity=identity)
        assert (reply.status, "another machine" in reply.json["detail"]) == (403, True)
    refused = await lab.request("PUT", "/api/v1/agent/inventory", inventory("clone"), identity=identity)
    assert refused.status == 403
    events = (await lab.administer("GET", "/api/v1/events?kind=second-incarnation")).json["items"]
    assert len(events) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/servers/none/protection", {}, 404, "cannot find the server"),
        ("POST", "/servers/none/protection", {"disk": []}, 400, "Extra inputs"),
        ("POST", "/servers/none/protection", None, 400, "ProtectRequest"),
        ("GET", "/servers?limit=0", None, 400, "limit"),
        ("GET", "/servers?limt=5", None, 400, "limt"),
        ("GET", "/servers?limit=1&limit=2", None, 400, "twice"),
        ("GET", "/jobs/none", None, 404, "cannot find the job"),
        ("GET", "/protected-items/none", None, 404, "cannot find the server"),
        ("POST", "/policies", {"name": "p", "retention_s": 99999999}, 400, "retention_s"),
        ("POST", "/policies", {"name": "default"}, 409, "there is one of this name"),
        ("PUT", "/policies/other", {"name": "default"}, 400, "rename"),
        ("PUT", "/policies/none", {"name": "none"}, 404, "cannot find the policy"),
        ("POST", "/enrolment-passphrases", {"valid_for_s": 0}, 400, "valid_for_s"),
        ("DELETE", "/enrolment-passphrases/none", None, 404, "cannot find"),
        ("GET", "/nowhere", None, 404, ""),
        ("DELETE", "/servers", None, 405, ""),
    ],
)
async def test_what_cannot_be_done_is_a_problem_document(
    lab: Lab, method: str, path: str, body: Any, status: int, says: str
) -> None:
    reply = await lab.administer(method, "/api/v1" + path, body)
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    assert says in reply.json["detail"]


async def test_body_that_is_too_large_is_refused(lab: Lab) -> None:
    reply = await lab.request(
        "POST", "/api/v1/policies", b" " * (2**20 + 1), headers={"Authorization": f"Bearer {lab.token}"}
    )
    assert reply.status == 413


async def test_document_served_is_valid_openapi_and_names_every_route(lab: Lab) -> None:
    reply = await lab.request("GET", "/api/v1/openapi.json")
    assert reply.status == 200
    validate(reply.json)
    documented = {(path, method.upper()) for path, item in reply.json["paths"].items() for method in item}
    served = {(route.full_path, route.method) for route in ROUTES}
    assert documented == served
    resources = {
        (resource.canonical, route.method)
        for resource in lab.running.server.runner.app.router.resources()
        for route in resource
        if route.method != "HEAD" and not resource.canonical.startswith("/downloads")
    }
    assert resources == served


def test_operation_identifiers_are_unique_and_summaries_are_there() -> None:
    operations = [o for item in openapi_document(ROUTES)["paths"].values() for o in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


async def test_wait_for_desired_state_ends_when_it_changes(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
    assert (
        await lab.request("GET", "/api/v1/agent/desired?after_revision=0&wait_s=0", identity=identity)
    ).status == 204
    waiting = asyncio.ensure_future(
        lab.request("GET", "/api/v1/agent/desired?after_revision=0&wait_s=30", identity=identity)
    )
    assert (await lab.administer("POST", "/api/v1/servers/web-1/protection", {})).status == 202
    reply = await waiting
    assert (reply.status, reply.json["revision"]) == (200, 1)
    older = await lab.request("GET", "/api/v1/agent/desired?after_revision=9&wait_s=30", identity=identity)
    assert (older.status, older.json["revision"]) == (200, 1)
    refused = await lab.request("GET", "/api/v1/agent/desired?wait_s=61", identity=identity)
    assert refused.status == 400


async def test_wait_for_desired_state_does_not_hold_the_stop_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    feed, looked = lab.running.site.feed, asyncio.Event()
    current = feed.current

    async def look(machine_id: str) -> AgentDesired:
        found = await current(machine_id)
        looked.set()  # nobody else runs before it waits
        return found

    monkeypatch.setattr(feed, "current", look)
    path = "/api/v1/agent/desired?after_revision=0&wait_s=60"
    waiting = asyncio.ensure_future(lab.request("GET", path, identity=lab.identities["web-1"]))
    await asyncio.wait_for(looked.wait(), 20)
    feed.release_waiters()
    assert (await asyncio.wait_for(waiting, 20)).status == 204


async def test_lists_come_in_pages(lab: Lab) -> None:
    for name in ("a-1", "b-1", "c-1"):
        await lab.enrol(Role.AGENT, name)
        disk = inventory_disk(new_id())
        await lab.request("PUT", "/api/v1/agent/inventory", inventory(name, [disk]), identity=lab.identities[name])
        await lab.administer("POST", f"/api/v1/servers/{name}/protection", {})
    seen: list[str] = []
    after: Any = ""
    for _ in range(3):
        page = (await lab.administer("GET", f"/api/v1/servers?limit=1&after={after}")).json
        seen += [server["hostname"] for server in page["items"]]
        after = page["next"]
    assert (seen, after) == (["a-1", "b-1", "c-1"], None)
    first = (await lab.administer("GET", "/api/v1/jobs?limit=2")).json
    second = (await lab.administer("GET", f"/api/v1/jobs?limit=2&after={first['next']}")).json
    assert [job["server"] for job in first["items"] + second["items"]] == ["c-1", "b-1", "a-1"]
    assert second["next"] is None
    events = (await lab.administer("GET", "/api/v1/events?after=0&limit=2")).json
    more = (await lab.administer("GET", f"/api/v1/events?after={events['next']}&limit=1000")).json
    identifiers = [event["id"] for event in events["items"] + more["items"]]
    assert identifiers == sorted(identifiers)
    assert len(set(identifiers)) == len(identifiers)


async def test_events_name_the_actor_of_each_change(lab: Lab) -> None:
    name = await lab.enrol(Role.AGENT, "web-1")
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=lab.identities["web-1"])
    await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
    events = (await lab.administer("GET", "/api/v1/events?server=web-1")).json["items"]
    actors = {event["kind"]: event["actor"] for event in events}
    assert actors["enrolled"] == f"agent:{name.identifier}"
    assert actors["protected"] == "administrator:first"
    assert actors["job-started"] == "administrator:first"


async def test_policy_change_reaches_the_agent(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
    await lab.administer("POST", "/api/v1/policies", {"name": "tight", "recovery_point_interval_s": 10})
    await lab.administer("POST", "/api/v1/servers/web-1/protection", {"policy": "tight"})
    before = (await lab.request("GET", "/api/v1/agent/desired", identity=identity)).json
    assert before["item"]["timing"]["recovery_point_interval_s"] == 10.0
    await lab.administer("PUT", "/api/v1/policies/tight", {"name": "tight", "recovery_point_interval_s": 20})
    after = (await lab.request("GET", "/api/v1/agent/desired", identity=identity)).json
    assert after["item"]["timing"]["recovery_point_interval_s"] == 20.0
    assert after["revision"] == before["revision"] + 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"disks": ["/dev/sdz"]}, "has no disk"),
        ({"disks": ["/dev/sdb"]}, "it is swap"),
        ({"policy": "none"}, "cannot find the policy"),
    ],
)
async def test_protection_of_what_cannot_be_protected_is_refused(lab: Lab, body: dict[str, Any], says: str) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    early = await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
    assert (early.status, "no inventory" in early.json["detail"]) == (409, True)
    swap = inventory_disk(new_id(), "/dev/sdb").model_copy(update={"not_protectable": "it is swap"})
    report = inventory("web-1", [inventory_disk(), swap])
    await lab.request("PUT", "/api/v1/agent/inventory", report, identity=lab.identities["web-1"])
    reply = await lab.administer("POST", "/api/v1/servers/web-1/protection", body)
    assert reply.status in (404, 409)
    assert says in reply.json["detail"]
    assert (await lab.administer("POST", "/api/v1/servers/web-1/protection", {})).status == 202
    again = await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
    assert (again.status, "protected already" in again.json["detail"]) == (409, True)


async def test_item_waits_for_a_process_server_and_gets_the_first(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
    await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
    item = (await lab.administer("GET", "/api/v1/protected-items/web-1")).json
    assert item["process_server"] is None
    assert "no-process-server" in [condition["code"] for condition in item["conditions"]]
    await lab.enrol(Role.PROCESS_SERVER, "ps-1")
    beat = heartbeat("https://127.0.0.1:9444")
    await lab.request("POST", "/api/v1/process-server/heartbeats", beat, identity=lab.identities["ps-1"])
    await lab.running.reconciler.run_once()
    desired = (await lab.request("GET", "/api/v1/agent/desired", identity=identity)).json
    assert desired["item"]["process_server"]["url"] == "https://127.0.0.1:9444"


async def test_address_of_a_process_server_that_moved_reaches_the_agents(lab: Lab) -> None:
    await lab.enrol(Role.PROCESS_SERVER, "ps-1")
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
    for url in ("https://127.0.0.1:9443", "https://127.0.0.1:9555"):
        beat = heartbeat(url)
        await lab.request("POST", "/api/v1/process-server/heartbeats", beat, identity=lab.identities["ps-1"])
        await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
        desired = (await lab.request("GET", "/api/v1/agent/desired", identity=identity)).json
        assert desired["item"]["process_server"]["url"] == url


async def test_silence_is_noticed_and_makes_health_worse(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        await lab.running.reconciler.run_once()
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        await lab.enrol(Role.AGENT, "web-1")
        identity = lab.identities["web-1"]
        beat = heartbeat()
        await lab.request("POST", "/api/v1/process-server/heartbeats", beat, identity=lab.identities["ps-1"])
        await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
        await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
        seen = observation("web-1", [disk_observation(newest_cut=new_id())])
        await lab.request("POST", "/api/v1/agent/observations", seen, identity=identity)
        assert (await lab.administer("GET", "/api/v1/servers/web-1")).json["server"]["connected"] is True
        now[0] += 100 * 10**9
        await lab.running.reconciler.run_once()
        assert (await lab.administer("GET", "/api/v1/servers/web-1")).json["server"]["connected"] is False
        item = (await lab.administer("GET", "/api/v1/protected-items/web-1")).json
        assert item["going"] == "DISCONNECTED"
        assert item["replication_lag_s"] == pytest.approx(101.0, abs=1.0)
        kinds = [event["kind"] for event in (await lab.administer("GET", "/api/v1/events")).json["items"]]
        assert kinds.count("disconnected") == 2


async def test_health_page_and_metrics_are_served_apart(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
    await lab.administer("POST", "/api/v1/servers/web-1/protection", {})
    await lab.request("POST", "/api/v1/agent/observations", observation("web-1"), identity=identity)
    lab.running.reconciler.look_around_soon()
    await lab.running.reconciler.run_once()
    base = f"http://127.0.0.1:{lab.running.observability.port}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/healthz") as response:
            assert (response.status, (await response.json())["status"]) == (200, "ok")
        async with session.get(f"{base}/metrics") as response:
            text = await response.text()
    assert 'blockferry_items{state="replicating"} 1.0' in text
    assert 'blockferry_heartbeat_age_seconds{name="web-1",role="agent"}' in text
    assert 'blockferry_item_health{server="web-1"}' in text
    assert f'blockferry_replication_lag_seconds{{disk="{DISK}",server="web-1"}}' in text
    if lab.settings.database_url is None:
        assert "blockferry_leader 1.0" in text, "the rules listen to the leader only, and on SQLite it is this one"
    assert "blockferry_store_reachable 1.0" in text


async def test_nothing_secret_is_in_the_database(lab: Lab) -> None:
    passphrase = await lab.passphrase()
    await lab.enrol(Role.AGENT, "web-1", passphrase=passphrase)
    database: Database = lab.running.site.database
    async with database.write():
        pass
    content = b"".join(path.read_bytes() for path in lab.settings.state_dir.glob("state.sqlite*"))
    assert lab.token.encode() not in content
    assert lab.token.rpartition("-")[2].encode() not in content
    assert passphrase.encode() not in content
    assert passphrase.partition("-")[2].encode() not in content


async def test_inventory_is_answered_with_who_could_take_the_disks_and_what_the_agent_finds_counts(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    await lab.enrol(Role.PROCESS_SERVER, "ps-1")
    identity = lab.identities["web-1"]
    url = "https://127.0.0.1:9444"
    await lab.request("POST", "/api/v1/process-server/heartbeats", heartbeat(url), identity=lab.identities["ps-1"])
    await lab.enrol(Role.PROCESS_SERVER, "silent")
    answer = await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1"), identity=identity)
    assert answer.status == 200
    assert [server["url"] for server in answer.json["process_servers"]] == [url]
    checks = await checks_of(lab, "web-1")
    assert "the agent has not told yet" in checks["free space, ports"]["message"]
    around = Surroundings(
        state=FreeSpace(path="/state", free_bytes=2**30),
        reach=[Reach(service="process server", host="127.0.0.1", port=9444, result="timed-out")],
    )
    report = inventory("web-1").model_copy(update={"surroundings": around})
    assert (await lab.request("PUT", "/api/v1/agent/inventory", report, identity=identity)).status == 200
    checks = await checks_of(lab, "web-1")
    assert "free space, ports" not in checks
    assert (checks["free space /state"]["grade"], checks["port 9444"]["grade"]) == ("ok", "blocker")


async def test_a_server_is_protected_through_the_process_server_that_its_agent_reaches(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    for name, port, free in (("ps-far", 9444, 0.99), ("ps-near", 9555, 0.9)):
        url = f"https://127.0.0.1:{port}"
        await lab.enrol(Role.PROCESS_SERVER, name, service_url=url)
        beat = heartbeat(url).model_copy(update={"spool_free_fraction": free})
        path, identity = "/api/v1/process-server/heartbeats", lab.identities[name]
        assert (await lab.request("POST", path, beat, identity=identity)).status == 200
    around = Surroundings(
        state=FreeSpace(path="/state", free_bytes=2**30),
        reach=[
            Reach(service="process server", host="127.0.0.1", port=9444, result="timed-out"),
            Reach(service="process server", host="127.0.0.1", port=9555, result="open"),
        ],
    )
    report = inventory("web-1").model_copy(update={"surroundings": around})
    assert (await lab.request("PUT", "/api/v1/agent/inventory", report, identity=lab.identities["web-1"])).status == 200
    checks = await checks_of(lab, "web-1")
    assert (checks["port 9444"]["grade"], checks["port 9555"]["grade"]) == ("warning", "ok")
    assert (await lab.administer("POST", "/api/v1/servers/web-1/protection", {})).status == 202
    (item,) = (await lab.administer("GET", "/api/v1/protected-items")).json["items"]
    assert item["process_server"]["hostname"] == "ps-near"


async def checks_of(lab: Lab, server: str) -> dict[str, dict[str, str]]:
    readiness = (await lab.administer("GET", f"/api/v1/servers/{server}/readiness")).json
    return {check["name"]: check for check in readiness["checks"]}


async def test_a_policy_that_somebody_changed_meanwhile_is_not_undone_by_who_puts_back_what_he_read(lab: Lab) -> None:
    (read,) = (await lab.administer("GET", "/api/v1/policies")).json["items"]
    path = f"/api/v1/policies/{read['name']}"
    mine = await lab.administer("PUT", path, read | {"retention_s": 1296000.0})
    assert mine.status == 200, mine.body
    late = await lab.administer("PUT", path, read | {"freeze_budget_s": 1.0})
    assert late.status == 409
    assert "somebody changed this meanwhile" in late.json["detail"]
    (now,) = (await lab.administer("GET", "/api/v1/policies")).json["items"]
    assert now == mine.json, "nothing was changed"
    assert (now["retention_s"], now["freeze_budget_s"]) == (1296000.0, read["freeze_budget_s"])
    assert (await lab.administer("PUT", path, now | {"freeze_budget_s": 1.0})).json["retention_s"] == 1296000.0
    del read["revision"]
    assert (await lab.administer("PUT", path, read)).status == 200, (
        "who does not say what he read writes it, whatever it is"
    )
