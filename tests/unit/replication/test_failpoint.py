"""Failpoints kill at the N-th hit, and only a process that was started for it; places in the code and the register are the same."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from typing import Final

import pytest

from replication.failpoint import ENVIRONMENT, FAILPOINTS
from tests.harness.source_tree import DAEMONS, REPOSITORY, SourceTree

DAEMON: Final = "process-server"
NAME: Final = "process.batch.durable"
PROGRAM: Final = """
import os, sys
from replication.failpoint import arm_from_environment, reached
from replication.service.logs import configure_logging
configure_logging("process-server", log_format="text", level="error")
arm_from_environment("process-server")
os.environ.setdefault("BLOCKFERRY_FAILPOINT", "process.batch.durable")
for hit in range(1, 4):
    reached("process.batch.appended")
    reached("process.batch.durable")
    print("passed", hit, flush=True)
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in (ENVIRONMENT, "NOTIFY_SOCKET")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | variables,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_process_that_was_not_started_for_it_cannot_be_armed_later() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["passed 1", "passed 2", "passed 3"]
    assert done.stderr == ""


@pytest.mark.parametrize(("wanted", "passed"), [(NAME, 0), (f"{NAME}:1", 0), (f"{NAME}:3", 2)])
def test_an_armed_process_says_so_and_kills_itself_at_the_nth_hit(wanted: str, passed: int) -> None:
    done = run(**{ENVIRONMENT: wanted})
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines() == [f"passed {hit}" for hit in range(1, passed + 1)]
    assert "THIS PROCESS WILL KILL ITSELF" in done.stderr
    assert f"failpoint {NAME} reached" in done.stderr


@pytest.mark.parametrize("wanted", ["", "process.batch", "sink.epoch.begun", f"{NAME}:0", f"{NAME}:x", f"{NAME}:-1"])
def test_a_name_that_the_daemon_does_not_have_is_refused(wanted: str) -> None:
    done = run(**{ENVIRONMENT: wanted})
    assert done.returncode == 1
    assert "has no such failpoint" in done.stderr
    assert done.stdout == ""


def test_a_service_refuses_to_run_with_a_failpoint() -> None:
    done = run(**{ENVIRONMENT: NAME, "NOTIFY_SOCKET": "/run/systemd/notify"})
    assert done.returncode == 1
    assert "as a service" in done.stderr


def test_every_place_is_registered_for_its_daemon_and_every_name_has_a_place() -> None:
    found: dict[str, set[str]] = {daemon: set() for daemon in FAILPOINTS}
    shared: set[str] = set()
    for module in SourceTree.of_repository().modules.values():
        if module.package not in (*DAEMONS, "replication"):
            continue
        names = _reached_in(module.syntax)
        assert max(names.values(), default=1) <= 2, f"{module.path}: two places may share a name, not more"
        if module.package == "replication":
            shared |= set(names)
        else:
            found[module.package.replace("_", "-")] |= set(names)
    listed = {daemon: set(points) for daemon, points in FAILPOINTS.items()}
    assert found == {daemon: points - shared for daemon, points in listed.items()}
    assert shared <= set().union(*listed.values()), "nobody comes by"


def _reached_in(tree: ast.Module) -> Counter[str]:
    """A place is a statement of its own with a literal: nothing is computed for it."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reached":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant)
            names[str(argument.value)] += 1
    return names


def test_nothing_that_is_deployed_arms_a_failpoint() -> None:
    mentions = [path for path, text in SourceTree.of_repository().files.items() if re.search(ENVIRONMENT, text)]
    deployed = [path for path in mentions if path.startswith(("deploy/", "Makefile", *DAEMONS))]
    assert deployed == []
