"""Commands of the agent at a site with several configuration servers: one that does not answer is no reason to fail."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent import doctor
from mobility_agent.config import AgentSettings, ConfigServerSettings
from mobility_agent.core.diagnosis import Verdict
from mobility_agent.installation.install import Wanted
from mobility_agent.installation.upgrade import fetch_from_any
from replication.enrolment import enrol_with_any
from replication.errors import NotFound, PeerUnavailable, Refused, SettingsError
from replication.tls_identity import Role, TlsIdentity
from tests.harness.config_site import running_lab
from tests.harness.memory_blob_client import MemoryBlobClient


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
