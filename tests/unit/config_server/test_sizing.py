"""Sizing: machines at every boundary of the capacity tables, time and RPO at a bandwidth, churn from observations, report and page."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from config_server.churn_history import HOUR_NS, KEPT_HOURS, churn_by_hour, forget_old_churn, note_churn
from config_server.core.capacity import GB, TB
from config_server.core.sizing import (
    HEADROOM,
    HourOfChurn,
    bandwidth_needed_bits_per_s,
    fleet_for,
    initial_replication_s,
    reach_of,
    reachable_rpo_s,
    site_churn,
)
from config_server.core.target_disks import churn_limit
from config_server.migratectl.sizing_commands import tell
from config_server.migratectl.sizing_page import sizing_page
from config_server.migratectl.sizing_rendering import rate, size
from config_server.sizing_documents import SizingReport
from config_server.tables import ChurnHourRow
from replication.control_plane import DiskObservation
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import DISK, disk_observation, inventory, inventory_disk

MB = 10**6


@pytest.mark.parametrize(
    ("churn", "servers", "appliances", "cpus"),
    [
        (0, 0, 1, 8),
        (500 * GB, 99, 1, 8),
        (500 * GB + 1, 1, 1, 12),
        (1, 100, 1, 12),
        (1 * TB, 150, 1, 12),
        (1 * TB + 1, 1, 1, 16),
        (1, 151, 1, 16),
        (2 * TB, 200, 1, 16),
        (1, 201, 2, 12),  # 101 each
        (1, 400, 2, 16),
        (4 * TB, 201, 2, 16),
        (1, 401, 3, 12),
    ],
)
def test_appliances_alone_at_every_boundary(churn: int, servers: int, appliances: int, cpus: int) -> None:
    fleet = fleet_for(churn, servers)
    assert fleet.process_servers is None
    assert (fleet.appliances.count, fleet.appliances.tier.size.cpu_count) == (appliances, cpus)


@pytest.mark.parametrize(
    ("churn", "servers", "count", "cpus"),
    [
        (2 * TB + 1, 1, 1, 4),
        (2 * TB + 250 * GB, 100, 1, 4),
        (2 * TB + 250 * GB + 1, 100, 1, 8),
        (3 * TB, 100, 1, 8),
        (3 * TB + 1, 100, 1, 12),
        (4 * TB, 200, 1, 12),
        (4 * TB + 2, 200, 2, 12),
        (6 * TB, 200, 2, 12),
        (6 * TB + 3, 200, 3, 12),
        (5 * TB, 201, 2, 8),  # two appliances, each with one process server for half a TB
        (4 * TB + 4, 201, 2, 4),
    ],
)
def test_process_servers_take_what_the_largest_appliance_does_not(
    churn: int, servers: int, count: int, cpus: int
) -> None:
    fleet = fleet_for(churn, servers)
    assert fleet.appliances.tier.size.cpu_count == 16
    found = fleet.process_servers
    assert found is not None
    assert (found.count, found.tier.size.cpu_count) == (count, cpus)
    carried = fleet.appliances.count * fleet.appliances.each_churn_bytes_per_day
    assert carried + found.count * found.each_churn_bytes_per_day == pytest.approx(churn)
    assert found.each_churn_bytes_per_day <= found.tier.churn_bytes_per_day
    assert found.each_servers <= found.tier.servers


def test_no_server_is_left_without_a_machine() -> None:
    for servers in range(1, 1000, 7):
        for churn in (0, 499 * GB, 2 * TB + 5, 17 * TB):
            fleet = fleet_for(churn, servers)
            room = fleet.appliances.count * fleet.appliances.each_servers
            if fleet.process_servers is not None:
                room += fleet.process_servers.count * fleet.process_servers.each_servers
            assert room >= servers


def test_initial_replication_has_what_changes_leave_of_the_line() -> None:
    assert initial_replication_s(1000 * MB, 0, 80 * MB, 1.0) == pytest.approx(100)
    assert initial_replication_s(1000 * MB, 5 * MB, 80 * MB, 1.0) == pytest.approx(200)
    assert initial_replication_s(1000 * MB, 5 * MB, 80 * MB, 0.5) == pytest.approx(500 / 7.5)
    assert initial_replication_s(1000 * MB, 10 * MB, 80 * MB, 1.0) is None
    assert initial_replication_s(0, 10 * MB, 80 * MB, 1.0) == 0


def test_the_rpo_is_an_interval_and_the_time_its_changes_take() -> None:
    assert reachable_rpo_s(0, 80 * MB, 1.0, 300) == 300
    assert reachable_rpo_s(5 * MB, 80 * MB, 1.0, 300) == 450
    assert reachable_rpo_s(5 * MB, 80 * MB, 0.5, 300) == 375
    assert reachable_rpo_s(10 * MB, 80 * MB, 1.0, 300) is None


def test_the_needed_line_keeps_up_and_the_table_of_lines_is_in_order() -> None:
    needed = bandwidth_needed_bits_per_s(10 * MB, 0.5)
    assert needed == 50 * MB
    reach = reach_of((100 * MB, needed, 10 * MB, 100 * MB), 10 * GB, 2 * MB, 10 * MB, 0.5, 300)
    assert [line.bits_per_s for line in reach] == [10 * MB, 50 * MB, 100 * MB]
    assert [line.rpo_s for line in reach] == [None, pytest.approx(540), pytest.approx(420)]


def hour(server: str, disk: str, number: int, changed_mb: int, observed_s: float = 3600.0) -> HourOfChurn:
    return HourOfChurn(server, disk, number, changed_mb * MB, observed_s, churn_limit("premium", 2**40))


def test_hours_become_means_the_busiest_hour_and_warnings() -> None:
    churn = site_churn(
        [
            hour("a", "/dev/sda", 1, 3600),
            hour("a", "/dev/sda", 2, 3 * 3600),
            hour("b", "/dev/sda", 2, 25 * 1800, 1800.0),
            hour("b", "/dev/sdb", 2, 30 * 1800, 1800.0),
        ]
    )
    assert [server.server for server in churn.servers] == ["a", "b"]
    a, b = churn.servers
    assert (a.mean_bytes_per_s, a.busiest_bytes_per_s, a.observed_s, a.warnings) == (2 * MB, 3 * MB, 7200, ())
    assert (b.mean_bytes_per_s, b.observed_s) == (55 * MB, 1800)
    assert [warning.split(":")[0] for warning in b.warnings] == [
        "/dev/sda",
        "/dev/sdb",
        "55 MB/s, beyond 54 MB/s a server",
    ]
    assert list(churn.by_hour) == [(1, MB), (2, 58 * MB)]
    assert (churn.mean_bytes_per_s, churn.busiest_bytes_per_s) == (57 * MB, 58 * MB)
    assert churn.bytes_per_day == 57 * MB * 86400


def test_a_burst_at_the_beginning_of_what_is_observed_is_no_busiest_hour() -> None:
    churn = site_churn([hour("a", "/dev/sda", 1, 600, 6.0), hour("a", "/dev/sda", 2, 7200)])
    assert [bytes_per_s for _, bytes_per_s in churn.by_hour] == [MB, 2 * MB]
    assert churn.busiest_bytes_per_s == churn.mean_bytes_per_s == pytest.approx(7800 * MB / 3606)


short_hours = st.builds(
    HourOfChurn,
    server=st.sampled_from(["a", "b", "c"]),
    disk=st.sampled_from(["/dev/sda", "/dev/sdb"]),
    hour=st.integers(1, 5),
    changed_bytes=st.integers(0, 10**13),
    observed_s=st.floats(10.0, 3600.0),
    limit=st.just(churn_limit("premium", 2**40)),
)


@given(
    hours=st.lists(short_hours, min_size=1, max_size=20),
    wire_ratio=st.floats(0.05, 1.5),
    disk_bytes=st.integers(1, 10**15),
)
def test_the_line_that_is_called_needed_is_enough_however_short_the_time_that_was_watched(
    hours: list[HourOfChurn], wire_ratio: float, disk_bytes: int
) -> None:
    churn = site_churn(hours)
    for server in churn.servers:
        assert server.busiest_bytes_per_s >= server.mean_bytes_per_s
    assert churn.busiest_bytes_per_s >= max(server.busiest_bytes_per_s for server in churn.servers) * (1 - 1e-9)
    assert churn.busiest_bytes_per_s >= churn.mean_bytes_per_s
    needed = bandwidth_needed_bits_per_s(churn.busiest_bytes_per_s, wire_ratio)
    if needed == 0:
        assert churn.mean_bytes_per_s == 0
        return
    (reach,) = reach_of(
        [needed], disk_bytes, churn.mean_bytes_per_s, churn.busiest_bytes_per_s, wire_ratio, point_interval_s=300
    )
    assert reach.initial_replication_s is not None
    assert reach.rpo_s == pytest.approx(300 * (1 + 1 / HEADROOM))


@pytest.mark.parametrize("observed_s", [10.0, 23.5, 599.0, 600.0, 3600.0])
async def test_a_site_that_was_watched_for_a_moment_is_told_a_line_that_keeps_up(lab: Lab, observed_s: float) -> None:
    async with lab.running.site.database.write() as session:
        now_hour = lab.running.site.clock() // HOUR_NS
        changed_bytes = int(3 * MB * observed_s)
        session.add(ChurnHourRow(disk_id=DISK, hour=now_hour, changed_bytes=changed_bytes, observed_s=observed_s))
    report = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing")).body)
    assert report.busiest_hour_bytes_per_s == pytest.approx(3 * MB)
    (needed,) = (line for line in report.lines if line.needed)
    assert needed.initial_replication_s is not None
    assert needed.rpo_s == pytest.approx(report.point_interval_s * (1 + 1 / HEADROOM))
    assert "never" not in _table_of(report).split("(needed)")[1].splitlines()[0]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        await running.enrol(Role.AGENT, "web-1")
        report = inventory("web-1", [inventory_disk(DISK, "/dev/sda", 64 * 2**30)])
        await running.request("PUT", "/api/v1/agent/inventory", report, identity=running.identities["web-1"])
        yield running


def at(changed_bytes: int) -> DiskObservation:
    return disk_observation(changed_bytes=changed_bytes, phase="replicating", generation=1)


async def test_counters_become_hours_and_what_nobody_wrote_is_left_out(lab: Lab) -> None:
    start_ns = 1000 * HOUR_NS
    reports: list[tuple[float, DiskObservation]] = [
        (0, at(5 * MB)),
        (1800, at(11 * MB)),
        (3590, at(12 * MB)),
        (3610, at(14 * MB)),  # counts in the hour in which it is reported
        (3620, at(1 * MB)),  # the agent began anew
        (3630, disk_observation(changed_bytes=90 * MB, phase="resynchronizing", generation=1)),
        (3640, at(95 * MB)),
        (3650, at(96 * MB)),
        (3660, disk_observation(changed_bytes=400 * MB, phase="replicating", generation=2)),
        (10_000, disk_observation(changed_bytes=900 * MB, phase="replicating", generation=2)),  # silent for too long
    ]
    async with lab.running.site.database.write() as session:
        before: DiskObservation | None = None
        before_ns: int | None = None
        for second, now in reports:
            now_ns = start_ns + int(second * 1e9)
            await note_churn(session, before, before_ns, now, now_ns)
            before, before_ns = now, now_ns
    async with lab.running.site.database.read() as session:
        found = await churn_by_hour(session, 0, {DISK: churn_limit("premium", 2**40)}, {DISK})
    assert [(each.server, each.disk, each.hour, each.changed_bytes, each.observed_s) for each in found] == [
        ("web-1", "/dev/sda", 1000, 7 * MB, 3590),
        ("web-1", "/dev/sda", 1001, 4 * MB, 40),
    ]
    async with lab.running.site.database.write() as session:
        assert await forget_old_churn(session, (1000 + KEPT_HOURS) * HOUR_NS) == 0
        assert await forget_old_churn(session, (1001 + KEPT_HOURS) * HOUR_NS) == 1
        assert [
            each.hour for each in await churn_by_hour(session, 0, {DISK: churn_limit("premium", 2**40)}, {DISK})
        ] == [1001]


async def test_where_nothing_was_observed_neither_rpo_nor_bandwidth_are_made_up(lab: Lab) -> None:
    report = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing?profiles=true")).body)
    assert (report.churn_bytes_per_day, report.busiest_hour_bytes_per_s) == (None, None)
    assert report.bandwidth_needed_bits_per_s is None
    assert [each.each_churn_bytes_per_day for each in report.machines] == [None]
    assert {line.rpo_s for line in report.lines} == {None}
    assert all((line.initial_replication_s or 0.0) > 0 for line in report.lines)
    assert any("no churn was observed yet" in note for note in report.notes)
    for text in (sizing_page(report), _table_of(report)):
        assert "Bandwidth needed: not known" in text or "bandwidth needed: not known" in text
        assert "never" not in text.partition("<body>")[2] + text.partition("churn:")[2]


def _table_of(report: SizingReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    tell(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_servers_without_churn_count_with_their_disks_and_are_told(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-2")
    async with lab.running.site.database.write() as session:
        now_hour = lab.running.site.clock() // HOUR_NS
        session.add(ChurnHourRow(disk_id=DISK, hour=now_hour, changed_bytes=3600 * MB, observed_s=3600.0))
    report = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing")).body)
    assert report.churn_bytes_per_day == 86400 * MB
    assert any("1 of 2 servers" in note for note in report.notes)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.96, "1 kB"),
        (1500, "1.5 kB"),
        (16 * GB, "16 GB"),
        (300 * GB, "300 GB"),
        (2 * TB, "2 TB"),
        (64 * 2**30, "68.7 GB"),
        (10**19, "10000 PB"),
    ],
)
def test_units_are_those_of_the_capacity_tables(count: float, text: str) -> None:
    assert size(count) == text
    assert rate(count) == f"{text}/s"


async def test_table_and_page_show_machines_as_the_capacity_tables_do(lab: Lab) -> None:
    report = SizingReport.decode((await lab.administer("GET", "/api/v1/sizing")).body)
    for text in (_table_of(report), sizing_page(report)):
        assert "16 GB" in text
        assert "300 GB" in text
        assert "iB" not in text.replace("KiB", ""), "but for the granules of the note"


async def test_initial_replication_is_that_of_all_disks(lab: Lab) -> None:
    reply = await lab.administer("GET", "/api/v1/sizing?bandwidth_bits_per_s=25000000&wire_ratio=0.5")
    report = SizingReport.decode(reply.body)
    assert (report.servers, report.disk_bytes) == (1, 64 * 2**30)
    assert [(each.kind, each.count, each.tier) for each in report.machines] == [("appliance", 1, 1)]
    (given,) = [line for line in report.lines if line.asked_for]
    assert given.initial_replication_s == pytest.approx(64 * 2**30 * 0.5 * 8 / 25e6)
    for wrong in ("target_disk_type=tape", "bandwidth_bits_per_s=0", "wire_ratio=3", "point_interval_s=1", "width=1"):
        assert (await lab.administer("GET", f"/api/v1/sizing?{wrong}")).status == 400


async def test_limits_go_by_the_type_that_is_planned_and_by_the_default_policy(lab: Lab) -> None:
    async with lab.running.site.database.write() as session:
        now_hour = lab.running.site.clock() // HOUR_NS
        session.add(ChurnHourRow(disk_id=DISK, hour=now_hour, changed_bytes=10 * 3600 * MB, observed_s=3600.0))

    async def beyond(query: str = "") -> list[str]:
        report = SizingReport.decode((await lab.administer("GET", f"/api/v1/sizing{query}")).body)
        return report.observed[0].warnings

    assert await beyond() == ["/dev/sda: 10.0 MB/s, beyond 8 MB/s of a premium disk up to 256 GiB"]
    assert await beyond("?target_disk_type=standard") == ["/dev/sda: 10.0 MB/s, beyond 2 MB/s of a standard disk"]
    (default,) = (await lab.administer("GET", "/api/v1/policies")).json["items"]
    changed = default | {"target_disk_type": "standard"}
    assert (await lab.administer("PUT", "/api/v1/policies/default", changed)).status == 200
    assert await beyond() == ["/dev/sda: 10.0 MB/s, beyond 2 MB/s of a standard disk"]
    assert await beyond("?target_disk_type=premium") != await beyond()
    assert (
        await lab.administer("PUT", "/api/v1/policies/default", default | {"target_disk_type": "tape"})
    ).status == 400


class _Page(HTMLParser):
    """Checks that every element is closed in order; collects what the page would load, and its texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.loaded += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


async def test_the_page_is_whole_loads_nothing_and_shows_names_as_they_are(lab: Lab) -> None:
    document = (await lab.administer("GET", "/api/v1/sizing")).json
    document["hours"] = [{"at": f"2026-03-02T{hour:02}:00:00.000Z", "bytes_per_s": 1e6 * hour} for hour in range(24)]
    document["observed"] = [
        {
            "server": "<script>alert(1)</script>",
            "mean_bytes_per_s": 1.0,
            "busiest_hour_bytes_per_s": 2.0,
            "observed_s": 60.0,
            "warnings": ["a & b"],
        }
    ]
    document |= {"churn_bytes_per_day": 2e9, "busiest_hour_bytes_per_s": 23e6, "bandwidth_needed_bits_per_s": 230e6}
    document["lines"] = [line | {"rpo_s": 300.0 if number else None} for number, line in enumerate(document["lines"])]
    text = sizing_page(SizingReport.model_validate(document))
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.loaded == []
    assert "<script>alert(1)</script>" in page.texts
    assert "a & b" in page.texts
    assert "script" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert text.count("<svg ") == 3
    assert text.count("<rect ") == 24 + 2 * len(document["lines"])
    assert text.count('class="never"') == 1
