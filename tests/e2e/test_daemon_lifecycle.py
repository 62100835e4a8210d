"""The life of each daemon as a real process in a small site: configuration, start, readiness, health, metrics, logs, stop."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.demo.daemon_process import RunningProcess
from deploy.demo.site import DAEMONS, Site
from replication import __version__
from tests.harness.notify_socket import Notification, NotifySocket, notify_socket
from tests.harness.source_tree import REPOSITORY

CONFIG: Final = REPOSITORY / "deploy" / "config"
SAMPLES: Final = {name: CONFIG / f"{name.removeprefix('mobility-')}.yaml" for name in DAEMONS}
MODULES: Final = {
    script: entry.partition(":")[0].removesuffix(".__main__")
    for script, entry in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"].items()
}
RUN: Final = {"azure-sink": "all"}
"""Where the command that runs the daemon is not called ``run``."""

ENROLLING: Final = ("process-server", "mobility-agent")

START_S: Final = 120.0
"""Generous: tests share the machine."""
STOP_S: Final = 10.0
WATCHDOG_S: Final = 1.0
DISK_BYTES: Final = 8 * 2**20


def _command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", MODULES[name], *map(str, arguments)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=START_S)


# -- before anything runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DAEMONS, "migratectl"])
def test_program_tells_its_version(name: str) -> None:
    done = _command(name, "--version")
    assert (done.returncode, done.stdout) == (0, f"{name}, version {__version__}\n")


def _sample_under(name: str, directory: Path) -> Path:
    """The sample with all its paths under ``directory``, where nothing is: a check touches nothing."""
    text = SAMPLES[name].read_text()
    for path in ("/etc/blockferry", "/var/lib/blockferry"):
        text = text.replace(path, f"{directory}{path}")
    adapted = directory / SAMPLES[name].name
    adapted.write_text(text)
    return adapted


@pytest.mark.parametrize("name", DAEMONS)
def test_sample_passes_check_config(name: str, tmp_path: Path) -> None:
    sample = _sample_under(name, tmp_path)
    done = _command(name, RUN.get(name, "run"), "--config", sample, "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sample}: the configuration can be used\n", "")
    assert os.listdir(tmp_path) == [sample.name]


@pytest.mark.parametrize("name", DAEMONS)
def test_daemon_needs_no_command(name: str, tmp_path: Path) -> None:
    sample = _sample_under(name, tmp_path)
    done = _command(name, "--config", sample, "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sample}: the configuration can be used\n", "")


@pytest.mark.parametrize("name", DAEMONS)
def test_options_before_the_command_count_for_it(name: str, tmp_path: Path) -> None:
    sample = _sample_under(name, tmp_path)
    done = _command(name, "--check-config", "--config", sample, RUN.get(name, "run"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sample}: the configuration can be used\n", "")


def test_options_before_a_command_that_does_not_take_them_are_refused(tmp_path: Path) -> None:
    sample = _sample_under("config-server", tmp_path)
    done = _command("config-server", "--check-config", "--config", sample, "show-fingerprint")
    assert done.returncode == 2
    assert "--check-config means nothing to the command show-fingerprint" in done.stderr


@pytest.mark.parametrize("name", DAEMONS)
def test_unknown_key_fails_check_config_with_the_nearest_known_one(name: str) -> None:
    daemon = name.removeprefix("mobility-")
    invalid = CONFIG / "invalid" / f"{daemon}-unknown-key.yaml"
    done = _command(name, RUN.get(name, "run"), "--config", invalid, "--check-config")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot use unknown key ")
    assert "\nhint:  did you mean " in done.stderr


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config-server", "config-server init"),
        ("process-server", "process-server enrol"),
        ("mobility-agent", "mobility-agent enrol"),
    ],
)
def test_daemon_without_identity_says_how_it_gets_one(name: str, remedy: str, tmp_path: Path) -> None:
    sample = _sample_under(name, tmp_path)
    sample.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", sample.read_text()))
    key = tmp_path / "etc" / "blockferry" / "store.key"
    key.parent.mkdir(parents=True)
    key.write_bytes(base64.b64encode(bytes(32)))
    done = _command(name, "run", "--config", sample)
    assert done.returncode == 2
    assert remedy in done.stderr


# -- a life -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """What was seen of one daemon from its start to its end."""

    process_id: int
    notifications: list[Notification]
    health: dict[str, Any]
    metrics: str
    exit_code: int
    stop_s: float
    log: str


def _get(site: Site, name: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.daemons[name].health_port}{path}", timeout=START_S) as answer:
        content: bytes = answer.read()
    return content


def _start(site: Site, name: str, manager: NotifySocket) -> list[Notification]:
    daemon = site.daemons[name]
    manages = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            daemon.command,
            cwd=REPOSITORY,
            env={**os.environ, **manages},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        return manager.wait_for("READY=1", daemon.process.pid, START_S)
    except TimeoutError as error:
        raise AssertionError(f"{name} did not become ready:\n{site.tail(name)}") from error


def _process(site: Site, name: str) -> RunningProcess:
    process = site.daemons[name].process
    assert process is not None
    return process


def _look_at_and_end(site: Site, name: str, manager: NotifySocket, starting: list[Notification]) -> Life:
    process = _process(site, name)
    alive = manager.wait_for("WATCHDOG=1", process.pid, START_S)
    health, metrics = json.loads(_get(site, name, "/healthz")), _get(site, name, "/metrics").decode()
    process.terminate()
    began_s = time.monotonic()
    exit_code = process.wait(START_S)
    stop_s = time.monotonic() - began_s
    stopping = manager.wait_for("STOPPING=1", process.pid, 1.0)
    log = site.daemons[name].log.read_text()
    return Life(process.pid, [*starting, *alive, *stopping], health, metrics, exit_code, stop_s, log)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Life]:
    """All four daemons started in order, looked at together, ended in the reverse order."""
    directory = tmp_path_factory.mktemp("site")
    disk = directory / "disk.img"
    disk.write_bytes(bytes(DISK_BYTES))
    site = Site(directory, disk_files=(disk,), tracker="scan")
    starting = {}
    with notify_socket(directory / "notify") as manager:
        try:
            site.install()
            for name in DAEMONS:
                if name in ENROLLING:
                    site.enrol(name, site.passphrase(name))
                starting[name] = _start(site, name, manager)
            return {name: _look_at_and_end(site, name, manager, starting[name]) for name in reversed(DAEMONS)}
        finally:
            site.stop_all()


@pytest.mark.parametrize("name", DAEMONS)
def test_service_manager_hears_of_each_step_from_the_main_process(lives: dict[str, Life], name: str) -> None:
    texts = [each.text for each in lives[name].notifications if each.process_id == lives[name].process_id]
    assert texts.count("READY=1") == 1
    assert texts[-1] == "STOPPING=1"
    assert set(texts) == {"READY=1", "WATCHDOG=1", "STOPPING=1"}


@pytest.mark.parametrize("name", DAEMONS)
def test_health_is_told_with_its_checks(lives: dict[str, Life], name: str) -> None:
    health = lives[name].health
    assert health["status"] in ("ok", "degraded")
    assert all(check["reason"] for check in health["checks"] if check["status"] != "ok")


@pytest.mark.parametrize("name", DAEMONS)
def test_metrics_are_the_process_own_and_the_daemons(lives: dict[str, Life], name: str) -> None:
    families = {family.name for family in text_string_to_metric_families(lives[name].metrics)}
    assert "process_resident_memory_bytes" in families
    assert {family for family in families if family.startswith("blockferry_")}


@pytest.mark.parametrize("name", DAEMONS)
def test_sigterm_ends_the_daemon_in_time_and_without_an_error(lives: dict[str, Life], name: str) -> None:
    assert lives[name].exit_code == 0, lives[name].log[-4000:]
    assert lives[name].stop_s <= STOP_S


@pytest.mark.parametrize("name", DAEMONS)
def test_log_is_one_json_object_a_line_when_not_on_a_terminal(lives: dict[str, Life], name: str) -> None:
    entries = [json.loads(line) for line in lives[name].log.splitlines()]
    assert {"ready", "stopping"} <= {entry["message"] for entry in entries}
    assert all({"time", "level", "daemon", "logger", "message"} <= entry.keys() for entry in entries)
    assert {entry["daemon"] for entry in entries} == {name}
    assert not [entry for entry in entries if entry["level"] == "error"]
