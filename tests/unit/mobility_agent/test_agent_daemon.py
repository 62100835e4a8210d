"""The agent's composition root where something is wrong: not enrolled, a second agent, no configuration server, a full disk, a defect."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import uuid
from pathlib import Path

import pytest

from mobility_agent import daemon
from mobility_agent.block_device.listing import describe_disk
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, MachineFacts, read_machine_facts
from mobility_agent.config import AgentSettings, ConfigServerSettings, LimitsSettings
from mobility_agent.desired_memory import DesiredMemory
from mobility_agent.installation.uninstall import STATE_ENTRIES, remove_state
from mobility_agent.protection.item_session import ItemSession
from mobility_agent.quiesce.freeze_guard import FreezeGuard
from mobility_agent.shipping.process_server_client import ProcessServerClient
from mobility_agent.sole_agent import hold_machine
from mobility_agent.unprotected_disks import UnprotectedDisks
from replication.agent_limits import AgentLimits
from replication.churn_profile import ProfileOrder
from replication.control_plane import (
    AgentDesired,
    MachineInventory,
    ProcessServerAddress,
)
from replication.errors import PeerUnavailable, Refused, Retryable, SettingsError
from replication.service.health import HealthState
from replication.service.runtime import Lifecycle
from replication.tls_identity import Role, TlsIdentity
from tests.harness.impostor import listening_impostor
from tests.harness.running_agent import DISK, ConfigServer, agent_settings, running, wish
from tests.harness.tls import LabAuthority


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentSettings:
    monkeypatch.setattr(daemon, "RETRY_S", 0.01)
    monkeypatch.setattr(daemon, "DISCARD_POLL_S", 0.01)
    return agent_settings(tmp_path)


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


async def test_what_was_left_frozen_is_thawed_before_anything_is_written(
    settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state directory may lie on it: a start that wrote there would wait for the thaw, and the thaw for it."""
    done: list[str] = []
    first = daemon._lock_state(settings.state_dir)
    monkeypatch.setattr(FreezeGuard, "thaw_left", lambda _: done.append("thawed"))
    monkeypatch.setattr(TlsIdentity, "settle", lambda _: done.append("settled"))
    monkeypatch.setattr(daemon, "make_state_directory", lambda _: done.append("made"))
    try:
        with pytest.raises(SettingsError, match="another agent runs on it"):
            await daemon.run(settings, Lifecycle())
    finally:
        os.close(first)
    assert done == ["thawed", "settled", "made"]


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
