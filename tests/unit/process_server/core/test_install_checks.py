"""Whether the agent can be installed, judged by the file systems on which its installer writes; and that the probe looks at just those."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import process_server.remote
from mobility_agent.installation.places import PREFIX
from process_server.core.install_checks import (
    INSTALL_PATHS,
    STATE_BYTES,
    UNPACKED_RATIO,
    NoSpace,
    PortBlocked,
    check_server,
)
from replication.installer_catalogue import Installer
from replication.remote_access import DiscoveredFacts
from replication.surroundings import FreeSpace, Reach, ReachResult
from tests.unit.config_server.test_discovered_readiness import PROBED

INSTALLER = Installer(
    file="blockferry-agent-1.0.0-x86_64.run",
    version="1.0.0",
    architecture="x86_64",
    oldest_glibc="2.17",
    size_bytes=50 * 2**20,
    sha256="a" * 64,
)
NEEDED = INSTALLER.size_bytes * UNPACKED_RATIO + STATE_BYTES


@pytest.mark.parametrize("path", INSTALL_PATHS)
def test_file_system_on_which_the_agent_is_installed_must_have_room(path: str) -> None:
    for free, enough in ((NEEDED, True), (NEEDED - 1, False)):
        facts = PROBED.model_copy(update={"free": [FreeSpace(path=path, free_bytes=free)]})
        if enough:
            check_server(facts, INSTALLER)
        else:
            with pytest.raises(NoSpace, match=path):
                check_server(facts, INSTALLER)


def reaching(first: ReachResult, second: ReachResult, data: ReachResult = "open") -> DiscoveredFacts:
    """The server reaches two configuration servers and the process server so."""
    control = [
        Reach(service="configuration server", host=host, port=443, result=result)
        for host, result in (("first", first), ("second", second))
    ]
    reach = [*control, Reach(service="process server", host="ps", port=9443, result=data)]
    return PROBED.model_copy(update={"reach": reach})


def test_of_the_configuration_servers_one_is_enough_and_the_other_is_a_warning() -> None:
    assert check_server(reaching("open", "open"), INSTALLER) == []
    assert check_server(reaching("untested", "untested"), INSTALLER) == []
    [warning] = check_server(reaching("refused", "open"), INSTALLER)
    assert warning == "the server does not reach the configuration server at first port 443: refused"
    [warning] = check_server(reaching("open", "timed-out"), INSTALLER)
    assert "at second port 443: timed out" in warning


def test_without_any_configuration_server_or_without_the_process_server_nothing_is_installed() -> None:
    with pytest.raises(PortBlocked) as caught:
        check_server(reaching("refused", "timed-out"), INSTALLER)
    assert "first port 443: refused nor the configuration server at second port 443: timed out" in caught.value.message
    assert "to first port 443 or second port 443 pass the firewall" in (caught.value.hint or "")
    with pytest.raises(PortBlocked, match="the process server at ps port 9443: refused") as caught:
        check_server(reaching("refused", "open", "refused"), INSTALLER)
    assert "first" not in caught.value.message
    assert caught.value.hint == "let TCP from the server to ps port 9443 pass the firewall"


def test_probe_looks_where_the_agent_is_installed() -> None:
    assert str(PREFIX.parent) in INSTALL_PATHS
    script = Path(process_server.remote.__file__).with_name("probe.sh")
    said = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True, timeout=60).stdout
    spaces = [line.removeprefix("space=").split() for line in said.splitlines() if line.startswith("space=")]
    assert tuple(path for path, _ in spaces) == INSTALL_PATHS
    assert all(kibibytes.isdigit() for _, kibibytes in spaces)
