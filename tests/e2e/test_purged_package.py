"""``apt-get purge blockferry-agent``: what the package's scripts leave when pins and state are where the configuration had them.

The scripts run with their places moved into the test's directory, and what they would do to the machine's users and units left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.installation.remains import note_remains
from mobility_agent.quiesce.freeze_record import FreezeRecord, record_of
from mobility_agent.quiesce.interface import Mount
from mobility_agent.sole_agent import hold_machine
from tests.harness.loop_disk import LoopDisk, loop_disk, mounted, pin_root, run
from tests.harness.source_tree import REPOSITORY

DISK = "1f0d5f0c-7a52-4a4b-9c1e-0d8f3d1c0001"
OTHERS = "not-a-disk"
PLACES = (
    "/var/lib/",
    "/etc/",
    "/usr/share/",
    "/usr/lib/blockferry/",
    "/sys/fs/bpf/blockferry",
    "/run/systemd/",
    "/run/blockferry",
)


class Package:
    """The agent's, with a configuration that names other places than the usual ones."""

    def __init__(self, directory: Path, pins: Path) -> None:
        self._root, self.pins = directory / "root", pins
        self.state, self.configuration = directory / "my state", directory / "agent.yaml"
        self.run_directory = self._root / "run" / "blockferry"
        self.remains = self._root / "var" / "lib" / "blockferry" / "agent.remains"
        self.remains.parent.mkdir(parents=True)
        (self.state / "identity").mkdir(parents=True)
        (self.state / "lock").touch()
        (self.state / "notes.txt").write_text("somebody's")
        document = yaml.safe_load((REPOSITORY / "deploy" / "config" / "agent.yaml").read_text())
        del document["limits"]  # hours of the day, which YAML writes in another way than it reads
        document |= {"state_dir": str(self.state), "tracker": {"pin_root": str(pins)}}
        self.configuration.write_text(yaml.safe_dump(document))
        self._programs = directory / "bin"
        self._programs.mkdir()
        self._asked = directory / "asked"
        agent = self._root / "usr" / "lib" / "blockferry" / "bin" / "mobility-agent"
        agent.parent.mkdir(parents=True)
        nothing = [self._programs / name for name in ("systemd-sysusers", "systemd-tmpfiles", "install", "groupdel")]
        texts = {self._programs / "getent": "exit 2", agent: f'echo "$@" >> {self._asked}'} | dict.fromkeys(nothing, "")
        for program, text in texts.items():
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)

    def remove(self) -> list[str]:
        """Its ``prerm remove``, and what that has the agent do."""
        self.script("prerm", "upgrade")
        assert not self._asked.exists()
        self.script("prerm", "remove")
        assert self._asked.read_text() == "note-remains\n"
        self.script("postrm", "remove")
        self.said: list[str] = []
        return note_remains(self.configuration, self.said.append, self.remains, self.run_directory)

    def script(self, name: str, *arguments: str) -> None:
        text = (REPOSITORY / "deploy" / "packaging" / "debian" / name).read_text().replace("@ROLE@", "agent")
        for place in PLACES:
            text = text.replace(place, f"{self._root}{place}")
        path = f"{self._programs}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", text, name, *arguments],
            env={"PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with loop_disk(tmp_path / "disk.img", 16 * 2**20) as made:
        yield made


@pytest.fixture
def pins() -> Iterator[Path]:
    with pin_root() as root:
        yield root


@pytest.mark.requires("root", "loop", "ebpf")
def test_purging_ends_tracking_and_restores_statistics_that_were_off_and_removing_does_not(
    disk: LoopDisk, pins: Path, tmp_path: Path
) -> None:
    package, iostats = Package(tmp_path, pins), Path(f"/sys/block/{disk.name}/queue/iostats")
    iostats.write_text("0")
    with contextlib.closing(EbpfTracker.attach(disk.device, pin_directory=pins / DISK)):
        pass
    (pins / OTHERS).mkdir()
    package.remove()
    assert (pins / DISK / "control").exists(), "an agent that is installed again goes on"
    assert iostats.read_text().strip() == "1"
    with contextlib.closing(EbpfTracker.attach(disk.device, pin_directory=pins / DISK)) as again:
        assert again.continued
    package.script("postrm", "purge")
    assert [path.name for path in pins.iterdir()] == [OTHERS]
    assert iostats.read_text().strip() == "0"
    assert [path.name for path in package.state.iterdir()] == ["notes.txt"], "what others put there stays"
    assert not package.remains.exists()
    iostats.write_text("1")


def leave_frozen(mount_point: Path, run_directory: Path) -> str:
    """As an agent and its watchdog that were both killed do; the machine's identifier."""
    machine = str(uuid.uuid4())
    run_directory.mkdir(parents=True)
    device = mount_point.stat().st_dev
    mount = Mount(str(mount_point), "ext4", "of the test", (os.major(device), os.minor(device)))
    FreezeRecord(record_of(machine, run_directory)).note([mount])
    run("fsfreeze", "--freeze", mount_point)
    return machine


def thawed_only_now(mount_point: Path) -> bool:
    return subprocess.run(["fsfreeze", "--unfreeze", mount_point], capture_output=True, check=False).returncode == 0


@pytest.fixture
def mount_point(disk: LoopDisk, tmp_path: Path) -> Iterator[Path]:
    run("mkfs.ext4", "-q", disk.device)
    with mounted(disk.device, tmp_path / "mounted here") as made:
        yield made
        thawed_only_now(made)


@pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")
def test_removing_the_package_thaws_what_was_left_frozen(mount_point: Path, tmp_path: Path) -> None:
    package = Package(tmp_path, tmp_path / "no-pins")
    machine = leave_frozen(mount_point, package.run_directory)
    with hold_machine(machine):
        package.remove()
        assert package.said == [], "an agent that runs thaws itself"
        assert package.run_directory.exists()
    package.said.clear()
    note_remains(package.configuration, package.said.append, package.remains, package.run_directory)
    assert not thawed_only_now(mount_point)
    assert package.said == [f"thawed {mount_point}, which an agent that was killed left frozen"]
    assert not package.run_directory.exists()


@pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")
def test_purging_thaws_what_was_left_frozen_without_the_agent_s_programs(mount_point: Path, tmp_path: Path) -> None:
    package = Package(tmp_path, tmp_path / "no-pins")
    leave_frozen(mount_point, package.run_directory)
    package.script("postrm", "remove")
    assert package.run_directory.exists()
    package.script("postrm", "purge")
    assert not thawed_only_now(mount_point)
    assert not package.run_directory.exists()


@pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")
def test_a_record_of_another_boot_thaws_nothing_when_the_package_is_purged(mount_point: Path, tmp_path: Path) -> None:
    package = Package(tmp_path, tmp_path / "no-pins")
    record = record_of(leave_frozen(mount_point, package.run_directory), package.run_directory)
    document = json.loads(record.read_text())
    record.write_text(json.dumps({**document, "boot": str(uuid.uuid4())}))
    package.script("postrm", "purge")
    assert thawed_only_now(mount_point), "somebody else has frozen it"
    assert not package.run_directory.exists()


def test_after_a_boot_between_removing_and_purging_no_disk_s_statistics_are_touched(tmp_path: Path) -> None:
    package, queue = Package(tmp_path, tmp_path / "no-pins"), tmp_path / "sys" / "sdx" / "queue"
    queue.mkdir(parents=True)
    (queue / "iostats").write_text("1")
    (queue.parent / "diskseq").write_text("7\n")
    pins = tmp_path / "pins" / DISK
    lines = [f"tracking {pins}", f"iostats 7 {queue / 'iostats'}"]

    def purge() -> str:
        package.remains.parent.mkdir(parents=True, exist_ok=True)
        package.remains.write_text("".join(f"{line}\n" for line in lines))
        package.script("postrm", "purge")
        return (queue / "iostats").read_text().strip()

    assert purge() == "1", "without its pins this is another boot's disk"
    pins.mkdir(parents=True)
    (queue.parent / "diskseq").write_text("8\n")
    assert purge() == "1", "another disk has its place"
    assert not pins.exists()
    pins.mkdir()
    (queue.parent / "diskseq").write_text("7\n")
    assert purge() == "0"


def test_a_purge_without_a_list_and_a_list_of_default_places_do_no_harm(tmp_path: Path) -> None:
    package = Package(tmp_path, tmp_path / "no-pins")
    package.script("postrm", "purge")
    assert package.state.exists()
    package.configuration.write_text("not: [a configuration")
    assert "directory /sys/fs/bpf/blockferry" in package.remove()
    assert "entry /var/lib/blockferry/agent/identity" in package.remains.read_text().splitlines()
    assert "by default" in package.said[0]


def test_an_agent_that_is_installed_again_is_not_purged_by_what_was_noted_of_the_one_before(tmp_path: Path) -> None:
    package = Package(tmp_path, tmp_path / "no-pins")
    package.remove()
    assert package.remains.exists()
    package.script("postinst", "configure", "0.1.0")
    assert not package.remains.exists()
