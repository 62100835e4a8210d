"""Several process servers over the real API: take-over, drain, switch, removal, and what is told of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from config_server.core.capacity import GB
from config_server.core.placement import Hold
from config_server.discovery_tables import AgentInstallationRow, DiscoveredServerRow, DiscoveryHostRow, DiscoveryRunRow
from config_server.placement import placed_items
from config_server.tables import EnrolmentPassphraseRow
from replication.control_plane import CutoverObservation
from tests.harness.driven_site import SOURCE, applied, driven_site
from tests.harness.scripted_peers import DISK, disk_observation
from tests.harness.several_process_servers import site_of

WEBS = ("web-1", "web-2", "web-3", "web-4")


async def test_items_of_a_dead_one_are_taken_over_with_their_keys_and_do_not_flap_back(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2", "ps-3")) as site:
        await site.protect(*WEBS)
        before = await site.where()
        assert sorted(before.values()) == ["ps-1", "ps-1", "ps-2", "ps-3"] or len(set(before.values())) == 3
        for name in WEBS:
            await site.generation(name)
        dead = before["web-1"]
        site.silent.add(dead)
        await site.pass_time(15.0)
        assert await site.where() == before, "it has been silent for 15 s, not for longer"
        await site.pass_time(2.5)
        after = await site.where()
        assert dead not in after.values()
        assert {name: at for name, at in after.items() if before[name] != dead} == {
            name: at for name, at in before.items() if at != dead
        }, "the others stay where they are"
        refused = await site.data_key(dead, "web-1")
        assert (refused.status, refused.json["type"]) == (403, "urn:blockferry:error:assigned-elsewhere")
        assert (await site.data_key(after["web-1"], "web-1")).status == 200
        moved = [name for name in WEBS if before[name] == dead]
        told = await site.events("process-server-changed")
        assert len(told) == len(moved)
        assert all(f"take-over: process server {dead} was last heard" in text for text in told)
        site.silent.clear()
        await site.pass_time(20.0)
        assert await site.where() == after
        assert site.figures()["blockferry_process_server_changes_total", ("take-over",)] == len(moved)


async def test_silence_from_before_a_restart_is_not_held_against_anybody(tmp_path: Path) -> None:
    now_ns, directory = [time.time_ns()], tmp_path
    async with site_of(directory, ("ps-1", "ps-2"), now_ns) as site:
        await site.protect("web-1", "web-2")
        before, lab, beats = await site.where(), site.lab, site.beats
    now_ns[0] += int(3600e9)
    async with site_of(directory, (), now_ns, lab.store) as site:  # type: ignore[arg-type]
        site.lab.identities, site.beats, site.servers = lab.identities, beats, ["web-1", "web-2"]
        site.silent.add("ps-1")
        await site.pass_time(15.0)
        assert await site.where() == before
        await site.pass_time(2.5)
        assert set((await site.where()).values()) == {"ps-2"}


async def test_who_heard_nobody_blames_nobody(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1", "web-2")
        before = await site.where()
        site.silent |= {"ps-1", "ps-2", "web-1", "web-2"}
        await site.pass_time(60.0)
        site.silent -= {"ps-2", "web-1", "web-2"}
        await site.pass_time(14.0)
        assert await site.where() == before, "the network of the configuration server was cut; ps-1 has its time again"
        await site.pass_time(5.0)
        assert set((await site.where()).values()) == {"ps-2"}


async def test_who_stood_still_blames_nobody(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1", "web-2")
        before = await site.where()
        site.silent.add("ps-1")
        site.advance(120.0)  # a virtual machine that was suspended
        await site.beat()
        await site.look()
        assert await site.where() == before
        await site.pass_time(14.0)
        assert await site.where() == before
        await site.pass_time(2.5)
        assert set((await site.where()).values()) == {"ps-2"}


async def test_item_that_nobody_can_take_says_what_it_waits_for(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1", "web-2")
        before = await site.where()
        waiting = next(name for name, at in before.items() if at == "ps-1")
        site.beats["ps-2"]["upload_problem"] = {"code": "refused", "message": "the store says 403", "hint": None}
        site.silent.add("ps-1")
        await site.pass_time(20.0)
        assert await site.where() == before
        conditions = {each["code"]: each for each in (await site.item(waiting))["conditions"]}
        assert "ps-2: its uploads are blocked: the store says 403" in conditions["waits-for-take-over"]["message"]
        listed = {each["hostname"]: each for each in (await site.order("GET", "/process-servers"))["items"]}
        assert [each["server"] for each in listed["ps-1"]["waiting"]] == [waiting]
        assert site.figures()["blockferry_items_waiting_for_process_server", ()] == 1
        await site.pass_time(120.0)  # the server's settling, and the hold time
        raised = {
            (each["code"], each["subject"]["name"]): each for each in (await site.order("GET", "/alerts"))["items"]
        }
        assert ("process-server-disconnected", "ps-1") in raised
        assert "nothing is shipped" in raised["waits-for-take-over", waiting]["message"]
        del site.beats["ps-2"]["upload_problem"]
        await site.pass_time(2.5)
        assert set((await site.where()).values()) == {"ps-2"}
        assert "waits-for-take-over" not in {each["code"] for each in (await site.item(waiting))["conditions"]}
        listed = {each["hostname"]: each for each in (await site.order("GET", "/process-servers"))["items"]}
        assert listed["ps-1"]["waiting"] == []


async def test_drain_moves_all_items_tells_its_progress_and_lasts_until_it_is_taken_back(tmp_path: Path) -> None:
    names = tuple(f"web-{number}" for number in range(1, 7))
    async with site_of(tmp_path, ("ps-1",)) as site:
        await site.protect(*names)
        assert set((await site.where()).values()) == {"ps-1"}
        await site.pass_time(10.0)
        await site.add_process_server("ps-2")
        status = await site.order("POST", "/process-servers/ps-1/drain")
        assert (status["draining"], status["drain"]["items_at_begin"], status["drain"]["ended_at"]) == (True, 6, None)
        await site.look()
        assert sorted((await site.where()).values()) == ["ps-1"] * 2 + ["ps-2"] * 4, "a few at a time"
        await site.pass_time(10.0)
        status = await site.order("GET", "/process-servers/ps-1")
        assert (status["item_count"], status["drain"]["items_left"]) == (0, 0)
        assert status["drain"]["ended_at"] is not None
        assert len(await site.events("drained")) == 1
        await site.order("POST", "/process-servers/ps-1/drain")
        assert len(await site.events("drain-began")) == 1, "asked for again, nothing changes"
        await site.protect("web-7")
        assert (await site.where())["web-7"] == "ps-2"
        status = await site.order("POST", "/process-servers/ps-1/undrain")
        assert (status["draining"], status["drain"]) == (False, None)
        await site.protect("web-8")
        assert (await site.where())["web-8"] == "ps-1"


async def test_process_server_is_removed_when_nothing_is_on_it_and_its_certificate_is_worth_nothing(
    tmp_path: Path,
) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1", "web-2")
        refused = await site.lab.administer("DELETE", "/api/v1/process-servers/ps-1")
        assert refused.status == 409
        assert "drain-process-server" in refused.json["hint"]
        await site.order("POST", "/process-servers/ps-1/drain")
        await site.pass_time(5.0)
        await site.order("DELETE", "/process-servers/ps-1")
        assert [each["hostname"] for each in (await site.order("GET", "/process-servers"))["items"]] == ["ps-2"]
        replies = await site.beat()
        assert (replies["ps-1"].status, replies["ps-2"].status) == (403, 200)
        serial = format(site.lab.identities["ps-1"].certificate().serial_number, "x")
        assert serial in replies["ps-2"].json["revoked_serials"]
        assert (await site.lab.administer("GET", "/api/v1/process-servers/ps-1")).status == 404
        shutil.rmtree(site.lab.identities["ps-1"].directory)
        await site.add_process_server("ps-1")  # the same machine, enrolled anew
        assert len((await site.order("GET", "/process-servers"))["items"]) == 2


async def test_dead_one_is_removed_with_its_items_which_others_take(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1",)) as site:
        await site.protect("web-1", "web-2")
        site.silent.add("ps-1")
        await site.pass_time(20.0)
        await site.order("DELETE", "/process-servers/ps-1")
        await site.look()
        conditions = {each["code"] for each in (await site.item("web-1"))["conditions"]}
        assert "no-process-server" in conditions
        await site.add_process_server("ps-2")
        await site.look()
        assert set((await site.where()).values()) == {"ps-2"}


async def test_one_that_went_to_servers_over_ssh_is_removed_with_its_credentials(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        database, number = site.lab.running.site.database, (await site.order("GET", "/process-servers/ps-1"))["id"]
        async with database.write() as session:
            session.add(
                EnrolmentPassphraseRow(
                    id="p", role="agent", salt=b"", digest=b"", created_ns=1, created_by="x", expires_ns=2**62
                )
            )
            session.add(
                DiscoveredServerRow(
                    id="s",
                    address="10.0.0.1",
                    port=22,
                    user="root",
                    hostname="db-1",
                    process_server_id=number,
                    created_ns=1,
                )
            )
            session.add(DiscoveryRunRow(id="r", process_server_id=number, actor="x", credentials=b"!", created_ns=1))
            await session.flush()
            session.add(
                DiscoveryHostRow(
                    run_id="r", ordinal=0, address="10.0.0.1", port=22, user="root", of_range=False, state="waiting"
                )
            )
            session.add(
                AgentInstallationRow(
                    id="i",
                    server_id="s",
                    hostname="db-1",
                    process_server_id=number,
                    user="root",
                    policy="default",
                    state="waiting",
                    secrets=b"!",
                    passphrase_id="p",
                    actor="x",
                    created_ns=1,
                    state_since_ns=1,
                )
            )
        await site.order("DELETE", "/process-servers/ps-1")
        async with database.read() as session:
            assert (await session.get_one(DiscoveredServerRow, "s")).process_server_id is None
            assert await session.get(DiscoveryRunRow, "r") is None
            assert await session.get(AgentInstallationRow, "i") is None
            assert (await session.get_one(EnrolmentPassphraseRow, "p")).revoked_ns is not None


async def test_operator_switches_an_item_and_refusals_say_why(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2", "ps-3")) as site:
        await site.protect("web-1")
        assert await site.where() == {"web-1": next(iter((await site.where()).values()))}
        order = "/api/v1/protected-items/web-1/process-server"
        for to in ("ps-2", "127.0.0.1:9445", "ps-1"):
            reply = await site.lab.administer("POST", order, {"process_server": to})
            assert reply.status == 200, reply.body
            assert (await site.desired("web-1"))["item"]["process_server"]["url"] == reply.json["process_server"]["url"]
            assert reply.json["process_server"]["hostname"] == to.replace("127.0.0.1:9445", "ps-3")
        count = len(await site.events("process-server-changed"))
        assert (await site.lab.administer("POST", order, {"process_server": "ps-1"})).status == 200
        assert len(await site.events("process-server-changed")) == count, "it is there already"
        assert (await site.lab.administer("POST", order, {"process_server": "ps-9"})).status == 404
        await site.order("POST", "/process-servers/ps-2/drain")
        refused = await site.lab.administer("POST", order, {"process_server": "ps-2"})
        assert refused.status == 409
        assert "being drained" in refused.json["detail"]
        site.silent.add("ps-3")
        await site.pass_time(12.0)
        refused = await site.lab.administer("POST", order, {"process_server": "ps-3"})
        assert refused.status == 409
        assert "last heard" in refused.json["detail"]


async def test_what_agents_reach_decides_where_items_go(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2", "ps-3")) as site:
        await site.protect("web-1", "web-2")
        for name in ("web-1", "web-2"):
            await site.order("POST", f"/protected-items/{name}/process-server", {"process_server": "ps-1"})
        await site.reach("web-1", {"ps-2": "timed-out"})
        order = "/api/v1/protected-items/web-1/process-server"
        refused = await site.lab.administer("POST", order, {"process_server": "ps-2"})
        assert refused.status == 409
        assert "the agent of web-1 does not reach 127.0.0.1 port 9444: timed out" in refused.json["detail"]
        # Their process server dies. The emptier one of the two others is out of reach of one of them.
        await site.protect("web-3")
        await site.order("POST", "/protected-items/web-3/process-server", {"process_server": "ps-3"})
        site.silent.add("ps-1")
        await site.pass_time(17.5)
        assert await site.where() == {"web-1": "ps-3", "web-2": "ps-2", "web-3": "ps-3"}
        # The agent tells that the way is open now; a drain may use it.
        await site.reach("web-1", {"ps-2": "open"})
        await site.order("POST", "/process-servers/ps-3/drain")
        await site.pass_time(5.0)
        assert await site.where() == {"web-1": "ps-2", "web-2": "ps-2", "web-3": "ps-2"}


async def test_minute_without_its_process_server_strands_nobody_in_a_network_of_its_own(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1", "web-2")
        at_home = await site.where()
        assert sorted(at_home.values()) == ["ps-1", "ps-2"]
        for name, home in at_home.items():
            other = "ps-2" if home == "ps-1" else "ps-1"
            await site.reach(name, {home: "open", other: "timed-out"})
        stranded = next(name for name, home in at_home.items() if home == "ps-1")
        site.silent.add("ps-1")
        await site.pass_time(20.0)
        assert await site.where() == at_home
        conditions = {each["code"]: each for each in (await site.item(stranded))["conditions"]}
        assert "ps-2: the agent cannot reach it" in conditions["waits-for-take-over"]["message"]
        await site.reach(stranded, {"ps-2": "timed-out"})  # of a silent one it is told nothing
        await site.pass_time(120.0)
        raised = {(each["code"], each["subject"]["name"]) for each in (await site.order("GET", "/alerts"))["items"]}
        assert ("waits-for-take-over", stranded) in raised
        assert await site.where() == at_home
        site.silent.clear()
        await site.pass_time(20.0)
        assert await site.where() == at_home
        assert await site.events("process-server-changed") == []
        assert "waits-for-take-over" not in {each["code"] for each in (await site.item(stranded))["conditions"]}


async def test_item_that_an_old_word_let_go_elsewhere_comes_back_when_its_agent_speaks(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        (home,) = (await site.where()).values()
        other = "ps-2" if home == "ps-1" else "ps-1"
        await site.reach("web-1", {home: "open", other: "timed-out"})
        site.silent.add(home)
        site.advance(1000.0)  # nobody told anything meanwhile
        await site.pass_time(20.0)
        assert await site.where() == {"web-1": other}
        site.silent.clear()
        await site.pass_time(70.0)
        assert await site.where() == {"web-1": other}, "its agent has not spoken since it is there"
        await site.reach("web-1", {home: "open", other: "timed-out"})
        await site.pass_time(2.5)
        assert await site.where() == {"web-1": home}, "all its words have said so for a quarter of an hour"
        causes = [text.partition(":")[0] for text in await site.events("process-server-changed")]
        assert sorted(causes) == ["reach", "take-over"]


async def test_item_placed_before_its_agent_told_what_it_reaches_moves_to_where_it_has_a_way(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1", "ps-2")) as site:
        await site.protect("web-1")
        (first,) = (await site.where()).values()
        other = "ps-2" if first == "ps-1" else "ps-1"
        await site.reach("web-1", {first: "refused", other: "open"})
        await site.pass_time(30.0)
        await site.reach("web-1", {first: "open", other: "open"})
        await site.pass_time(60.0)
        assert await site.where() == {"web-1": first}, "it was but started again"
        await site.reach("web-1", {first: "timed-out", other: "open"})
        await site.pass_time(57.5)
        assert await site.where() == {"web-1": first}
        await site.pass_time(5.0)
        assert await site.where() == {"web-1": other}
        (told,) = await site.events("process-server-changed")
        assert told.startswith(f"reach: its agent cannot reach process server {first}, but {other}")
        assert site.figures()["blockferry_process_server_changes_total", ("reach",)] == 1
        # The way turns round at once: it stays, and says why.
        await site.reach("web-1", {first: "open", other: "timed-out"})
        await site.pass_time(70.0)
        assert await site.where() == {"web-1": other}
        listed = {each["hostname"]: each for each in (await site.order("GET", "/process-servers"))["items"]}
        (waiting,) = listed[other]["waiting"]
        assert "within the last 10 min already" in waiting["reason"]
        await site.reach("web-1", {first: "open", other: "open"})
        await site.pass_time(2.5)
        listed = {each["hostname"]: each for each in (await site.order("GET", "/process-servers"))["items"]}
        assert listed[other]["waiting"] == []


async def test_load_is_told_against_the_capacity_of_the_machine_and_the_steady_churn(tmp_path: Path) -> None:
    async with site_of(tmp_path, ("ps-1",)) as site:
        site.beats["ps-1"] |= {"cpu_count": 8, "memory_bytes": 16 * GB, "spool_limit_bytes": 300 * GB}
        await site.protect("web-1")
        await site.pass_time(2.5)
        status = await site.order("GET", "/process-servers/ps-1")
        # On the configuration server's own machine: the appliance's table.
        assert (status["capacity"]["table"], status["capacity"]["tier"], status["capacity"]["servers"]) == (
            "appliance",
            1,
            99,
        )
        churn = disk_observation(site.disk("web-1")).churn_bytes_per_s * 86400
        assert status["churn_bytes_per_day"] == churn
        assert status["load_fraction"] == max(1 / 99, churn / (500 * GB))


async def test_migration_under_way_is_not_disturbed_and_a_held_source_never(tmp_path: Path) -> None:
    async with driven_site(tmp_path) as site:
        item = await site.replicate()
        await site.grant()

        async def hold() -> Hold:
            async with site.lab.running.site.database.read() as session:
                found = await placed_items(session, site.lab.running.site.ages)
            return next(each.hold for each in found if each.identifier == item)

        assert await hold() is Hold.NONE
        job = (await site.verb("/migration", {"mode": "offline-disk"}))["id"]
        await site.observe(cutover=CutoverObservation(job=job, state="shipping"))
        assert await hold() is Hold.CUTOVER
        refused = await site.lab.administer(
            "POST", "/api/v1/protected-items/web-1/process-server", {"process_server": "ps-1"}
        )
        assert refused.status == 200, "it is there already"
        held = [disk_observation(disk, phase="held", size_bytes=len(content)) for disk, content in SOURCE.items()]
        await site.observe(held, cutover=applied(job))
        assert await hold() is Hold.SOURCE_HELD
        await site.verb("/migration/cancel", {})
        assert await hold() is Hold.NONE
        assert DISK in SOURCE
