"""A store that is put back to an older state under a running site: noticed in bounded time, said, resynchronized, and proved identical."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deploy.demo.lab_server import LabDisk, run
from deploy.demo.operator import Json, wait_until
from deploy.demo.proof import first_difference
from mobility_agent.core.sink_standing import REVERTED_AFTER_S
from tests.harness.running_site import RunningSite

MIB = 2**20

pytestmark = [
    pytest.mark.heavy("a site whose store is put back to an older copy"),
    pytest.mark.timeout(600),
    pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4"),
]


def _write(disk: LabDisk, name: str, mebibytes: int) -> None:
    with (disk.mount_point / name).open("wb") as file:
        file.write(os.urandom(mebibytes * MIB))
        file.flush()
        os.fsync(file.fileno())


def _disk(item: Json) -> Json:
    found: Json = item["disks"][0]["observation"]
    return found


def _applied(site: RunningSite, beyond: int) -> Json:
    """Until everything is applied, and more than epoch ``beyond``."""
    return site.wait_item(
        "everything is applied",
        120.0,
        lambda item: _disk(item)["applied_epoch"] > beyond and not _disk(item)["backlog_bytes"],
    )


def _points(site: RunningSite, beyond: set[str]) -> set[str]:
    """The recovery points that are not in ``beyond``, once there is one."""
    operator = site.operator
    item = operator.required_item()["id"]

    def found() -> Json | None:
        return {point["cut"]: point for point in operator.recovery_points(item) if point["cut"] not in beyond} or None

    return set(wait_until("another recovery point", found, 60.0))


def _copy(source: Path, to: Path) -> None:
    run("rm", "-rf", to)
    run("cp", "-a", "--sparse=always", source, to)


def test_a_store_put_back_to_an_older_copy_is_noticed_resynchronized_and_proved_identical(
    site: RunningSite, disk: LabDisk, tmp_path: Path
) -> None:
    operator, sink = site.operator, site.site.directory / "azure-sink"
    assert disk.device is not None
    _write(disk, "kept", 4)
    _write(disk, "changed", 4)
    site.protect(disk.device)
    copied = _disk(_applied(site, 0))
    kept = _points(site, beyond=set())
    site.site.stop("azure-sink")
    for part in ("blobs", "writer"):
        _copy(sink / part, tmp_path / f"old-{part}")
    site.site.start("azure-sink")
    _write(disk, "changed", 4)
    _write(disk, "new", 4)
    lost = _disk(_applied(site, int(copied["applied_epoch"])))
    gone = _points(site, beyond=kept)

    site.site.stop("azure-sink")
    for part in ("blobs", "writer"):
        _copy(tmp_path / f"old-{part}", sink / part)
    site.site.start("azure-sink")
    began_s = time.monotonic()

    def is_behind() -> Json | None:
        conditions: list[Json] = operator.required_item()["conditions"]
        return next((condition for condition in conditions if condition["code"] == "disk-sink-behind"), None)

    said = wait_until("the agent says that the sink is behind", is_behind, 60.0)
    assert said["health"] == "critical"
    assert "though it had applied epoch" in said["message"], lost
    site.wait_item(
        "a new generation replicates",
        150.0,
        lambda item: (_disk(item)["generation"] or 0) > lost["generation"] and item["state"] == "replicating",
    )
    assert time.monotonic() - began_s < REVERTED_AFTER_S + 150.0
    reasons = [
        event["message"] for event in operator.get("/events")["items"] if event["kind"] == "generation-allocated"
    ]
    assert any("the sink is at epoch" in reason for reason in reasons), reasons

    def offered() -> dict[str, Json]:
        return {point["cut"]: point for point in operator.recovery_points(operator.required_item()["id"])}

    wait_until(
        "points of the lost history are not offered any more", lambda: None if gone & set(offered()) else {}, 60.0
    )
    assert all(offered()[cut]["suspect"] is None for cut in kept), (
        "what the older store holds of the time before is good"
    )
    _write(disk, "afterwards", 1)
    disk.unmount()
    operator.order("migrate", site.server)
    result = operator.wait_job("migrate", 180.0)["result"]
    assert result["identity"] == "proved"
    image = site.export(result["disks"][0], tmp_path / "final.raw")
    assert first_difference(disk.device, image, disk.disk_bytes) is None
