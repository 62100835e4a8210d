"""What a demo that was killed leaves on the machine is found again and ended; what only looks like it is left alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.lab_server import LabDisk
from deploy.demo.remains import Remains, stop_command

DISK_BYTES = 16 * 2**20


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")
def test_processes_mount_and_loop_device_are_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    disk = LabDisk(tmp_path / "lab", DISK_BYTES)
    try:
        device = disk.create()
        remains = Remains(mount_point=str(disk.mount_point), device=str(device), image=str(disk.image))
        remains.note_process(sleeper.pid)
        remains.write(tmp_path)
        # As the demo prints it, from a directory that is not the repository.
        done = subprocess.run(
            ["sh", "-c", stop_command(tmp_path)], cwd="/", capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
        assert sleeper.wait(10) != 0
        assert not os.path.ismount(disk.mount_point)
        backing = Path(f"/sys/block/{device.name}/loop/backing_file")
        assert not backing.exists() or backing.read_text().strip() != str(disk.image)
        assert Remains.read(tmp_path) is None
    finally:
        left = Remains(mount_point=str(disk.mount_point), device=str(disk.device), image=str(disk.image))
        left.end()


def test_a_process_that_took_over_the_number_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    remains = Remains()
    remains.note_process(sleeper.pid)
    assert remains.alive() == [sleeper.pid]
    remains.processes[sleeper.pid] -= 1
    assert remains.alive() == []
    remains.end()
    assert sleeper.poll() is None


@pytest.mark.requires("root", "loop", "mount", "mkfs.ext4")
def test_a_loop_device_that_serves_another_file_now_is_left_alone(tmp_path: Path) -> None:
    disk = LabDisk(tmp_path, DISK_BYTES)
    try:
        device = disk.create()
        disk.unmount()
        Remains(device=str(device), image=str(tmp_path / "other.img")).end()
        assert Path(f"/sys/block/{device.name}/loop/backing_file").read_text().strip() == str(disk.image)
    finally:
        disk.destroy()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"processes": {"x": 1}}', '{"processes": {}, "other": 1}'])
def test_an_unreadable_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "remains.json").write_text(content)
    assert Remains.read(tmp_path) is None
