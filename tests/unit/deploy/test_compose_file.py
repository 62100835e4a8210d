"""The compose site: what it names exists, agents cannot reach the sink, nothing is privileged, and no file holds a secret."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import azure_sink.config
import config_server.config
import mobility_agent.config
import process_server.config
from replication.settings import load_settings
from tests.harness.source_tree import REPOSITORY

COMPOSE: Final = REPOSITORY / "deploy" / "compose"
DOCUMENT: Final[dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = DOCUMENT["services"]
PROCESS_SERVERS: Final = ("process-server-1", "process-server-2")
LAB_SERVERS: Final = ("lab-server-1", "lab-server-2")
DAEMONS: Final = ("sink", "config-server", *PROCESS_SERVERS, *LAB_SERVERS)
SETTINGS: Final[dict[str, type[Any]]] = {
    "agent": mobility_agent.config.AgentSettings,
    "azure-sink": azure_sink.config.Settings,
    "config-server": config_server.config.Settings,
    "process-server": process_server.config.Settings,
}
IN_IMAGE: Final = "/usr/lib/blockferry/compose/"


def _networks(service: str) -> set[str]:
    return set(SERVICES[service].get("networks", []))


def _volumes(service: str) -> list[tuple[str, Path]]:
    """(source, place in the container) of each mount."""
    parts = [volume.split(":") for volume in SERVICES[service].get("volumes", [])]
    return [(source, Path(place)) for source, place, *_ in parts]


def test_agents_cannot_reach_the_sink() -> None:
    for server in LAB_SERVERS:
        assert not _networks(server) & _networks("sink")
    assert DOCUMENT["networks"]["store"]["internal"] is True
    assert _networks("sink") == {"store"}
    for appliance in ("config-server", *PROCESS_SERVERS):
        assert _networks(appliance) & _networks("lab-server-1") & _networks("lab-server-2")
        assert _networks(appliance) & _networks("sink")


def test_only_the_preparation_has_capabilities_and_nothing_is_privileged() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "devices", "pid", "ipc", "userns_mode"}, name
        assert ("cap_add" in service) == (name == "prepare")
        if name != "prepare":
            assert not service["user"].startswith(("0", "root")), name
            assert service["read_only"] is True, name


@pytest.mark.parametrize("name", DAEMONS)
def test_daemon_has_a_health_check_of_its_observability_port(name: str) -> None:
    (source,) = [Path(source) for source, place in _volumes(name) if place.parent == Path("/etc/blockferry")]
    settings = load_settings(SETTINGS[source.stem], COMPOSE / source)
    assert SERVICES[name]["healthcheck"]["test"][-1] == settings.observability.listen.rpartition(":")[2]


@pytest.mark.parametrize("name", SETTINGS)
def test_configurations_can_be_used_and_keep_everything_in_volumes(name: str) -> None:
    path = COMPOSE / "config" / f"{name}.yaml"
    load_settings(SETTINGS[name], path)
    service = {"agent": "lab-server-2", "azure-sink": "sink", "process-server": "process-server-2"}.get(name, name)
    mounted = {place for _, place in _volumes(service)}
    for used in map(Path, re.findall(r"/site/[\w./-]+", path.read_text())):
        assert mounted & {used, *used.parents}, f"{service} has no {used}"


def test_every_volume_is_declared_and_given_to_its_owner_by_the_preparation() -> None:
    used = {source for service in SERVICES for source, _ in _volumes(service) if not source.startswith(".")}
    assert used == DOCUMENT["volumes"].keys()
    assert used == {source for source, _ in _volumes("prepare") if not source.startswith(".")}
    script = (COMPOSE / "prepare-site.sh").read_text()
    made = set(re.findall(r"^directory ([\w-]+) ", script, re.MULTILINE))
    for numbered in re.findall(r'^ +directory "([\w$-]+)" ', script, re.MULTILINE):
        made |= {numbered.replace("$number", number) for number in ("1", "2")}
    assert {place.name for source, place in _volumes("prepare") if not source.startswith(".")} == made


def test_volumes_are_at_the_same_place_everywhere() -> None:
    """What is one of two has the same place in each of them: their configuration is one file."""
    places = dict(_volumes("prepare"))
    for service in SERVICES.keys() - {"prepare"}:
        for source, place in _volumes(service):
            if not source.startswith("."):
                common = re.sub(r"-[12]\b", "", str(places[source])).replace("lab-server", "agent")
                assert place == Path(common), f"{source} in {service}"


def test_users_are_those_that_the_preparation_makes_the_volumes_for() -> None:
    script = (COMPOSE / "prepare-site.sh").read_text()
    group = re.search(r"DAEMONS_GROUP:-(\d+)", script)
    numbers = dict(re.findall(r"\$\{(\w+)_USER:-(\d+)\}", script))
    assert group is not None
    users = {"sink": "SINK", "config-server": "CONFIG_SERVER", "operator": "OPERATOR"}
    users |= dict.fromkeys(PROCESS_SERVERS, "PROCESS_SERVER")
    users |= dict.fromkeys((*LAB_SERVERS, "lab-workload-1", "lab-workload-2"), "AGENT")
    for service, user in users.items():
        assert SERVICES[service]["user"] == f"{numbers[user]}:{group[1]}"
    assert len(set(numbers.values())) == len(numbers)


def test_commands_exist() -> None:
    dockerfile = (COMPOSE / "Dockerfile").read_text()
    named = set(re.findall(rf"{IN_IMAGE}([\w.-]+)", (COMPOSE / "compose.yaml").read_text()))
    named |= set(re.findall(rf"{IN_IMAGE}([\w.-]+)", (COMPOSE / "config" / "agent.yaml").read_text()))
    assert {"prepare-site.sh", "healthy.py"} <= named
    for name in named:
        assert (COMPOSE / name).is_file()
        assert f"deploy/compose/{name} " in dockerfile


def test_image_is_built_from_files_that_exist_and_reach_the_builder() -> None:
    lines = (COMPOSE / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    let_through = {
        line.removeprefix("!")
        for line in (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for path in copied:
        assert (REPOSITORY / path).exists(), path
        assert {path, *map(str, Path(path).parents)} & let_through, path
    prepare = SERVICES["prepare"]["build"]
    assert (COMPOSE / prepare["context"]).resolve() == REPOSITORY
    assert (REPOSITORY / prepare["dockerfile"]).is_file()


def test_no_file_holds_a_secret() -> None:
    for path in (path for path in COMPOSE.rglob("*") if path.is_file()):
        text = path.read_text()
        assert not re.search(r"BEGIN [A-Z ]*KEY|[A-Za-z0-9+/]{40,}={0,2}(?![\w.-])", text), path
        assert not re.search(r"(?i)(password|passphrase|secret|token)\s*[:=]\s*[\"']?\w{8}", text), path


def _compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    return None


def test_compose_itself_accepts_the_file() -> None:
    command = _compose_command()
    if command is None:
        pytest.skip("needs docker compose (deploy/setup/debian-packages.txt)")
    done = subprocess.run(
        [*command, "-f", COMPOSE / "compose.yaml", "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert set(DAEMONS) <= resolved["services"].keys()
