"""What the agent tells of its surroundings, with which inventory, and how often: process servers that it reaches or not."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mobility_agent import daemon
from mobility_agent.block_device.identity import DiskIdentity
from mobility_agent.block_device.machine_facts import MachineFacts
from mobility_agent.config import AgentSettings
from mobility_agent.desired_memory import DesiredMemory
from mobility_agent.inventory import take_inventory
from mobility_agent.surroundings import look_around
from replication.control_plane import (
    MachineInventory,
    ProcessServerAddress,
)
from replication.identifiers import DiskId
from replication.surroundings import Surroundings
from tests.harness.running_agent import DISK, ConfigServer, agent_settings, running, wish


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentSettings:
    monkeypatch.setattr(daemon, "RETRY_S", 0.01)
    monkeypatch.setattr(daemon, "DISCARD_POLL_S", 0.01)
    return agent_settings(tmp_path)


async def test_what_the_agent_finds_around_it_is_told_at_once_and_again_when_it_changes(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "UNREACHED_INTERVAL_S", 0.05)
    server = ConfigServer()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server.process_servers = [ProcessServerAddress(identifier=str(uuid.uuid4()), url=f"https://127.0.0.1:{port}")]
        async with running(settings, server) as agent:
            await agent.until(lambda: len(server.inventories) >= 2)
            assert server.inventories[0].surroundings is None
            around = server.inventories[1].surroundings
            assert around is not None
            assert around.state.path == str(settings.state_dir)
            assert around.granule_bytes == settings.tracker.granularity_bytes
            assert [reach.result for reach in around.reach] == ["refused"]
            listener.listen()
            await agent.until(lambda: reached_by(server.inventories[-1]) == ["open"])


def reached_by(inventory: MachineInventory) -> list[str]:
    return [] if inventory.surroundings is None else [reach.result for reach in inventory.surroundings.reach]


async def test_the_clock_that_is_told_is_that_of_the_moment_of_telling(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_ns: list[int] = []

    async def look(state_dir: Path, servers: Sequence[ProcessServerAddress]) -> Surroundings:
        found = await look_around(state_dir, servers)
        looked_ns.append(time.time_ns())
        return found

    monkeypatch.setattr(daemon, "look_around", look)
    server = ConfigServer()
    server.process_servers = []
    async with running(settings, server) as agent:
        await agent.until(lambda: len(server.inventories) == 2)
    assert server.inventories[1].clock_unix_ns >= looked_ns[0] > server.inventories[0].clock_unix_ns


async def test_disks_are_not_looked_at_because_a_process_server_stays_out_of_reach(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = Around(monkeypatch)
    server = ConfigServer()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        server.process_servers = [
            ProcessServerAddress(identifier=str(uuid.uuid4()), url=f"https://127.0.0.1:{unused.getsockname()[1]}")
        ]
        async with running(settings, server) as agent:
            await agent.until(lambda: around.looks >= 4)
    assert (around.inventories, len(server.inventories)) == (1, 2)


@pytest.mark.parametrize("protected", [False, True])
async def test_who_knows_no_process_server_asks_again_soon_only_while_nothing_is_protected(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch, *, protected: bool
) -> None:
    around = Around(monkeypatch)
    DesiredMemory(settings.state_dir / "desired.json").take(wish(7, *((DISK,) if protected else ())))
    server = ConfigServer()
    server.process_servers = []
    async with running(settings, server) as agent:
        if protected:
            await agent.until(lambda: len(server.inventories) == 2)
            reported = len(server.observations)
            await agent.until(lambda: len(server.observations) >= reported + 2)
            assert around.inventories == 1
        else:
            await agent.until(lambda: around.inventories >= 4)


class Around:
    """Counts what is asked of the machine while the pause between two looks is short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = self.inventories = 0
        monkeypatch.setattr(daemon, "UNREACHED_INTERVAL_S", 0.01)
        monkeypatch.setattr(daemon, "look_around", self._look)
        monkeypatch.setattr(daemon, "take_inventory", self._take)

    async def _look(self, state_dir: Path, servers: Sequence[ProcessServerAddress]) -> Surroundings:
        self.looks += 1
        return await look_around(state_dir, servers)

    def _take(
        self, facts: MachineFacts, files: Sequence[Path], known: Mapping[DiskId, DiskIdentity] | None = None
    ) -> MachineInventory:
        self.inventories += 1
        return take_inventory(facts, files, known)


async def test_a_configuration_server_that_tells_no_process_servers_is_sent_nothing_that_it_does_not_know(
    settings: AgentSettings,
) -> None:
    server = ConfigServer()
    async with running(settings, server) as agent:
        await agent.until(lambda: len(server.inventories) >= 1 and len(server.observations) >= 2)
        assert b"surroundings" not in server.inventories[0].encode()
        assert len(server.inventories) == 1
