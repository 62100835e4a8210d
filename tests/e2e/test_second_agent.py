"""R11 on one machine: an agent on a copy of another's state directory is refused at start; the first one goes on, and may be succeeded."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.demo.operator import Json, wait_until
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, read_machine_facts
from mobility_agent.config_server_client import ConfigServerClient
from replication.control_plane import AgentObservation
from replication.errors import Refused
from replication.tls_identity import Role, TlsIdentity
from tests.harness.running_site import RunningSite, running_site
from tests.harness.scripted_peers import new_id

MIB = 2**20
DISK_BYTES = 8 * MIB

pytestmark = [pytest.mark.heavy("sites with two agents of one identity"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    """For both tests: the first leaves the agent running, the last one kills it."""
    directory = tmp_path_factory.mktemp("second-agent")
    disk = directory / "disk.img"
    disk.write_bytes(os.urandom(DISK_BYTES))
    with running_site(directory / "site", disk_files=(disk,), tracker="scan") as running:
        yield running


def _copied_configuration(site: RunningSite, to: Path) -> Path:
    """Of an agent on a copy of the state directory, taken while the first one runs; its metrics listen elsewhere."""
    original = site.site.directory / "mobility-agent"
    shutil.copytree(original / "state", to / "state")
    settings = yaml.safe_load((original / "config.yaml").read_text())
    settings["state_dir"] = str(to / "state")
    settings["observability"] = {"listen": "127.0.0.1:0"}
    path = to / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _run_agent(site: RunningSite, configuration: Path) -> subprocess.CompletedProcess[str]:
    command = site.site.command("mobility-agent", "run", "--config", configuration)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_two_agents_that_report_in_turn_are_an_event_and_the_superseded_one_says_that_it_is_refused(
    site: RunningSite,
) -> None:
    """The second one is on a machine of its own, as far as the kernel can tell; it has the identity and says the same of its hardware."""
    state = site.site.directory / "mobility-agent" / "state"
    identity = TlsIdentity(state / "identity")
    observation = AgentObservation(
        agent_version="copy",
        machine_fingerprint=read_machine_facts(substitute=state / MACHINE_ID_FILE).fingerprint,
        incarnation=new_id(),
        revision=0,
        disks=[],
    )

    async def report() -> None:
        client = ConfigServerClient(site.site.config_url, identity.client_context(Role.CONFIG_SERVER))
        try:
            await client.post_observation(observation)
        finally:
            await client.close()

    asyncio.run(report())

    def event() -> Json | None:
        asyncio.run(report())  # never refused: it was started last
        found = site.operator.get("/events?kind=second-incarnation")["items"]
        return found[0] if found else None

    said = wait_until("the event", event, 90.0)
    assert "another agent reports as" in said["message"]
    wait_until(
        "the refused agent says so",
        lambda: {} if "refuses this agent" in site.site.tail("mobility-agent", 50) else None,
        30.0,
    )
    site.site.stop("mobility-agent")
    site.site.start("mobility-agent")

    def refused() -> Json | None:
        try:
            asyncio.run(report())
        except Refused as error:
            return {"error": str(error)}
        return None

    told = wait_until("the copy is refused once the agent was restarted", refused, 30.0)
    assert "another agent reports as" in told["error"]


def test_an_agent_on_a_copy_of_the_state_is_refused_while_the_first_one_runs_and_takes_over_once_it_is_dead(
    site: RunningSite, tmp_path: Path
) -> None:
    (disk,) = site.site.disk_files
    site.protect(disk)
    copy = _copied_configuration(site, tmp_path / "copy")
    first = site.site.daemons["mobility-agent"].process
    assert first is not None
    second = _run_agent(site, copy)
    assert second.returncode == 2, second.stderr
    assert f"process {first.pid} of user {os.getuid()} is an agent with this machine's identity" in second.stderr
    assert "remove its state directory and enrol it anew" in second.stderr
    assert first.poll() is None
    site.site.kill("mobility-agent")
    successor = subprocess.Popen(
        site.site.command("mobility-agent", "run", "--config", copy),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    name = f"@blockferry-agent/machine/{TlsIdentity(tmp_path / 'copy' / 'state' / 'identity').name().identifier}"
    try:
        wait_until("the successor runs", lambda: {} if name in Path("/proc/net/unix").read_text() else None, 60.0)
        again = _run_agent(site, site.site.directory / "mobility-agent" / "config.yaml")
        assert again.returncode == 2, again.stderr
        assert f"process {successor.pid} of user" in again.stderr
    finally:
        successor.kill()
        successor.communicate()
