"""A container engine of the test's own, cut off from the machine: dockerd in network, mount and process namespaces of its own.

Called by tests/test_compose_site.py. The engine's bridges and packet filter are in a network without a way out, its mounts in its own
mount namespace, and every container is below it: whoever ends the first process there ends them all. Nothing can be pulled: the base
image is a debootstrapped Debian with the locked packages beside it, as where no registry is reached.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.harness.source_tree import REPOSITORY
from tests.harness.waiting import wait_until

BASE_IMAGE: Final = "blockferry-base:test"
_BARE_PACKAGES: Final = "ca-certificates,git,make,python3,python3-venv"  # as prove-fresh-debian.sh, whose root is kept
_DEADLINE_S: Final = 600.0
_OFFLINE: Final = """
FROM blockferry-bare:test
COPY wheels /wheels
RUN printf '[global]\\nno-index = true\\nfind-links = /wheels\\n' >/etc/pip.conf
"""
# What other tests have mounted is let go of first: a copy in this namespace, or in a container's, would keep their disks in use.
_START: Final = """
while read -r _ _ _ _ escaped _; do
    target=$(printf %b "$escaped")
    case $target/ in / | // | /proc/* | /sys/* | /dev/*) continue ;; esac
    case $1/ in "$target"/*) continue ;; esac
    umount --lazy "$target" 2>/dev/null || true
done < <(tac /proc/self/mountinfo)
mkdir -p /run/docker && mount -t tmpfs tmpfs /run/docker
ip link set lo up
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "unix://$1/socket" --cgroup-parent "$2"
"""


class ContainerEngine:
    """Speaks to the engine through its programs; ``project`` names what compose makes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{directory}/socket",
            "DOCKER_CONFIG": str(directory / "client"),
            "DOCKER_BUILDKIT": "0",  # the engine of Debian 12 has a builder of its own; the other one may not be installed
            "COMPOSE_PROJECT_NAME": "site",
        }

    def docker(self, *words: str | Path) -> str:
        """What ``docker`` prints. :raises AssertionError: with what it said, if it fails."""
        return self.run("docker", *words)

    def run(self, *words: str | Path) -> str:
        done = self.attempt(*words)
        assert done.returncode == 0, f"{' '.join(map(str, words))}:\n{done.stdout[-5000:]}{done.stderr[-10_000:]}"
        return done.stdout

    def attempt(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )

    def make_base_image(self) -> None:
        """``BASE_IMAGE``: a bare Debian 12 with Python, and pip led to the locked packages."""
        bare = subprocess.run(
            [REPOSITORY / "deploy" / "setup" / "bare-debian.sh", _BARE_PACKAGES],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()
        self.docker("import", bare, "blockferry-bare:test")
        context = self.directory / "base"
        shutil.copytree(_locked_packages(), context / "wheels")
        (context / "Dockerfile").write_text(_OFFLINE)
        self.docker("build", "--quiet", "--tag", BASE_IMAGE, context)
        shutil.rmtree(context)


@contextlib.contextmanager
def container_engine(directory: Path) -> Iterator[ContainerEngine]:
    """An engine that answers; whatever ran in it has ended when the context is left."""
    directory.mkdir()
    cgroup = f"blockferry-test-{os.getpid()}"
    log = directory / "log"
    namespaces = ("--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", *namespaces, "bash", "-euc", _START, "engine", directory, cgroup],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    engine = ContainerEngine(directory)
    try:

        def answers() -> bool:
            assert process.poll() is None, f"dockerd ended:\n{log.read_text()[-5000:]}"
            return engine.attempt("docker", "version").returncode == 0

        wait_until(answers)
        yield engine
    finally:
        process.kill()  # and the kernel all that is in the process namespace
        process.wait()
        for controller in Path("/sys/fs/cgroup").glob(f"*/{cgroup}"):
            wait_until(functools.partial(_is_removed, controller))
        shutil.rmtree(directory / "data", ignore_errors=True)


def _is_removed(cgroup: Path) -> bool:
    """Whether the cgroup could be removed with those below it: only when the kernel has ended what was in them."""
    try:
        for place in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
            place.rmdir()
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _locked_packages() -> Path:
    """A directory with every package of requirements.lock, fetched once for each lock."""
    lock = REPOSITORY / "requirements.lock"
    cache = Path(os.environ.get("BLOCKFERRY_CACHE") or Path.home() / ".cache" / "blockferry")
    kept = cache / f"packages-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not kept.exists():
        unfinished = cache / f"{kept.name}.{os.getpid()}"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet"),
                *("--require-hashes", "--only-binary", ":all:", "--requirement", lock, "--dest", unfinished),
            ],
            stdin=subprocess.DEVNULL,
            timeout=_DEADLINE_S,
            check=True,
        )
        with contextlib.suppress(OSError):  # another one was first
            unfinished.rename(kept)
        shutil.rmtree(unfinished, ignore_errors=True)
    return kept
