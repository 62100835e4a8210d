"""The capabilities of ``blockferry-agent.service``: with them the agent can do its work, and each of them is needed for a part of it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.loop_disk import loop_disk, mounted, pin_root, run
from tests.harness.requirements import WITHHELD
from tests.harness.source_tree import REPOSITORY
from tests.harness.systemd_units import AGENT

pytestmark = [pytest.mark.requires("root", "loop", "mount", "ebpf", "setpriv", "runuser", "mkfs.ext4")]

CAPABILITIES: Final = AGENT.words("CapabilityBoundingSet")
IN_PLACE_OF_LIMITS: Final = ["CAP_IPC_LOCK"]
"""The unit says LimitMEMLOCK=infinity, which a test may not be allowed to raise; to a process it is the same."""
NOBODY: Final = 65534
TIMEOUT_S: Final = 120.0


def may_exempt_from_the_out_of_memory_killer() -> bool:
    script = "import pathlib; pathlib.Path('/proc/self/oom_score_adj').write_text('-1000')"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


class Stage:
    """A disk, a file system in another user's directory, another user's process that has a disk open for writing, and file."""

    def __init__(self, device: Path, mount_point: Path, pins: Path, writer: int, plain_file: Path) -> None:
        self.writer = writer
        self._pins = pins
        self._tries = itertools.count()
        self._arguments: dict[str, tuple[str | Path, ...]] = {
            "track": (device,),
            "freeze": (mount_point,),
            "guard": (),
            "writers": (device,),
            "hook": ("nobody",),
            "claim": (plain_file,),
        }

    def probe(self, name: str, capabilities: list[str]) -> subprocess.CompletedProcess[str]:
        if name == "guard" and not may_exempt_from_the_out_of_memory_killer():
            pytest.skip(f"{WITHHELD}CAP_SYS_RESOURCE")
        kept = ",".join(
            f"+{capability.removeprefix('CAP_').lower()}" for capability in [*capabilities, *IN_PLACE_OF_LIMITS]
        )
        command = ["setpriv", f"--bounding-set=-all,{kept}", "--no-new-privs", sys.executable]
        command += ["-m", "tests.harness.agent_privileges_probe", name, *map(str, self._arguments[name])]
        if name == "track":
            command.append(f"{self._pins}-{next(self._tries)}")
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("privileges")
    of_another = directory / "home"
    of_another.mkdir(mode=0o700)
    os.chown(of_another, NOBODY, NOBODY)
    with (
        loop_disk(directory / "tracked.img", 16 * 2**20) as tracked,
        loop_disk(directory / "mounted.img", 64 * 2**20) as below,
        pin_root() as pins,
    ):
        run("mkfs.ext4", "-q", below.device)
        plain_file = directory / "of another user.img"
        plain_file.write_bytes(bytes(4096))
        os.chown(plain_file, NOBODY, NOBODY)
        descriptor = os.open(tracked.device, os.O_RDWR)
        writer = subprocess.Popen(["sleep", "600"], pass_fds=[descriptor], user=NOBODY, cwd="/")
        os.close(descriptor)
        try:
            with mounted(below.device, of_another / "mnt") as mount_point:
                yield Stage(tracked.device, mount_point, pins / "disk", writer.pid, plain_file)
        finally:
            writer.kill()
            writer.wait()


EXPECTED: Final[dict[str, object]] = {
    "track": [[5, 1]],
    "freeze": True,
    "guard": -1000,
    "hook": "ended",
    "claim": "quiet",
}


@pytest.mark.parametrize("name", ["track", "freeze", "guard", "writers", "hook", "claim"])
def test_agent_can_do_its_work_with_the_capabilities_of_its_unit(stage: Stage, name: str) -> None:
    done = stage.probe(name, CAPABILITIES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EXPECTED.get(name, [stage.writer])


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("CAP_SYS_ADMIN", "track"),
        ("CAP_SYS_ADMIN", "freeze"),
        ("CAP_DAC_READ_SEARCH", "freeze"),
        ("CAP_SYS_PTRACE", "writers"),
        ("CAP_LEASE", "claim"),
        ("CAP_SYS_RESOURCE", "guard"),
        ("CAP_SETUID", "hook"),
        ("CAP_SETGID", "hook"),
        ("CAP_KILL", "hook"),
    ],
)
def test_each_capability_is_needed(stage: Stage, capability: str, name: str) -> None:
    done = stage.probe(name, [other for other in CAPABILITIES if other != capability])
    failed = done.returncode != 0
    assert failed or json.loads(done.stdout) != EXPECTED.get(name, [stage.writer])


def test_every_capability_is_tried() -> None:
    (marker,) = [mark for mark in test_each_capability_is_needed.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]  # pytest adds it
    assert {capability for capability, _ in marker.args[1]} == set(CAPABILITIES)
