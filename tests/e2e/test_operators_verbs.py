"""What an operator does with a running site: several disks cut together, pause and resume, cancel a migration, resync, stop."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.lab_server import LabDisk, run
from deploy.demo.proof import first_difference
from tests.harness.forked_site import forked_site
from tests.harness.running_site import RunningSite

MIB = 2**20
DISK_BYTES = 96 * MIB

pytestmark = [pytest.mark.timeout(600), pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4")]


@pytest.fixture
def two_disks(tmp_path: Path) -> Iterator[tuple[LabDisk, LabDisk]]:
    disks = tuple(LabDisk(tmp_path / f"lab-{number}", DISK_BYTES, 0) for number in (1, 2))
    try:
        for disk in disks:
            disk.create()
        yield disks[0], disks[1]
    finally:
        for disk in disks:
            disk.destroy()


@pytest.fixture
def site(tmp_path: Path, two_disks: tuple[LabDisk, LabDisk]) -> Iterator[RunningSite]:
    with forked_site(tmp_path) as running:
        yield running


def _device(disk: LabDisk) -> Path:
    assert disk.device is not None
    return disk.device


def _write_pair(disks: tuple[LabDisk, LabDisk], number: int) -> None:
    """First on disk 1, durable, then on disk 2: at no instant does disk 2 hold a newer number than disk 1."""
    for disk in disks:
        path = disk.mount_point / "counter"
        with path.open("w") as file:
            file.write(f"{number:08d}")
            file.flush()
            os.fsync(file.fileno())


def _read_counter(image: Path, mount_point: Path) -> int:
    mount_point.mkdir(exist_ok=True)
    device = run("losetup", "--find", "--show", image)
    try:
        run("mount", device, mount_point)
        try:
            text = (mount_point / "counter").read_text()
        finally:
            run("umount", mount_point)
    finally:
        run("losetup", "--detach", device)
    return int(text)


def test_two_disks_are_cut_at_one_instant_and_migrated_together(
    site: RunningSite, two_disks: tuple[LabDisk, LabDisk], tmp_path: Path
) -> None:
    _write_pair(two_disks, 0)
    site.protect(*(_device(disk) for disk in two_disks))
    operator = site.operator
    operator.order("test-migrate", site.server)
    for number, job in enumerate(operator.follow_job("test-migrate", 120.0), start=1):
        _write_pair(two_disks, number)
        made = job["result"]
    counters = [
        _read_counter(site.export(disk, tmp_path / f"drill-{index}.raw"), tmp_path / "drill")
        for index, disk in enumerate(sorted(made["disks"], key=lambda disk: str(disk["source_path"])))
    ]
    by_path = dict(zip(sorted(str(_device(disk)) for disk in two_disks), counters, strict=True))
    first, second = by_path[str(_device(two_disks[0]))], by_path[str(_device(two_disks[1]))]
    assert first - second in (0, 1)
    operator.order("cleanup", site.server)
    operator.wait_job("cleanup", 60.0)
    for disk in two_disks:
        disk.unmount()
    operator.order("migrate", site.server)
    result = operator.wait_job("migrate", 120.0)["result"]
    assert result["identity"] == "proved"
    for index, disk in enumerate(result["disks"]):
        image = site.export(disk, tmp_path / f"final-{index}.raw")
        assert first_difference(Path(disk["source_path"]), image, DISK_BYTES) is None
    operator.order("complete", site.server, "--yes")
    operator.wait_job("complete", 60.0)
    state = site.site.directory / "mobility-agent" / "state" / "disks"
    until_s = time.monotonic() + 30
    while (list(state.iterdir()) if state.exists() else []) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert not (list(state.iterdir()) if state.exists() else [])


def test_a_cancelled_migration_returns_the_source_and_replication_goes_on(
    site: RunningSite, two_disks: tuple[LabDisk, LabDisk], tmp_path: Path
) -> None:
    disk = two_disks[0]
    _write_pair(two_disks, 1)
    item = site.protect(_device(disk))
    generation = item["disks"][0]["observation"]["generation"]
    operator = site.operator
    disk.unmount()
    operator.order("migrate", site.server)
    operator.wait_job("migrate", 120.0)
    with pytest.raises(RuntimeError, match="mount"):
        disk.mount()
    operator.order("cancel", site.server)
    site.wait_state("replicating", 60.0)
    until_s = time.monotonic() + 30
    while True:
        try:
            disk.mount()
            break
        except RuntimeError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.2)
    _write_pair(two_disks, 2)
    operator.order("test-migrate", site.server)
    made = operator.wait_job("test-migrate", 120.0)["result"]
    assert _read_counter(site.export(made["disks"][0], tmp_path / "drill.raw"), tmp_path / "drill") == 2
    after = operator.required_item()["disks"][0]["observation"]
    assert after["generation"] == generation


def test_pause_ships_nothing_and_resume_goes_on_without_a_resync(
    site: RunningSite, two_disks: tuple[LabDisk, LabDisk]
) -> None:
    disk = two_disks[0]
    _write_pair(two_disks, 1)
    item = site.protect(_device(disk))
    generation = item["disks"][0]["observation"]["generation"]
    operator = site.operator
    operator.order("pause", site.server)
    site.wait_state("paused")
    site.wait_item("the agent's pause", 30.0, lambda item: item["disks"][0]["phase"] == "paused")
    kept = operator.required_item()["disks"][0]["observation"]
    assert (kept["tracker_kind"], kept["tracker_health"]) == ("ebpf", "tracking"), kept["tracker_reason"]
    assert kept["size_bytes"] == kept["seeding_done_bytes"] == item["disks"][0]["size_bytes"]
    (disk.mount_point / "while-paused").write_bytes(os.urandom(4 * MIB))
    run("sync")
    operator.order("resume", site.server)
    site.wait_item(
        "replication after the pause",
        60.0,
        lambda item: (
            item["state"] == "replicating"
            and item["disks"][0]["phase"] == "replicating"
            and (item["replication_lag_s"] or 99.0) < 5.0
        ),
    )
    observation = operator.required_item()["disks"][0]["observation"]
    assert observation["generation"] == generation
    assert observation["sent_bytes"] < 64 * MIB


def test_a_resync_compares_everything_sends_little_and_begins_a_new_generation(
    site: RunningSite, two_disks: tuple[LabDisk, LabDisk]
) -> None:
    disk = two_disks[0]
    (disk.mount_point / "content").write_bytes(os.urandom(32 * MIB))
    run("sync", "--file-system", disk.mount_point)
    item = site.protect(_device(disk))
    before = item["disks"][0]["observation"]
    operator = site.operator
    operator.order("resync", site.server)
    site.wait_item(
        "the resync",
        120.0,
        lambda item: (
            item["state"] == "replicating"
            and (item["disks"][0]["observation"] or {}).get("generation") == before["generation"] + 1
            and item["disks"][0]["phase"] == "replicating"
        ),
    )
    after = operator.required_item()["disks"][0]["observation"]
    assert after["read_bytes"] - before["read_bytes"] >= DISK_BYTES
    assert after["sent_bytes"] - before["sent_bytes"] < 8 * MIB


def test_stop_replication_leaves_nothing_behind(site: RunningSite, two_disks: tuple[LabDisk, LabDisk]) -> None:
    _write_pair(two_disks, 1)
    site.protect(_device(two_disks[0]))
    operator = site.operator
    operator.order("stop-replication", site.server, "--yes")
    operator.wait_job("stop-replication", 60.0)
    assert not operator.get("/protected-items")["items"]
