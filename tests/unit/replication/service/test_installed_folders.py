"""The list of folders for virus scanners: what the daemons use by default, and what their configurations say."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import azure_sink.config
import azure_sink.replica_writer.settings
import config_server.config
import mobility_agent.config
import process_server.config
from mobility_agent.quiesce.freeze_record import RUN_DIRECTORY
from replication.remote_access import INSTALLATIONS_DIRECTORY
from replication.service.installed_folders import installed_folders
from tests.harness.documentation import program_commands
from tests.harness.source_tree import REPOSITORY
from tests.harness.systemd_units import PROGRAMS

SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]


def test_defaults_are_those_of_the_daemons(tmp_path: Path) -> None:
    listed = {Path(folder.path) for folder in installed_folders(tmp_path)}
    used = {
        mobility_agent.config.DEFAULT_STATE_DIR,
        mobility_agent.config.DEFAULT_PIN_ROOT,
        config_server.config.DEFAULT_STATE_DIR,
        process_server.config.DEFAULT_STATE_DIR,
        azure_sink.config.DEFAULT_BLOB_STATE_DIR,
        Path(mobility_agent.config.DEFAULT_CONFIG_PATH).parent,
        Path(PROGRAMS).parent,
        Path(INSTALLATIONS_DIRECTORY),
        RUN_DIRECTORY,
    }
    assert used <= listed


def test_configured_places_replace_the_defaults_and_damage_does_not_hide_the_list(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("state_dir: /srv/agent\ntracker: {pin_root: /srv/pins}\nunknown: 1\n")
    (tmp_path / "process-server.yaml").write_text("state_dir: [")
    (tmp_path / "azure-sink.yaml").write_text("blob: text\n")
    found = {(folder.role, folder.path) for folder in installed_folders(tmp_path)}
    assert {("agent", "/srv/agent"), ("agent", "/srv/pins")} <= found
    assert ("process-server", "/var/lib/blockferry/process-server") in found
    assert ("azure-sink", "/var/lib/blockferry/azure-sink/blob") in found


@pytest.mark.parametrize("program", sorted(SCRIPTS.keys() - {"migratectl"}))
def test_every_daemon_prints_the_list(program: str) -> None:
    assert (program, "paths") in {command.words for command in program_commands(program, SCRIPTS[program])}


@pytest.mark.parametrize(
    ("program", "content", "folder"),
    [
        ("mobility-agent", "state_dir: /srv/agent\n", "/srv/agent"),
        ("config-server", "state_dir: /srv/config\n", "/srv/config"),
        ("process-server", "state_dir: /srv/process\n", "/srv/process"),
        ("azure-sink", "blob: {state_dir: /srv/blob}\n", "/srv/blob"),
    ],
)
def test_another_configuration_of_the_program_is_looked_at(
    program: str, content: str, folder: str, tmp_path: Path
) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(content)
    module, _, name = SCRIPTS[program].partition(":")
    main = getattr(importlib.import_module(module), name)
    for words in (["paths", "--config", str(file), "--json"], ["--config", str(file), "paths", "--json"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        assert folder in {each["path"] for each in json.loads(result.output)}


@pytest.mark.parametrize("content", [None, "state_dir: ["])
def test_a_configuration_that_is_named_and_cannot_be_read_is_an_error(content: str | None, tmp_path: Path) -> None:
    from mobility_agent.cli import main  # noqa: PLC0415  # one of the four

    file = tmp_path / "other.yaml"
    if content is not None:
        file.write_text(content)
    result = CliRunner().invoke(main, ["paths", "--config", str(file)])
    assert (result.exit_code, f"cannot read {file}" in result.output) == (2, True)


def test_list_is_printed_for_people_and_for_scripts() -> None:
    from mobility_agent.cli import main  # noqa: PLC0415  # one of the four

    answer = json.loads(CliRunner().invoke(main, ["paths", "--json"]).output)
    assert {each["role"] for each in answer} == {"all", "agent", "azure-sink", "config-server", "process-server"}
    text = CliRunner().invoke(main, ["paths"]).output
    assert all(each["path"] in text for each in answer)
