"""Limits that are given with the installation: in the configuration from the first start on, and never past an edited one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mobility_agent.config import AgentSettings, LimitsSettings
from mobility_agent.installation import install
from mobility_agent.installation.install import Wanted
from mobility_agent.installation.places import Tree
from mobility_agent.installation_commands import install as install_command
from replication.errors import Conflict
from replication.settings import load_settings
from tests.harness.source_tree import REPOSITORY

FINGERPRINT = ":".join(["AB"] * 32)
LIMITS = LimitsSettings(read_bytes_per_s=100_000_000, cpu_cores=0.5, memory_bytes=2**28)


class SampleTree(Tree):
    @property
    def sample_configuration(self) -> Path:
        return REPOSITORY / "deploy" / "config" / "agent.yaml"


def wanted(limits: LimitsSettings = LIMITS) -> Wanted:
    return Wanted("https://appliance.example", FINGERPRINT, None, limits)


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the installation has put it: the sample."""
    path = tmp_path / "agent.yaml"
    path.write_bytes(SampleTree(tmp_path).sample_configuration.read_bytes())
    monkeypatch.setattr(install, "CONFIGURATION", path)
    return path


def write(limits: LimitsSettings = LIMITS) -> None:
    tree = SampleTree(Path("/nowhere"))
    install._check_configuration(tree, wanted(limits))
    install._write_configuration(tree, wanted(limits))


def test_the_configuration_that_is_written_has_them_and_the_installation_may_be_repeated(configuration: Path) -> None:
    write()
    assert load_settings(AgentSettings, configuration).limits == LIMITS
    write()
    write(LimitsSettings())
    assert load_settings(AgentSettings, configuration).limits == LIMITS


def test_an_edited_configuration_is_not_overridden(configuration: Path) -> None:
    write()
    edited = yaml.safe_load(configuration.read_text())
    edited["limits"]["cpu_cores"] = 2.0
    configuration.write_text(yaml.safe_dump(edited))
    with pytest.raises(Conflict, match="other limits"):
        write()
    assert load_settings(AgentSettings, configuration).limits.cpu_cores == 2.0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--read-rate", "800 Mbps", "--read-rate"),
        ("--cpu-limit", "0", "cpu_cores"),
        ("--memory-limit", "64MiB", "136 MiB"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_done(option: str, value: str, says: str) -> None:
    done = CliRunner().invoke(install_command, [option, value, "--unattended"])
    assert done.exit_code != 0
    assert says in done.output
