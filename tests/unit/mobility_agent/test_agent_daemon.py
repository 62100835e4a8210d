"""The agent's composition root where something is wrong: not enrolled, a second agent, no configuration server, a full disk, a defect."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mobility_agent import daemon
from mobility_agent.block_device.identity import DiskIdentity
from mobility_agent.block_device.listing import describe_disk
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, MachineFacts, read_machine_facts
from mobility_agent.config import AgentSettings, ConfigServerSettings, LimitsSettings, TrackerSettings
from mobility_agent.daemon import Agent
from mobility_agent.desired_memory import DesiredMemory
from mobility_agent.installation.uninstall import STATE_ENTRIES, remove_state
from mobility_agent.inventory import take_inventory
from mobility_agent.protection.item_session import ItemSession
from mobility_agent.shipping.process_server_client import ProcessServerClient
from mobility_agent.sole_agent import hold_machine
from mobility_agent.surroundings import look_around
from mobility_agent.unprotected_disks import UnprotectedDisks
from replication.agent_limits import AgentLimits, ObservationAnswer
from replication.churn_profile import ProfileOrder
from replication.control_plane import (
    AgentDesired,
    AgentObservation,
    DesiredItem,
    EnrolmentAnswer,
    InventoryAnswer,
    MachineInventory,
    ProcessServerAddress,
    RenewalRequest,
    ReplicationTiming,
)
from replication.errors import PeerUnavailable, Refused, Retryable, SettingsError
from replication.identifiers import DiskId
from replication.service.health import HealthState
from replication.service.observability import ObservabilitySettings
from replication.service.runtime import Lifecycle
from replication.surroundings import Surroundings
from replication.tls_identity import Role, TlsIdentity
from tests.harness.impostor import listening_impostor
from tests.harness.tls import LabAuthority

DISK = "22222222-2222-4222-8222-222222222222"


class ConfigServer:
    """In place of the agent's client of it: says ``desired`` once, or that it is away."""

    def __init__(self) -> None:
        self.is_away = False
        self.news: list[AgentDesired] = []
        self.observations: list[AgentObservation] = []
        self.inventories: list[MachineInventory] = []
        self.process_servers: list[ProcessServerAddress] | None = None
        """None: it is from before it told them."""
        self.contexts: list[ssl.SSLContext] = []
        self.limits: AgentLimits | None = None
        """None: it is from before there were limits."""

    def _answer(self) -> None:
        if self.is_away:
            raise PeerUnavailable("cannot reach the configuration server")

    async def put_inventory(self, inventory: MachineInventory) -> InventoryAnswer | None:
        self._answer()
        self.inventories.append(inventory)
        return None if self.process_servers is None else InventoryAnswer(process_servers=self.process_servers)

    async def post_observation(self, observation: AgentObservation) -> ObservationAnswer | None:
        self._answer()
        self.observations.append(observation)
        return None if self.limits is None else ObservationAnswer(limits=self.limits)

    async def desired(self, _: int, wait_s: float) -> AgentDesired | None:
        self._answer()
        if self.news:
            return self.news.pop(0)
        await asyncio.sleep(0.01)
        return None

    async def renew_certificate(self, _: RenewalRequest) -> EnrolmentAnswer:
        raise PeerUnavailable("cannot renew a certificate: there is no authority")

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        self.contexts.append(tls)

    async def close(self) -> None:
        return None


def wish(revision: int, *disks: str, reached: bool = False) -> AgentDesired:
    """:param reached: there is a process server; it does not answer."""
    address = ProcessServerAddress(identifier=str(uuid.uuid4()), url="https://127.0.0.1:1") if reached else None
    item = DesiredItem(
        item=str(uuid.uuid4()), disks=list(disks), goal="replicate", timing=ReplicationTiming(), process_server=address
    )
    return AgentDesired(revision=revision, item=item if disks else None)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentSettings:
    monkeypatch.setattr(daemon, "RETRY_S", 0.01)
    monkeypatch.setattr(daemon, "DISCARD_POLL_S", 0.01)
    made = AgentSettings(
        config_server=ConfigServerSettings("https://127.0.0.1:1"),
        state_dir=tmp_path / "state",
        heartbeat_s=0.5,
        keep_unprotected_s=0.0,
        tracker=TrackerSettings(kind="scan", pin_root=tmp_path / "pins"),
        observability=ObservabilitySettings(listen="127.0.0.1:0"),
    )
    LabAuthority().issue(Role.AGENT, str(uuid.uuid4()), made.identity_dir)
    return made


