"""Commands of the agent at a site with several configuration servers: one that does not answer is no reason to fail."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mobility_agent import doctor, installation_commands
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, read_machine_facts
from mobility_agent.config import AgentSettings, ConfigServerSettings
from mobility_agent.config_server_client import ConfigServerClient
from mobility_agent.core.diagnosis import Verdict
from mobility_agent.installation import install, system
from mobility_agent.installation.install import Wanted
from mobility_agent.installation.places import Tree
from mobility_agent.installation.upgrade import fetch_from_any
from replication.enrolment import enrol_with_any
from replication.errors import NotFound, PeerUnavailable, Refused, SettingsError
from replication.settings import load_settings
from replication.tls_identity import Role, TlsIdentity
from tests.harness.config_site import running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import inventory
from tests.harness.source_tree import REPOSITORY


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Nobody answers there: the port is taken and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"https://127.0.0.1:{taken.getsockname()[1]}"


async def test_enrolment_upgrade_and_doctor_go_to_the_one_that_answers(tmp_path: Path, dead_url: str) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        identity = TlsIdentity(tmp_path / "identity")
        words = (lab.fingerprint, await lab.passphrase(), Role.AGENT, "web-1", "its machine", identity.directory)
        with pytest.raises(PeerUnavailable):
            await enrol_with_any([dead_url], *words)
        with pytest.raises(Refused):
            await enrol_with_any([dead_url, lab.url], "0" * 64, *words[1:])
        name = await enrol_with_any([dead_url, lab.url], *words)
        assert name.role is Role.AGENT
        tls = identity.client_context(Role.CONFIG_SERVER)
        with pytest.raises(NotFound, match="the appliance has no installer"):
            await fetch_from_any([dead_url, lab.url], tls, tmp_path, None)
        settings = AgentSettings(ConfigServerSettings(dead_url, (lab.url,)), state_dir=tmp_path)
        found = [each for each in await doctor._servers(settings, identity) if each.check == "configuration server"]
        assert [each.verdict for each in found] == [Verdict.WARNING, Verdict.OK]
    found = [each for each in await doctor._servers(settings, identity) if each.check == "configuration server"]
    assert [each.verdict for each in found] == [Verdict.FAILED, Verdict.FAILED]


def test_installation_takes_the_other_servers_and_none_of_them_twice() -> None:
    fingerprint = "0" * 64
    wanted = Wanted(
        "https://first.example", fingerprint, None, standbys=("https://second.example", "https://third.example:444")
    )
    assert wanted.standby_urls == ["https://second.example:443", "https://third.example:444"]
    with pytest.raises(SettingsError, match="twice"):
        Wanted("https://first.example", fingerprint, None, standbys=("https://first.example:443",))


class SampleTree(Tree):
    @property
    def sample_configuration(self) -> Path:
        return REPOSITORY / "deploy" / "config" / "agent.yaml"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of this machine's: ``install`` does all that it does but for systemd and the links to the programs.

    Returns the configuration's path.
    """
    configuration = tmp_path / "agent.yaml"
    tree = SampleTree(tmp_path / "tree")

    def settings(kind: type[AgentSettings], path: Path) -> AgentSettings:
        return replace(load_settings(kind, path), state_dir=tmp_path)

    def sample(_tree: Tree) -> None:
        if not configuration.exists():
            configuration.write_bytes(tree.sample_configuration.read_bytes())

    monkeypatch.setattr(install, "CONFIGURATION", configuration)
    monkeypatch.setattr(install, "load_settings", settings)
    monkeypatch.setattr(system, "install_system_files", sample)
    monkeypatch.setattr(system, "use_tree", lambda _tree: None)
    for name in ("reload", "enable_and_start"):
        monkeypatch.setattr(system, name, lambda: None)
    monkeypatch.setattr(installation_commands, "require_own_ground", lambda: None)
    monkeypatch.setattr(installation_commands, "own_tree", lambda: tree)
    return configuration


async def installed(*words: str) -> tuple[int, str]:
    """``mobility-agent install`` with these options; in a thread, as it has a loop of its own."""
    done = await asyncio.to_thread(CliRunner().invoke, installation_commands.install, [*words, "--unattended"])
    return done.exit_code, done.output


async def test_installed_with_a_standby_the_agent_enrols_with_it_and_its_client_asks_it(
    tmp_path: Path, dead_url: str, machine: Path
) -> None:
    async with running_lab(tmp_path / "lab", MemoryBlobClient(), reconcile=False) as lab:
        (tmp_path / "passphrase").write_text(await lab.passphrase())
        site = ("--fingerprint", lab.fingerprint, "--passphrase-file", str(tmp_path / "passphrase"))
        code, said = await installed("--appliance", dead_url, *site)
        assert (code, "cannot reach" in said) == (1, True), said
        os.unlink(machine)
        both = ("--appliance", dead_url, "--standby", lab.url)
        code, said = await installed(*both, *site)
        assert (code, "enrolled as" in said) == (0, True), said
        written = load_settings(AgentSettings, machine)
        assert written.config_server == ConfigServerSettings(dead_url, (lab.url,))
        tls = TlsIdentity(tmp_path / "identity").client_context(Role.CONFIG_SERVER)
        client = ConfigServerClient(written.config_server.urls, tls)
        try:
            facts = read_machine_facts(substitute=tmp_path / MACHINE_ID_FILE)
            told = inventory(facts.hostname).model_copy(update={"machine_fingerprint": facts.fingerprint})
            await client.put_inventory(told)
        finally:
            await client.close()
        assert len((await lab.administer("GET", "/api/v1/servers")).json["items"]) == 1
        code, said = await installed(*both, *site)
        assert (code, "enrolled already" in said, "stays as it is" in said) == (0, True, False), said


async def test_a_configuration_that_is_there_stays_and_what_it_lacks_is_told(
    tmp_path: Path, dead_url: str, machine: Path
) -> None:
    async with running_lab(tmp_path / "lab", MemoryBlobClient(), reconcile=False) as lab:
        (tmp_path / "passphrase").write_text(await lab.passphrase())
        site = ("--fingerprint", lab.fingerprint, "--passphrase-file", str(tmp_path / "passphrase"))
        assert (await installed("--appliance", lab.url, *site))[0] == 0
        before = load_settings(AgentSettings, machine)
        code, said = await installed("--appliance", dead_url, "--standby", lab.url, *site)
        assert (code, f"does not name {dead_url}: add it to config_server.standby_urls" in said) == (0, True), said
        assert load_settings(AgentSettings, machine) == before
        code, said = await installed("--appliance", "https://other.example", "--standby", dead_url, *site)
        assert (code, f"names the configuration server {lab.url}" in said) == (1, True), said
