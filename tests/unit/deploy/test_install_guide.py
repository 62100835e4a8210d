"""docs/operations/install.md against the product: its configurations can be used, its paths, roles and units exist.

The commands of every page for operators are parsed by the programs themselves.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

import azure_sink.cli
import azure_sink.config
import config_server.cli
import config_server.config
import config_server.migratectl.cli
import mobility_agent.cli
import mobility_agent.config
import process_server.cli
import process_server.config
from mobility_agent.config import DEFAULT_STATE_DIR
from replication.settings import load_settings
from tests.harness.source_tree import REPOSITORY
from tests.harness.systemd_units import AGENT, PROGRAMS, SERVICES

OPERATIONS: Final = sorted((REPOSITORY / "docs" / "operations").glob("*.md"))
PAGES: Final = sorted([*OPERATIONS, *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"])
PAGE: Final = (REPOSITORY / "docs" / "operations" / "install.md").read_text()
SETTINGS: Final[dict[str, type[Any]]] = {
    "agent": mobility_agent.config.AgentSettings,
    "azure-sink": azure_sink.config.Settings,
    "config-server": config_server.config.Settings,
    "process-server": process_server.config.Settings,
}
COMMANDS: Final[dict[str, click.Command]] = {
    "azure-sink": azure_sink.cli.main,
    "config-server": config_server.cli.main,
    "migratectl": config_server.migratectl.cli.main,
    "mobility-agent": mobility_agent.cli.main,
    "process-server": process_server.cli.main,
}
CONFIGURATIONS: Final[dict[str, str]] = dict(
    re.findall(r"/etc/blockferry/([\w-]+)\.yaml`[^\n]*:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
)


def test_every_daemon_gets_a_configuration() -> None:
    assert CONFIGURATIONS.keys() == SETTINGS.keys()


@pytest.mark.parametrize("daemon", SETTINGS)
def test_configuration_of_the_guide_can_be_used(daemon: str, tmp_path: Path) -> None:
    path = tmp_path / f"{daemon}.yaml"
    path.write_text(CONFIGURATIONS[daemon])
    load_settings(SETTINGS[daemon], path)


def test_all_who_use_the_store_name_it_alike() -> None:
    sink = yaml.safe_load(CONFIGURATIONS["azure-sink"])
    assert "store" not in sink["writer"]  # it works on the store of its own process
    stores = [yaml.safe_load(CONFIGURATIONS[daemon])["store"] for daemon in ("config-server", "process-server")]
    assert all(store == stores[0] for store in stores)
    assert (stores[0]["account"], stores[0]["key_file"]) == (sink["blob"]["account"], sink["blob"]["key_file"])


def test_names_of_certificates_are_those_that_are_connected_to() -> None:
    names = yaml.safe_load(CONFIGURATIONS["config-server"])["names"]
    for daemon in ("agent", "process-server"):
        assert yaml.safe_load(CONFIGURATIONS[daemon])["config_server"]["url"] in {f"https://{name}" for name in names}
    store = yaml.safe_load(CONFIGURATIONS["config-server"])["store"]["url"]
    assert [store.split("/")[2]] == re.findall(r"issue-certificate --dns (\S+)", PAGE)


def test_roles_units_and_directories_exist() -> None:
    roles = {role for line in re.findall(r"install\.sh ([a-z][a-z -]*)$", PAGE, re.MULTILINE) for role in line.split()}
    assert {f"blockferry-{role}.service" for role in roles} == SERVICES.keys()
    units = {f"{unit}.service" for unit in re.findall(r"systemctl \w+ --now (blockferry-[\w-]+)", PAGE)}
    assert units == SERVICES.keys()
    of_servers = {unit.one("StateDirectory") for unit in SERVICES.values() if unit is not AGENT}
    of_agent = str(DEFAULT_STATE_DIR.relative_to("/var/lib"))
    assert set(re.findall(r"/var/lib/(blockferry/[\w-]+)", PAGE)) == {of_agent, *of_servers}
    assert f"python3 -m venv {Path(PROGRAMS).parent}" in PAGE


def _command_lines(page: str) -> list[list[str]]:
    """The lines of indented code that call one of our programs, as words; pipes, redirections and comments cut off."""
    text = re.sub(r"\$\([^)]*\)", "VALUE", page)
    found = re.findall(rf"^ {{4,}}(?:as )?((?:{'|'.join(COMMANDS)}) .*)$", text, re.MULTILINE)
    return [shlex.split(re.split(r" [>|&]", line)[0], comments=True) for line in found]


@pytest.mark.parametrize("path", OPERATIONS, ids=lambda path: path.stem)
def test_commands_of_the_operators_pages_parse(path: Path) -> None:
    for program, *words in _command_lines(path.read_text()):
        command, context, rest = COMMANDS[program], click.Context(COMMANDS[program], info_name=program), words
        while isinstance(command, click.Group) and (rest or not command.invoke_without_command):
            name, found, rest = command.resolve_command(context, rest)
            assert found is not None, name
            command, context = found, click.Context(found, parent=context)
        command.parse_args(context, list(rest))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_and_options_named_in_a_sentence_exist(path: Path) -> None:
    for code in re.findall(rf"`((?:{'|'.join(COMMANDS)}) [^`]*)`", path.read_text()):
        program, *words = code.split()
        command: click.Command = COMMANDS[program]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for word in words:
            if isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z-]+", word):
                found = command.commands.get(word)
                if found is None and command.invoke_without_command:
                    break
                assert found is not None, f"`{code}`: there is no {word}"
                command = found
                options |= {name for parameter in command.params for name in parameter.opts}
            elif word.startswith("--"):
                name = re.split(r"[=,.;:]", word)[0]
                assert name in options, f"`{code}`: there is no {name}"


def test_guide_calls_every_program() -> None:
    assert {words[0] for words in _command_lines(PAGE)} == COMMANDS.keys()
