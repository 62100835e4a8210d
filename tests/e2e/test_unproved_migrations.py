"""Migrations whose proof fails, or does not hold any longer: a replica that was changed at the sink, a source that was written to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import pytest

from deploy.demo.lab_server import LabDisk, run
from deploy.demo.operator import Json
from deploy.demo.proof import first_difference
from deploy.demo.site import ACCOUNT
from replication.blob_client.settings import BlobEndpointSettings
from tests.harness.damaged_replica import PAGE_BYTES, flip_pages, offset_of
from tests.harness.running_site import POLICY, RunningSite

MIB: Final = 2**20

pytestmark = [
    pytest.mark.heavy("sites whose replica or source differs at the cutover"),
    pytest.mark.timeout(600),
    pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4"),
]


def _device(disk: LabDisk) -> Path:
    assert disk.device is not None
    return disk.device


def _codes(item: Json) -> set[str]:
    return {condition["code"] for condition in item["conditions"]}


def _event_kinds(site: RunningSite) -> list[str]:
    return [event["kind"] for event in site.operator.get("/events?limit=1000")["items"]]


def _endpoint(site: RunningSite) -> BlobEndpointSettings:
    return BlobEndpointSettings(
        site.site.store_url, ACCOUNT, site.site.account_key_file, ca_file=site.site.authority_file
    )


def _suspect_points(site: RunningSite, item: str) -> list[bool]:
    return [point["suspect"] is not None for point in site.operator.recovery_points(item)]


def _export_sha256(site: RunningSite, made: Json, to: Path) -> str:
    image = site.export(made, to).read_bytes()
    return hashlib.sha256(image[: made["size_bytes"]]).hexdigest()


def test_a_replica_that_was_changed_at_the_sink_is_found_out_sent_anew_and_then_proved(
    site: RunningSite, disk: LabDisk, tmp_path: Path
) -> None:
    content = os.urandom(4 * MIB)
    (disk.mount_point / "content").write_bytes(content)
    run("sync", "--file-system", disk.mount_point)
    protected = site.protect(_device(disk))
    operator = site.operator
    site.wait_item("a recovery point", 60.0, lambda item: item["recovery_points"] > 0)
    # One page of data, and one of zeros far behind whatever the file system uses: such a granule must be sent again, too.
    zeros = disk.disk_bytes - 4 * MIB
    assert disk.image.read_bytes()[zeros : zeros + MIB] == bytes(MIB)
    flip_pages(_endpoint(site), protected["disks"][0]["disk"], [offset_of(content[:PAGE_BYTES], disk.image), zeros])

    disk.unmount()
    operator.order("migrate", site.server)
    failed = site.wait_state("migration-failed", 120.0)
    problem = operator.newest_job("migrate")["problem"]
    assert problem["code"] == "identity-not-proved"
    assert "unharmed" not in problem["hint"]
    assert (failed["health"], "replica-differs" in _codes(failed)) == ("critical", True)
    suspect = _suspect_points(site, protected["id"])
    assert suspect
    assert all(suspect)
    with pytest.raises(RuntimeError, match="differs from its source"):
        operator.order("migrate", site.server)

    operator.order("cancel", site.server)
    # The disk is small: it may be sent anew before anybody can look. That it was: the job and the event.
    site.wait_item(
        "the repair", 120.0, lambda item: item["state"] == "replicating" and "replica-differs" not in _codes(item)
    )
    assert operator.newest_job("resync")["state"] == "succeeded"
    assert "replica-repaired" in _event_kinds(site)
    operator.order("set-policy", POLICY, "--retention", "0")  # suspect points go with the first good one
    site.wait_item("health", 60.0, lambda item: item["health"] == "healthy" and item["suspect_points"] == 0)

    operator.order("migrate", site.server)
    result = operator.wait_job("migrate", 120.0)["result"]
    assert result["identity"] == "proved"
    image = site.export(result["disks"][0], tmp_path / "final.raw")
    assert first_difference(_device(disk), image, disk.disk_bytes) is None


def test_a_source_that_is_written_to_after_the_proof_is_found_out_when_the_agent_is_back(
    site: RunningSite, disk: LabDisk, tmp_path: Path
) -> None:
    (disk.mount_point / "content").write_bytes(os.urandom(MIB))
    site.protect(_device(disk))
    operator = site.operator
    disk.unmount()
    operator.order("migrate", site.server)
    made = operator.wait_job("migrate", 120.0)["result"]["disks"][0]
    assert _codes(operator.required_item()).isdisjoint({"source-not-held", "source-written"})

    site.site.kill("mobility-agent")
    site.site.start("mobility-agent")
    site.wait_item("the comparison of an unchanged source", 120.0, lambda _: "source-held" in _event_kinds(site))
    assert "source-not-held" in _event_kinds(site)
    assert _codes(operator.required_item()).isdisjoint({"source-not-held", "source-written"})

    site.site.kill("mobility-agent")
    descriptor = os.open(_device(disk), os.O_WRONLY | os.O_SYNC)
    try:
        os.pwrite(descriptor, os.urandom(4096), disk.disk_bytes - 8 * MIB)
    finally:
        os.close(descriptor)
    site.site.start("mobility-agent")
    written = site.wait_item("the alarm", 120.0, lambda item: "source-written" in _codes(item))
    assert (written["state"], written["health"]) == ("migrated", "critical")
    with pytest.raises(RuntimeError, match="--discard-source-changes"):
        operator.order("complete", site.server, "--yes")
    assert _export_sha256(site, made, tmp_path / "final.raw") == made["sha256"], "final disks are never touched"
    operator.order("complete", site.server, "--yes", "--discard-source-changes")
    operator.wait_job("complete", 60.0)