class Running:
    def __init__(self, agent: Agent, server: ConfigServer, task: asyncio.Task[None]) -> None:
        self.agent, self.server, self.task = agent, server, task

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                if self.task.done():
                    await self.task
                await asyncio.sleep(0.005)

    def health(self, check: str) -> HealthState | None:
        return next((each.state for each in self.agent._board.checks if each.name == check), None)


@asynccontextmanager
async def running(settings: AgentSettings, server: ConfigServer) -> AsyncIterator[Running]:
    lifecycle = Lifecycle()
    with contextlib.ExitStack() as held:
        agent = Agent(settings, TlsIdentity(settings.identity_dir), held)
        await agent._control.close()
        agent._control = server  # type: ignore[assignment]  # the same calls
        task = asyncio.create_task(agent.run(lifecycle))
        try:
            yield Running(agent, server, task)
        finally:
            lifecycle.request_stop()
            await asyncio.wait([task])


async def test_another_certificate_is_used_for_what_begins_from_then_on(settings: AgentSettings) -> None:
    server = ConfigServer()
    async with running(settings, server) as agent:
        uplink_tls = agent.agent._uplink_tls
        await agent.agent._adopt_certificate()
        assert len(server.contexts) == 1
        assert agent.agent._uplink_tls is not uplink_tls


async def test_an_agent_that_is_not_enrolled_says_what_to_do(tmp_path: Path) -> None:
    settings = AgentSettings(config_server=ConfigServerSettings("https://x"), state_dir=tmp_path)
    with pytest.raises(SettingsError) as raised:
        await daemon.run(settings, Lifecycle())
    assert raised.value.hint is not None
    assert "enrol" in raised.value.hint


async def test_a_second_agent_on_the_same_state_is_refused(settings: AgentSettings) -> None:
    first = daemon._lock_state(settings.state_dir)
    try:
        with pytest.raises(SettingsError, match="another agent runs on it"):
            await daemon.run(settings, Lifecycle())
    finally:
        os.close(first)


async def test_a_second_agent_on_a_copy_of_the_state_is_refused(settings: AgentSettings, tmp_path: Path) -> None:
    copied = dataclasses.replace(settings, state_dir=tmp_path / "copy")
    shutil.copytree(settings.state_dir, copied.state_dir)
    with (
        hold_machine(TlsIdentity(settings.identity_dir).name().identifier),
        pytest.raises(SettingsError, match="an agent with this machine's identity"),
    ):
        await daemon.run(copied, Lifecycle())


async def test_each_start_is_an_incarnation_of_its_own_that_every_report_names(settings: AgentSettings) -> None:

    async def reported() -> str | None:
        server = ConfigServer()
        async with running(settings, server) as agent:
            await agent.until(lambda: len(server.observations) > 1)
        (incarnation,) = {observation.incarnation for observation in server.observations}
        return incarnation

    first, second = await reported(), await reported()
    assert None not in (first, second)
    assert first != second


async def test_limits_that_are_told_with_an_answer_are_obeyed_reported_and_remembered(settings: AgentSettings) -> None:
    server, slow = ConfigServer(), AgentLimits(read_bytes_per_s=5_000_000, cpu_cores=0.5)
    file = dataclasses.replace(settings, limits=LimitsSettings(cpu_cores=0.25, memory_bytes=2**28))
    async with running(file, server) as agent:
        await agent.until(lambda: bool(server.observations))
        assert agent.agent._pace.cpu_cores == 0.25
        server.limits = slow
        await agent.until(
            lambda: server.observations[-1].limits is not None and server.observations[-1].limits.told == slow
        )
        seen = server.observations[-1].limits
        assert seen is not None
        assert (seen.read_bytes_per_s, seen.cpu_cores, seen.memory_bytes) == (5_000_000, 0.25, 2**28)
        await agent.until((settings.state_dir / "limits.json").exists)
    server.is_away = True
    async with running(settings, server) as agent:
        assert (agent.agent._pace.read_bytes_per_s, agent.agent._pace.cpu_cores) == (5_000_000, 0.5)


