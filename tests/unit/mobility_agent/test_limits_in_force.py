"""Limits in force: of two the lower one, by the hour, remembered over a restart, and what is shown of them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mobility_agent.core.limits_now import LimitsNow, both, limits_at
from mobility_agent.limits_in_force import FILE_NAME, LimitsInForce, open_memory
from mobility_agent.pace import Pace
from replication.agent_limits import (
    MIN_CPU_CORES,
    MIN_READ_BYTES_PER_S,
    NO_AGENT_LIMITS,
    AgentLimits,
    LimitedHours,
    agent_limits_text,
)
from replication.service.observability import make_registry
from tests.harness.process_time import START_UNIX_NS, in_virtual_time, virtual_clock

MB = 10**6
HALF_A_CORE = AgentLimits(cpu_cores=0.5)
FAST, SLOW = AgentLimits(read_bytes_per_s=200 * MB), AgentLimits(read_bytes_per_s=50 * MB)


def in_hours(start: str, end: str, zone: str = "UTC", **limits: float) -> AgentLimits:
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    hours = LimitedHours.model_validate({"days": days, "start": start, "end": end, "time_zone": zone, **limits})
    return AgentLimits(read_bytes_per_s=500 * MB, work_hours=hours)


class Rig:
    def __init__(self, directory: Path, file: AgentLimits = NO_AGENT_LIMITS, memory_bytes: int | None = None) -> None:
        clock = virtual_clock()
        self.pace = Pace(clock, lambda: 0.0)
        self.memory = open_memory(directory)
        self.writes = 0
        self.limits = LimitsInForce(
            file,
            self.memory,
            self.pace,
            clock,
            memory_bytes=memory_bytes,
            cpu_s=lambda: 0.0,
            note_write=self._note_write,
        )

    def _note_write(self) -> None:
        self.writes += 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.limits.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def held(self) -> tuple[float | None, float | None]:
        return self.pace.read_bytes_per_s, self.pace.cpu_cores


@in_virtual_time
async def test_of_two_limits_the_lower_counts_for_each_resource_by_itself(tmp_path: Path) -> None:
    rig = Rig(tmp_path, FAST)
    assert rig.held() == (200 * MB, None)
    rig.limits.tell(AgentLimits(read_bytes_per_s=300 * MB, cpu_cores=0.5))
    assert rig.held() == (200 * MB, 0.5)
    rig.limits.tell(SLOW)
    assert rig.held() == (50 * MB, None)
    rig.limits.tell(NO_AGENT_LIMITS)
    assert rig.held() == (200 * MB, None)


@in_virtual_time
async def test_what_was_told_holds_after_a_restart_before_anybody_answers(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running():
        rig.limits.tell(SLOW)
        while rig.memory.limits != SLOW:
            await asyncio.sleep(0.1)
        assert rig.writes == 1
        rig.limits.tell(SLOW)
        await asyncio.sleep(10)
        assert rig.writes == 1, "what is known already is not written again"
    assert Rig(tmp_path).held() == (50 * MB, None)


@in_virtual_time
async def test_that_there_never_were_limits_is_neither_written_nor_shown(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running():
        rig.limits.tell(NO_AGENT_LIMITS)
        await asyncio.sleep(10)
    assert not (tmp_path / FILE_NAME).exists()
    assert rig.limits.observe() is None


@in_virtual_time
async def test_what_was_remembered_and_cannot_be_read_is_not_no_limit(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"read_bytes_per_s": nu')
    rig = Rig(tmp_path)
    assert rig.held() == (MIN_READ_BYTES_PER_S, MIN_CPU_CORES)
    observed = rig.limits.observe()
    assert observed is not None
    assert observed.problem is not None
    rig.limits.tell(NO_AGENT_LIMITS)
    assert rig.held() == (None, None)
    async with rig.running():
        await asyncio.sleep(1)
    assert Rig(tmp_path).held() == (None, None)


@in_virtual_time
async def test_a_disk_that_takes_nothing_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    real = rig.memory.remember

    def refuse(_: AgentLimits) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rig.memory, "remember", refuse)
    async with rig.running():
        rig.limits.tell(SLOW)
        await asyncio.sleep(1)
        assert rig.held() == (50 * MB, None)
        assert "No space left" in str(rig.limits.problem)
        monkeypatch.setattr(rig.memory, "remember", real)
        await asyncio.sleep(10)
        assert rig.limits.problem is None
    assert Rig(tmp_path).held() == (50 * MB, None)


@in_virtual_time
async def test_the_hour_changes_the_limit_without_anybody_telling(tmp_path: Path) -> None:
    noon = dt.datetime.fromtimestamp(START_UNIX_NS / 1e9, dt.UTC)
    begin, end = noon + dt.timedelta(minutes=2), noon + dt.timedelta(minutes=62)
    rig = Rig(tmp_path)
    rig.limits.tell(in_hours(f"{begin:%H:%M}", f"{end:%H:%M}", read_bytes_per_s=100 * MB, cpu_cores=0.5))
    async with rig.running():
        assert rig.held() == (500 * MB, None)
        await asyncio.sleep(130)
        assert rig.held() == (100 * MB, 0.5)
        observed = rig.limits.observe()
        assert observed is not None
        assert observed.work_hours
        assert observed.changes_in_s == pytest.approx(3600, abs=70)
        await asyncio.sleep(3660)
        assert rig.held() == (500 * MB, None)


@in_virtual_time
async def test_a_zone_that_only_this_server_does_not_know_has_the_lower_limits_at_all_hours(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.limits.tell(in_hours("08:00", "18:00", zone="Mars/Olympus", cpu_cores=0.5))
    assert rig.held() == (500 * MB, 0.5)
    assert "Mars/Olympus" in str(rig.limits.problem)


@in_virtual_time
async def test_configured_and_measured_are_shown_side_by_side(tmp_path: Path) -> None:
    rig = Rig(tmp_path, FAST, memory_bytes=256 * 2**20)
    rig.limits.observe()
    await asyncio.sleep(10)
    rig.pace.note_read(1000 * MB)
    observed = rig.limits.observe()
    assert observed is not None
    assert observed.measured_read_bytes_per_s == pytest.approx(100 * MB)
    assert (observed.read_bytes_per_s, observed.memory_bytes) == (200 * MB, 256 * 2**20)
    assert (observed.file, observed.told) == (FAST, None)
    registry = make_registry()
    registry.register(rig.limits)
    assert registry.get_sample_value("blockferry_agent_read_limit_bytes_per_second") == 200 * MB
    assert registry.get_sample_value("blockferry_agent_cpu_limit_cores") is None
    assert registry.get_sample_value("blockferry_agent_read_bytes_total") == 1000 * MB


def test_which_limits_hold_changes_when_either_does() -> None:
    first = LimitsNow(5 * MB, None, work_hours=False, until_unix_s=10.0)
    second = LimitsNow(None, 0.5, work_hours=True, until_unix_s=7.0)
    assert both(first, second) == LimitsNow(5 * MB, 0.5, work_hours=True, until_unix_s=7.0)
    assert limits_at(HALF_A_CORE, None, 0.0) == LimitsNow(None, 0.5, work_hours=False, until_unix_s=None)


def test_limits_are_told_in_one_line() -> None:
    assert agent_limits_text(NO_AGENT_LIMITS) == "no limit"
    assert agent_limits_text(AgentLimits(read_bytes_per_s=1_500_000, cpu_cores=1.0)) == "reading 1.5 MB/s, CPU 1 core"
    text = agent_limits_text(in_hours("08:00", "18:00", cpu_cores=0.5))
    assert text == "mon-sun 08:00-18:00 UTC: CPU 0.5 cores; else: reading 500 MB/s"
