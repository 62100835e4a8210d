"""The configuration server is backed up while it runs, lost, and restored elsewhere: its agents and process servers go on by themselves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from deploy.demo.operator import Json, wait_until
from tests.harness.running_site import RunningSite, running_site

DISK_BYTES = 8 * 2**20
PASSPHRASE = "correct horse battery staple"

pytestmark = [pytest.mark.heavy("a site whose configuration server is restored"), pytest.mark.timeout(300)]


def _generation(item: Json) -> int:
    return int(item["disks"][0]["observation"]["generation"])


def _applied(item: Json) -> int:
    observation = item["disks"][0]["observation"]
    return 0 if observation is None else int(observation["applied_epoch"])


def _write_and_wait(site: RunningSite, disk: Path, epoch: int) -> Json:
    """Change the disk, and wait until an epoch after ``epoch`` is applied at the sink and told to the configuration server."""
    with disk.open("r+b") as stream:
        stream.write(os.urandom(65536))
    return site.wait_item("a newer epoch applied", 90.0, lambda item: _applied(item) > epoch)


def test_a_site_goes_on_without_a_resync_on_a_configuration_server_restored_from_its_backup(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(DISK_BYTES))
    with running_site(tmp_path / "site", disk_files=(disk,), tracker="scan") as site:
        site.protect(disk)
        before = _write_and_wait(site, disk, 0)
        _assert_that_points_are_refused_with_the_reason(site)
        directory = site.site.directory / "config-server"
        configuration, archive, passphrase = directory / "config.yaml", tmp_path / "backup", tmp_path / "passphrase"
        passphrase.write_text(PASSPHRASE)
        options = ("--config", configuration, "--passphrase-file", passphrase)
        site.site.run("config-server", "backup", "--out", archive, *options)
        # What the agent is told after the backup has revisions that the restored server will count once more.
        site.operator.order("pause", site.server)
        site.wait_state("paused")
        site.operator.order("resume", site.server)
        site.wait_state("replicating")
        site.site.kill("config-server")
        shutil.rmtree(directory / "state")
        settings = yaml.safe_load(configuration.read_text())
        settings["state_dir"] = str(directory / "restored")
        configuration.write_text(yaml.safe_dump(settings))
        said = site.site.run("config-server", "restore", archive, *options)
        assert "without a resync" in said
        site.site.start("config-server")
        after = _write_and_wait(site, disk, _applied(before))
        assert _generation(after) == _generation(before)
        kinds = [event["kind"] for event in site.operator.get("/events?limit=1000")["items"]]
        assert "restored" in kinds
        assert not [kind for kind in kinds if "resync" in kind]
        wait_until("the process server", lambda: _connected_process_server(site), 30.0)


def _assert_that_points_are_refused_with_the_reason(site: RunningSite) -> None:
    """A disk that is scanned has none without quiesce hooks."""
    ordered = site.operator.post(f"/protected-items/{site.server}/recovery-points")
    job = site.operator.job(ordered["id"], wait_s=20.0)
    assert (job["state"], job["problem"]["code"]) == ("failed", "point-needs-hooks")
    [condition] = [each for each in site.operator.required_item()["conditions"] if each["code"].startswith("no-recov")]
    assert "needs quiesce hooks" in condition["message"]
    assert "quiesce.pre" in condition["remedy"]


def _connected_process_server(site: RunningSite) -> Json | None:
    [server] = site.operator.get("/process-servers")["items"]
    return server if server["connected"] else None
