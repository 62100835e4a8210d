"""The site of deploy/compose on a real container engine: up, protect, a process server killed, a network cut, migrate, the bits compared.

Called by pytest; slow (it builds the image and waits for health checks), so it begins early (``tests/conftest.py``). Nothing is reached
outside: see ``tests/harness/container_engine.py``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.container_engine import BASE_IMAGE, ContainerEngine, container_engine
from tests.harness.documented_commands import documented, words
from tests.harness.source_tree import REPOSITORY

PATIENCE_S: Final = 120.0
HASH: Final = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"
CONNECT: Final = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
UP, *BY_OPERATORS, STOP, DOWN = documented("docs/operations/install.md", "A whole site in containers, to try it")
STORE: Final = (
    *("--endpoint", "https://sink/blockferry", "--account", "blockferry"),
    *("--key-file", "/site/store/store.key", "--ca-file", "/site/store/authorities.pem"),
)


class ComposeSite:
    """The site, by the commands of docs/operations/install.md."""

    def __init__(self, engine: ContainerEngine, tree: Path) -> None:
        self._engine = engine
        self._file = tree / "deploy" / "compose" / "compose.yaml"

    def compose(self, *words: str) -> str:
        return self._engine.run("docker-compose", "--file", self._file, *words)

    def as_documented(self, command: str) -> str:
        """A command of the page: by the engine that the test has, and without a terminal."""
        docker, compose, option, file, *rest = words(command)
        assert (docker, compose, option, file) == ("docker", "compose", "-f", "deploy/compose/compose.yaml"), command
        return self.compose(*(["run", "-T", *rest[1:]] if rest[0] == "run" else rest))

    def operator(self, *words: str) -> str:
        return self.compose("run", "--rm", "-T", "operator", *words)

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).strip()

    def docker(self, *words: str) -> str:
        return self._engine.docker(*words)

    def python(self, service: str, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self._engine.attempt("docker", "exec", self.container(service), "python", "-c", program, *words)

    def status(self, server: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.operator("status", server, "--json"))["items"][0]
        return status

    def await_status(self, server: str, **wanted: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while {name: (status := self.status(server))[name] for name in wanted} != wanted:
            assert time.monotonic() < until_s, f"{server} never came to {wanted}: {json.dumps(status, indent=1)}"

    def migrate(self, server: str) -> str:
        """Stop its workload, cut it over; returns the SHA-256 of the source and of the exported disk, which must be one."""
        self.as_documented(STOP.replace("workload-1", f"workload-{server[-1]}"))
        assert "identity: proved" in self.operator("migrate", server, "--wait")
        source = self.python(server, HASH, "/site/lab-disk/disk.img").stdout.strip()
        exported = self.docker(
            *("exec", "--user", "0", self.container("sink"), "azure-sink", "export", *STORE),
            *("--raw", "--sha256", f"disks/{server}-disk1", "/tmp/exported.raw"),
        )
        assert len(source) == 64
        assert source in exported
        self.docker("exec", "--user", "0", self.container("sink"), "rm", "/tmp/exported.raw")
        return source


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeSite]:
    tree = tmp_path_factory.mktemp("tree")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for name in tracked.rstrip("\0").split("\0"):
        if (REPOSITORY / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tree / name)
    with container_engine(tmp_path_factory.mktemp("containers") / "engine") as engine:
        engine.make_base_image()
        engine.environment["BASE_IMAGE"] = BASE_IMAGE
        made = ComposeSite(engine, tree)
        made.as_documented(UP)
        yield made
        made.as_documented(DOWN)
        assert engine.docker("ps", "--all", "--quiet") == ""
        assert engine.docker("volume", "ls", "--quiet") == ""


@pytest.mark.heavy("a whole site in containers, image built")
@pytest.mark.requires("root", "mount", "debootstrap", "unshare", "dockerd", "docker-compose")
@pytest.mark.timeout(900)
def test_servers_in_containers_are_migrated_through_a_killed_process_server_and_a_cut_network(
    site: ComposeSite,
) -> None:
    # No way from a server to the sink, by name or by address; the way to the appliance is there.
    addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    sink_address = site.docker("inspect", "--format", addresses, site.container("sink")).strip()
    assert site.python("config-server", CONNECT, sink_address, "443").returncode == 0
    for server in ("lab-server-1", "lab-server-2"):
        assert site.python(server, CONNECT, "config-server", "443").returncode == 0
        assert site.python(server, CONNECT, "sink", "443").returncode != 0
        assert site.python(server, CONNECT, sink_address, "443").returncode != 0

    # What an unprivileged container cannot do is said, and replaced by what it can.
    assert "only scan" in site.operator("check", "lab-server-1")
    for command in BY_OPERATORS:
        site.as_documented(command)
    site.operator("protect", "lab-server-2", "--wait")
    for server in ("lab-server-1", "lab-server-2"):
        assert site.status(server)["disks"][0]["observation"]["tracker_kind"] == "scan"

    # A process server dies for good: its items go on.
    serving = site.status("lab-server-1")["process_server"]["hostname"]
    site.docker("kill", site.container(serving))
    site.operator("create-recovery-point", "lab-server-1", "--wait")
    assert site.status("lab-server-1")["process_server"]["hostname"] != serving

    # A server loses its network, is written to meanwhile, and goes on where it was.
    generation = site.status("lab-server-2")["disks"][0]["observation"]["generation"]
    network = "site_servers"
    site.docker("network", "disconnect", network, site.container("lab-server-2"))
    site.await_status("lab-server-2", going="DISCONNECTED")
    site.docker("network", "connect", network, site.container("lab-server-2"))
    site.operator("create-recovery-point", "lab-server-2", "--wait")
    assert site.status("lab-server-2")["disks"][0]["observation"]["generation"] == generation

    assert site.migrate("lab-server-1") != site.migrate("lab-server-2")