async def test_what_it_keeps_is_what_uninstall_removes_and_nothing_else_goes(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def facts_without_machine_id(*, substitute: Path) -> MachineFacts:
        return read_machine_facts(tmp_path / "no-machine-id", substitute=substitute)

    disk_file = tmp_path / "disk.img"
    disk_file.write_bytes(bytes(2**20))
    facts = read_machine_facts(tmp_path / "no-machine-id", substitute=settings.state_dir / MACHINE_ID_FILE)
    disk = describe_disk(disk_file, facts.machine_id)
    server = ConfigServer()
    server.limits, server.news = AgentLimits(cpu_cores=0.5), [wish(1, disk.disk, reached=True)]
    monkeypatch.setattr(daemon, "read_machine_facts", facts_without_machine_id)
    monkeypatch.setattr(daemon, "ConfigServerClient", lambda *_: server)
    lifecycle = Lifecycle()
    agent = asyncio.create_task(daemon.run(dataclasses.replace(settings, disk_files=(disk_file,)), lifecycle))
    async with asyncio.timeout(20):
        while not {*STATE_ENTRIES, "limits.json"} <= {path.name for path in settings.state_dir.iterdir()}:
            await asyncio.sleep(0.005)
    lifecycle.request_stop()
    await agent
    assert {path.name for path in settings.state_dir.iterdir()} == set(STATE_ENTRIES)
    for leftover in ("limits.json.new", "of-others"):
        (settings.state_dir / leftover).touch()
    said: list[str] = []
    remove_state(settings.state_dir, said.append)
    assert [path.name for path in settings.state_dir.iterdir()] == ["of-others"]
    assert "of-others" in said[0]
    (settings.state_dir / "of-others").unlink()
    remove_state(settings.state_dir, said.append)
    assert not settings.state_dir.exists()


async def test_a_configuration_server_from_before_there_were_limits_is_reported_to_as_ever(
    settings: AgentSettings,
) -> None:
    server = ConfigServer()
    async with running(settings, server) as agent:
        await agent.until(lambda: len(server.observations) > 1)
        assert agent.health("config-server") is HealthState.OK
    assert not any(b'"limits"' in observation.encode() for observation in server.observations)


async def test_without_a_configuration_server_it_runs_on_what_it_remembers(settings: AgentSettings) -> None:
    DesiredMemory(settings.state_dir / "desired.json").take(wish(7, DISK))
    server = ConfigServer()
    server.is_away = True
    async with running(settings, server) as agent:
        await agent.until(lambda: agent.health("config-server") is HealthState.DEGRADED)
        assert agent.agent._item is not None
        assert list(agent.agent._item.supervisors) == [DISK]
        server.is_away = False
        await agent.until(lambda: agent.health("config-server") is HealthState.OK and bool(server.inventories))
        assert server.observations[-1].revision == 7


async def test_what_is_not_protected_any_more_is_discarded_on_the_server_s_word_only(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = settings.state_dir / "disks" / DISK
    kept.mkdir(parents=True)
    DesiredMemory(settings.state_dir / "desired.json").take(wish(7))
    asked: list[bool] = []
    real = UnprotectedDisks.discard_due

    def discard_due(disks: UnprotectedDisks, wanted: set[str], *, may_destroy: bool, now_s: float) -> None:
        asked.append(may_destroy)
        real(disks, wanted, may_destroy=may_destroy, now_s=now_s)

    monkeypatch.setattr(UnprotectedDisks, "discard_due", discard_due)
    server = ConfigServer()
    server.is_away = True
    async with running(settings, server) as agent:
        await agent.until(lambda: len(asked) > 3)
        assert kept.is_dir()
        assert not any(asked)
        server.is_away = False
        await agent.until(lambda: not kept.exists())


async def test_a_wish_that_cannot_be_written_is_obeyed_all_the_same(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ConfigServer()
    server.news = [wish(3, DISK)]
    real = DesiredMemory.take

    def take(memory: DesiredMemory, desired: AgentDesired) -> None:
        real(memory, desired)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DesiredMemory, "take", take)
    async with running(settings, server) as agent:
        await agent.until(lambda: agent.agent._item is not None)
        await agent.until(lambda: any(each.revision == 3 for each in server.observations))


async def test_an_item_that_is_not_desired_any_more_is_forgotten_with_its_health(settings: AgentSettings) -> None:
    server = ConfigServer()
    server.news = [wish(3, DISK)]
    async with running(settings, server) as agent:
        await agent.until(lambda: agent.health(f"disk {DISK}") is not None)
        server.news = [wish(4)]
        await agent.until(lambda: agent.agent._item is None and agent.health(f"disk {DISK}") is None)


async def test_the_agent_ships_to_the_process_server_that_it_was_assigned_and_to_no_other_at_its_address(
    settings: AgentSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Exception] = []

    async def run(_: ItemSession, uplink: ProcessServerClient) -> None:
        with pytest.raises(PeerUnavailable) as raised:
            await uplink.hello()
        outcomes.append(raised.value)
        await asyncio.Event().wait()

    monkeypatch.setattr(ItemSession, "run", run)
    authority, assigned, other = LabAuthority(), str(uuid.uuid4()), str(uuid.uuid4())
    authority.issue(Role.AGENT, str(uuid.uuid4()), settings.identity_dir)

    def assign(revision: int, identifier: str, url: str) -> AgentDesired:
        desired = wish(revision, DISK)
        assert desired.item is not None
        address = ProcessServerAddress(identifier=identifier, url=url)
        return desired.model_copy(update={"item": desired.item.model_copy(update={"process_server": address})})

    server = ConfigServer()
    async with (
        listening_impostor(authority.issue(Role.PROCESS_SERVER, other, tmp_path / "ps")) as peer,
        running(settings, server) as agent,
    ):
        server.news.append(assign(1, assigned, peer.url))
        await agent.until(lambda: len(outcomes) == 1)
        await peer.conversations_ended()
        assert (peer.handshakes, bytes(peer.heard)) == (0, b"")
        assert f"cannot take urn:blockferry:process-server:{other} for the process-server {assigned}" in str(
            outcomes[0]
        )
        server.news.append(assign(2, other, peer.url))
        await agent.until(lambda: len(outcomes) == 2)
        assert peer.heard.startswith(b"GET /v1/hello ")


async def test_a_peer_that_asks_for_patience_is_not_asked_in_a_busy_loop(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, calls = ConfigServer(), 0

    async def desired(_: int, wait_s: float) -> AgentDesired | None:
        nonlocal calls
        calls += 1
        raise Retryable("cannot answer now", retry_after_s=0.0)

    monkeypatch.setattr(server, "desired", desired)
    async with running(settings, server) as agent:
        await agent.until(lambda: len(server.observations) > 0)
        await asyncio.sleep(0.1)
    assert calls < 50


async def test_a_defect_ends_the_agent_instead_of_leaving_a_part_of_it_dead(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> MachineInventory:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(daemon, "take_inventory", defect)
    async with running(settings, ConfigServer()) as agent:
        await asyncio.wait([agent.task], timeout=20)
        assert isinstance(agent.task.exception(), BaseExceptionGroup)


def test_without_the_privilege_to_lock_memory_points_without_a_freeze_still_have_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> None:
        raise Refused("cannot lock memory")

    monkeypatch.setattr(daemon, "LockedBuffer", refuse)
    assert daemon._reserve(8192).nbytes == 8192


async def test_what_somebody_may_wait_for_is_reported_at_once_and_the_rest_at_the_heartbeat(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "MIN_REPORT_GAP_S", 0.001)
    seldom = dataclasses.replace(settings, heartbeat_s=300.0)
    server = ConfigServer()
    async with running(seldom, server) as site:
        await site.until(lambda: len(server.observations) == 1)
        server.news.append(wish(7, DISK))
        await site.until(lambda: server.observations[-1].revision == 7)
        reported = len(server.observations)
        site.agent._changes.tell()  # nothing that is worth a report
        await asyncio.sleep(0)
        assert len(server.observations) == reported
        server.news.append(wish(8))
        await site.until(lambda: server.observations[-1].revision == 8)


async def test_churn_is_measured_on_the_server_s_word_and_reported_with_the_heartbeat(settings: AgentSettings) -> None:
    order = ProfileOrder(request=str(uuid.uuid4()), disks=[str(uuid.uuid4())], duration_s=60)
    server = ConfigServer()
    server.news.append(AgentDesired(revision=8, item=None, profile=order))
    async with running(settings, server) as agent:
        await agent.until(lambda: bool(server.observations) and server.observations[-1].profile is not None)
        await agent.until(
            lambda: (seen := server.observations[-1].profile) is not None and seen.disks[0].state == "failed"
        )
        seen = server.observations[-1].profile
        assert seen is not None
        assert seen.request == order.request
        assert seen.disks[0].problem  # there is no such disk
        server.news.append(AgentDesired(revision=9, item=None))
        await agent.until(lambda: server.observations[-1].profile is None)


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
