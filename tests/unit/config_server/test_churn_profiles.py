"""Churn profiles: ordered by operators, carried out by agents, planned with; and the arithmetic over windows of several lengths."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config_server.churn_history import HOUR_NS
from config_server.core.sizing import (
    HourOfChurn,
    ProfiledChurn,
    intervals_of,
    profiled_rpo_s,
    site_churn,
    with_profiles,
)
from config_server.core.target_disks import churn_limit
from config_server.sizing_documents import SizingReport
from config_server.tables import ChurnHourRow
from replication.churn_profile import ProfiledDisk, ProfiledWindow, ProfileObservation
from replication.control_plane import AgentDesired
from replication.tls_identity import Role
from tests.harness.config_site import Lab, Reply, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import DISK, OTHER_DISK, inventory, inventory_disk, observation

MB = 10**6


def disk(server: str, name: str, *windows: tuple[float, float, float]) -> ProfiledChurn:
    return ProfiledChurn(server, name, windows, 7200.0, churn_limit("standard", 2**30))


A = disk("a", "/dev/sda", (10, 20 * MB, 40 * MB), (60, 60 * MB, 90 * MB), (300, 150 * MB, 200 * MB))
B = disk("b", "/dev/sda", (10, 10 * MB, 10 * MB), (60, 60 * MB, 60 * MB))


def test_only_lengths_that_every_disk_was_watched_for_are_added_up() -> None:
    assert [(each.interval_s, each.mean_bytes, each.most_bytes) for each in intervals_of([A, B])] == [
        (10, 30 * MB, 50 * MB),
        (60, 120 * MB, 150 * MB),
    ]
    assert [each.amplification for each in intervals_of([A])] == [pytest.approx(4), pytest.approx(2), 1]
    assert intervals_of([]) == []
    assert [each.amplification for each in intervals_of([disk("c", "/dev/sda", (10, 0, 0), (60, 0, 0))])] == [1, 1]


@pytest.mark.parametrize(
    ("bits_per_s", "rpo_s"),
    [
        (320 * MB, 11),  # 40 MB through in one of ten seconds
        (32 * MB, 20),  # in all ten
        (31 * MB, 60 + 90 * 8 / 31),  # the next longer window has so many rewrites that it fits
        (12 * MB, 120),
        (11 * MB, 300 + 200 * 8 / 11),
        (200 * 8 * MB / 300 * 0.99, None),
    ],
)
def test_the_shortest_window_whose_changes_are_through_before_the_next_one_ends_decides(
    bits_per_s: float, rpo_s: float | None
) -> None:
    found = profiled_rpo_s(intervals_of([A]), 0.0, bits_per_s, 1.0)
    assert found == (None if rpo_s is None else pytest.approx(rpo_s))
    assert profiled_rpo_s(intervals_of([A]), 0.0, bits_per_s / 2, 0.5) == found
    beside = 7.0 * MB
    shared = profiled_rpo_s(intervals_of([A]), beside, bits_per_s + beside * 8, 1.0)
    assert shared == (None if found is None else pytest.approx(found)), (
        "a line that is wider by what replicates over it beside"
    )
    assert profiled_rpo_s(intervals_of([A]), bits_per_s / 8, bits_per_s, 1.0) is None, "nothing of it is left"


def test_what_was_measured_counts_beside_what_was_observed() -> None:
    observed = site_churn([HourOfChurn("b", "/dev/sdb", 1, 3600 * MB, 3600.0, churn_limit("standard", 2**30))])
    churn = with_profiles(observed, [A, B])
    assert [(each.server, each.mean_bytes_per_s) for each in churn.servers] == [("a", 2 * MB), ("b", 2 * MB)]
    assert churn.mean_bytes_per_s == 4 * MB
    assert churn.busiest_bytes_per_s == pytest.approx((1 + 2 + 1) * MB)
    assert with_profiles(observed, []) == observed


def test_what_was_measured_is_held_against_the_limits_of_its_disk_and_server() -> None:
    fast = disk("a", "/dev/sdb", (10, 30 * MB, 60 * MB), (60, 180 * MB, 240 * MB))
    huge = disk("a", "/dev/sdc", (10, 520 * MB, 600 * MB), (60, 3120 * MB, 3200 * MB))
    (server,) = with_profiles(site_churn([]), [fast, huge]).servers
    assert list(server.warnings) == [
        "/dev/sdb: 4.0 MB/s, beyond 2 MB/s of a standard disk",
        "/dev/sdc: 53.3 MB/s, beyond 2 MB/s of a standard disk",
        "57 MB/s, beyond 54 MB/s a server",
    ]
    (quiet,) = with_profiles(site_churn([]), [B]).servers
    assert quiet.warnings == ()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        await running.enrol(Role.AGENT, "web-1")
        report = inventory("web-1", [inventory_disk(DISK, "/dev/sda", 64 * 2**30)])
        agent = running.identities["web-1"]
        await running.request("PUT", "/api/v1/agent/inventory", report, identity=agent)
        await running.request("POST", "/api/v1/agent/observations", observation("web-1", []), identity=agent)
        yield running


async def begin(lab: Lab, duration_s: float = 3600.0, *servers: str) -> Reply:
    return await lab.administer("POST", "/api/v1/churn-profiles", {"servers": list(servers), "duration_s": duration_s})


async def desired(lab: Lab) -> AgentDesired:
    reply = await lab.request("GET", "/api/v1/agent/desired", identity=lab.identities["web-1"])
    return AgentDesired.decode(reply.body)


async def report(lab: Lab, request: str, *, done: bool, mean_bytes: float = 30.0 * MB) -> None:
    windows = [ProfiledWindow(interval_s=10, windows=6, mean_bytes=mean_bytes, most_bytes=40 * MB)]
    seen = ProfileObservation(
        request=request,
        elapsed_s=60,
        done=done,
        disks=[ProfiledDisk(disk=DISK, state="done" if done else "watching", watched_s=60, windows=windows)],
    )
    document = observation("web-1", []).model_copy(update={"profile": seen})
    reply = await lab.request("POST", "/api/v1/agent/observations", document, identity=lab.identities["web-1"])
    assert reply.status == 200, reply.body


async def profiles(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await lab.administer("GET", "/api/v1/churn-profiles")).json["items"]
    return found


async def test_an_order_stands_until_its_agent_is_done_and_is_planned_with(lab: Lab) -> None:
    before = await desired(lab)
    assert before.profile is None
    begun = await begin(lab)
    assert begun.status == 202
    assert [each["server"] for each in begun.json["items"]] == ["web-1"]
    wanted = await desired(lab)
    assert wanted.revision > before.revision
    assert wanted.profile is not None
    assert (wanted.profile.disks, wanted.profile.duration_s) == ([DISK], 3600.0)
    await report(lab, wanted.profile.request, done=False, mean_bytes=10.0 * MB)
    (status,) = await profiles(lab)
    assert (status["ended_at"], status["seen"]["elapsed_s"]) == (None, 60)
    assert (await desired(lab)).revision == wanted.revision
    await report(lab, wanted.profile.request, done=True)
    after = await desired(lab)
    assert (after.profile, after.revision > wanted.revision) == (None, True)
    assert (await profiles(lab))[0]["ended_at"] is not None
    await report(lab, wanted.profile.request, done=False, mean_bytes=0.0)  # late
    sized = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing")).body)
    planned = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing?profiles=true")).body)
    assert (sized.churn_bytes_per_day, sized.intervals) == (None, [])
    assert planned.churn_bytes_per_day == 3 * MB * 86400
    assert [(each.interval_s, each.mean_bytes) for each in planned.intervals] == [(10, 30 * MB)]
    assert all(line.profiled_rpo_s is not None for line in planned.lines if line.bits_per_s >= 32 * MB)
    kinds = {event["kind"] for event in (await lab.administer("GET", "/api/v1/events")).json["items"]}
    assert {"profile-begun", "profile-done"} <= kinds


async def test_a_new_order_replaces_the_one_before_and_reports_on_that_one_count_no_more(lab: Lab) -> None:
    await begin(lab)
    first = (await desired(lab)).profile
    await begin(lab, 60.0, "web-1")
    second = (await desired(lab)).profile
    assert first is not None
    assert second is not None
    assert first.request != second.request
    await report(lab, first.request, done=True)
    assert (await desired(lab)).profile == second
    await report(lab, str(uuid.uuid4()), done=True)
    assert (await profiles(lab))[0]["seen"] is None


async def test_what_is_withdrawn_is_asked_for_no_more_and_what_was_seen_is_kept(lab: Lab) -> None:
    await begin(lab)
    wanted = (await desired(lab)).profile
    assert wanted is not None
    await report(lab, wanted.request, done=False)
    assert (await lab.administer("DELETE", "/api/v1/churn-profiles/web-1")).status == 204
    assert (await desired(lab)).profile is None
    assert (await profiles(lab))[0]["seen"]["elapsed_s"] == 60
    assert (await lab.administer("DELETE", "/api/v1/churn-profiles/web-1")).status == 404


async def test_bytes_and_churn_are_of_the_same_disks_and_what_is_left_out_is_named(lab: Lab) -> None:
    zoned = str(uuid.uuid4())
    disks = [
        inventory_disk(DISK, "/dev/sda", 64 * 2**30),
        inventory_disk(OTHER_DISK, "/dev/sdb", 8 * 2**30),
        inventory_disk(zoned, "/dev/sdc", 2**40).model_copy(update={"not_protectable": "it is a zoned device"}),
    ]
    agent = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1", disks), identity=agent)

    async def sizing(query: str = "") -> tuple[SizingReport, str]:
        report = SizingReport.decode((await lab.administer("GET", f"/api/v1/sizing{query}")).body)
        return report, next((note for note in report.notes if note.startswith("left out")), "")

    sized, note = await sizing()
    assert (sized.disk_bytes, note) == (
        72 * 2**30,
        "left out, with their bytes and their churn: web-1 /dev/sdc (it is a zoned device)",
    )
    await begin(lab)
    wanted = (await desired(lab)).profile
    assert wanted is not None
    windows = [ProfiledWindow(interval_s=10, windows=6, mean_bytes=10.0 * MB, most_bytes=40 * MB)]
    seen = ProfileObservation(
        request=wanted.request,
        elapsed_s=60,
        done=True,
        disks=[ProfiledDisk(disk=each.disk, state="done", watched_s=60, windows=windows) for each in disks],
    )
    document = observation("web-1", []).model_copy(update={"profile": seen})
    await lab.request("POST", "/api/v1/agent/observations", document, identity=agent)
    planned, _ = await sizing("?profiles=true")
    assert planned.churn_bytes_per_day == 2 * MB * 86400, "what cannot be protected counts in neither"

    assert (await lab.administer("POST", "/api/v1/servers/web-1/protection", {"disks": [DISK]})).status == 202
    async with lab.running.site.database.write() as session:
        hour = lab.running.site.clock() // HOUR_NS
        for each in (DISK, OTHER_DISK):  # it was protected with both before
            session.add(ChurnHourRow(disk_id=each, hour=hour, changed_bytes=3 * 3600 * MB, observed_s=3600.0))
    sized, note = await sizing()
    assert (sized.disk_bytes, sized.churn_bytes_per_day) == (64 * 2**30, 3 * MB * 86400)
    assert "web-1 /dev/sdb (not protected), web-1 /dev/sdc (it is a zoned device)" in note
    planned, note = await sizing("?profiles=true")
    assert (planned.disk_bytes, planned.churn_bytes_per_day) == (72 * 2**30, 6 * MB * 86400), "each disk counts once"
    assert "/dev/sdb" not in note


async def test_the_shortest_interval_is_planned_on_what_replication_leaves_of_the_line(lab: Lab) -> None:
    disks = [inventory_disk(DISK, "/dev/sda", 64 * 2**30), inventory_disk(OTHER_DISK, "/dev/sdb", 64 * 2**30)]
    agent = lab.identities["web-1"]
    await lab.request("PUT", "/api/v1/agent/inventory", inventory("web-1", disks), identity=agent)
    await begin(lab)
    wanted = (await desired(lab)).profile
    assert wanted is not None
    await report(lab, wanted.request, done=True, mean_bytes=40.0 * MB)

    async def shortest_s(line_bits_per_s: int) -> float | None:
        report = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing?profiles=true")).body)
        [line] = [line for line in report.lines if line.bits_per_s == line_bits_per_s]
        return line.profiled_rpo_s

    async def changed(disk: str, bytes_per_s: float) -> None:
        async with lab.running.site.database.write() as session:
            hour = lab.running.site.clock() // HOUR_NS
            session.add(ChurnHourRow(disk_id=disk, hour=hour, changed_bytes=int(bytes_per_s * 3600), observed_s=3600.0))

    assert await shortest_s(100 * MB) == pytest.approx(10 + 40 / 12.5)
    assert (await lab.administer("POST", "/api/v1/servers/web-1/protection", {"disks": [OTHER_DISK]})).status == 202
    await changed(OTHER_DISK, 10 * MB)
    assert await shortest_s(100 * MB) is None, "2.5 MB/s are left for 4"
    assert await shortest_s(200 * MB) == pytest.approx(10 + 40 / 15)
    await changed(DISK, 1000 * MB)  # it replicated before
    assert await shortest_s(200 * MB) == pytest.approx(10 + 40 / 15), (
        "what was measured counts once, as it was measured"
    )


async def test_what_cannot_be_measured_is_refused(lab: Lab) -> None:
    assert (await begin(lab, 3600.0, "web-2")).status == 404
    assert (await begin(lab, 9.0)).status == 400
    assert (await begin(lab, 15 * 86400.0)).status == 400
    protected = await lab.administer("POST", "/api/v1/servers/web-1/protection", {"disks": [DISK]})
    assert protected.status == 202, protected.body
    reply = await begin(lab, 3600.0, "web-1")
    assert reply.status == 409
    assert "replicated" in reply.json["detail"]
    assert (await begin(lab)).status == 409
