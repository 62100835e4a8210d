"""Whether the agent can be installed, judged by the file systems on which its installer writes; and that the probe looks at just those."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import process_server.remote
from mobility_agent.installation.places import PREFIX
from process_server.core.install_checks import INSTALL_PATHS, STATE_BYTES, UNPACKED_RATIO, NoSpace, check_server
from replication.installer_catalogue import Installer
from replication.surroundings import FreeSpace
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


def test_probe_looks_where_the_agent_is_installed() -> None:
    assert str(PREFIX.parent) in INSTALL_PATHS
    script = Path(process_server.remote.__file__).with_name("probe.sh")
    said = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True, timeout=60).stdout
    spaces = [line.removeprefix("space=").split() for line in said.splitlines() if line.startswith("space=")]
    assert tuple(path for path, _ in spaces) == INSTALL_PATHS
    assert all(kibibytes.isdigit() for _, kibibytes in spaces)
