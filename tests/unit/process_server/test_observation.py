"""What the process server says of itself: each trouble has a check with its reason, and its end ends it."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from process_server.core.backlog import Backlog
from process_server.core.spool_budget import SpoolBudget, SpoolUse
from process_server.intake.back_pressure import BackPressure
from process_server.metrics import ProcessServerMetrics
from process_server.observation import DAMAGE_SHOWN_S, HANGS_AFTER_S, Observation
from process_server.spool.files import FileSystemSpace
from process_server.throttle import Throttle
from replication.errors import BlockferryError, IntegrityError, Overloaded, PeerUnavailable, Retryable
from replication.service.health import HealthBoard, HealthState
from tests.harness.process_time import in_virtual_time, virtual_clock

MIB = 2**20


@dataclasses.dataclass
class FakeSpool:
    budget: SpoolBudget = dataclasses.field(default_factory=lambda: SpoolBudget(100 * MIB))
    use: SpoolUse = SpoolUse(0, 0)  # noqa: RUF009 - a constant
    problem: BlockferryError | None = None
    group_under_way: int | None = None
    file_count: int = 1
    available: int | None = 2**40

    async def space(self) -> FileSystemSpace:
        if self.available is None:
            raise Retryable("cannot ask for the spool's free space")
        return FileSystemSpace(2**41, self.available)


_LOAD = SimpleNamespace(
    cpu_fraction=lambda: 0.25, memory_fraction=lambda: 0.5, cpu_count=lambda: 4, memory_bytes=lambda: 8 * 10**9
)


class Rig:
    def __init__(self) -> None:
        clock = virtual_clock()
        self.board, self.spool = HealthBoard(), FakeSpool()
        self.gate = SimpleNamespace(problem=None)
        self.uploader = SimpleNamespace(blob_problem=None, damaged_at_s=None)
        self.courier = SimpleNamespace(problem=None)
        self.clock = clock
        self.throttle = Throttle(None, clock)
        self.pressure = BackPressure(self.spool.budget, lambda: self.spool.use, lambda: 0.0, clock)
        self.registry = CollectorRegistry()
        self.pressed_s = 0.0
        self.arena = SimpleNamespace(pressed_for_s=lambda _now_s: self.pressed_s, slow_machines=lambda _now_s: 7)
        self.observation = Observation(
            "https://ps:9443",
            Backlog(),
            cast("Any", self.spool),
            cast("Any", SimpleNamespace(in_flight=0, threads_per_machine=4)),
            cast("Any", self.uploader),
            cast("Any", self.courier),
            cast("Any", self.gate),
            self.throttle,
            self.pressure,
            cast("Any", SimpleNamespace(effective_threads=4, in_force=lambda: None)),
            cast("Any", SimpleNamespace(seen_lately=list)),
            ProcessServerMetrics(self.registry),
            self.board,
            clock,
            cast("Any", _LOAD),
            cast("Any", self.arena),
        )

    def health(self, name: str) -> tuple[HealthState, str]:
        self.observation.refresh()
        return next((check.state, check.reason) for check in self.board.checks if check.name == name)

    def figure(self, name: str) -> float:
        return self.registry.get_sample_value(f"blockferry_process_server_{name}") or 0.0

    def state(self, name: str) -> HealthState:
        return self.health(name)[0]


@in_virtual_time
async def test_a_quiet_process_server_is_healthy() -> None:
    rig = Rig()
    for name in ("spool", "upload", "spool-content", "intake"):
        assert rig.state(name) is HealthState.OK


@in_virtual_time
async def test_an_intake_that_turns_agents_away_for_long_is_degraded() -> None:
    rig = Rig()
    rig.pressed_s = 299.0
    assert rig.state("intake") is HealthState.OK
    rig.pressed_s = 300.0
    state, reason = rig.health("intake")
    assert state is HealthState.DEGRADED
    assert "7 are on slow lines" in reason
    assert (rig.figure("intake_pressed_seconds"), rig.figure("intake_slow_machines")) == (300.0, 7.0)
    rig.pressed_s = 0.0
    assert rig.state("intake") is HealthState.OK


@in_virtual_time
async def test_a_spool_that_fills_up_is_degraded() -> None:
    rig = Rig()
    rig.spool.use = SpoolUse(81 * MIB, 0)
    state, reason = rig.health("spool")
    assert state is HealthState.DEGRADED
    assert "batches are accepted at" in reason
    assert rig.figure("intake_limit_bytes_per_second") > 0
    await rig.pressure.admit(2**17)
    await rig.pressure.admit(1)
    rig.spool.use = SpoolUse(79 * MIB, 0)
    assert rig.state("spool") is HealthState.OK
    assert rig.figure("intake_limit_bytes_per_second") == 0
    assert rig.figure("intake_waited_seconds_total") == pytest.approx(rig.pressure.waited_s) != 0


@in_virtual_time
async def test_what_the_file_system_has_left_slows_down_as_what_the_spool_has_left() -> None:
    rig = Rig()
    rig.spool.available = 10 * MIB
    assert rig.state("spool") is HealthState.OK, "nobody has looked yet"
    await rig.observation.observe()
    assert rig.state("spool") is HealthState.DEGRADED


@in_virtual_time
async def test_a_full_file_system_degrades_and_a_failing_disk_fails_until_they_are_over() -> None:
    rig = Rig()
    for problem, state in (
        (Overloaded("cannot write to the spool: the spool's file system is full"), HealthState.DEGRADED),
        (Retryable("cannot make the spool durable: Input/output error"), HealthState.FAILED),
    ):
        rig.spool.problem = problem
        assert rig.health("spool") == (state, str(problem))
        rig.spool.problem = None
        assert rig.state("spool") is HealthState.OK


@in_virtual_time
async def test_a_disk_that_does_not_answer_is_noticed_and_one_that_is_only_busy_is_not() -> None:
    rig = Rig()
    for group in range(60):
        rig.spool.group_under_way = group
        assert rig.state("spool") is HealthState.OK
        await asyncio.sleep(1)
    assert rig.state("spool") is HealthState.OK
    await asyncio.sleep(HANGS_AFTER_S)
    state, reason = rig.health("spool")
    assert state is HealthState.FAILED
    assert "has not answered" in reason
    rig.spool.group_under_way = None
    assert rig.state("spool") is HealthState.OK


@in_virtual_time
async def test_whatever_holds_up_uploads_is_said() -> None:
    for part in ("gate", "uploader", "courier"):
        rig = Rig()
        attribute = "blob_problem" if part == "uploader" else "problem"
        error = PeerUnavailable(f"cannot reach the store, says the {part}")
        setattr(getattr(rig, part), attribute, error)
        assert rig.health("upload") == (HealthState.DEGRADED, str(error))
        problem = (await rig.observation.observe()).upload_problem
        assert problem is not None
        assert (problem.code, problem.message) == (error.code, error.message)
        setattr(getattr(rig, part), attribute, None)
        assert rig.state("upload") is HealthState.OK


@in_virtual_time
async def test_damage_is_shown_for_an_hour_and_what_a_start_has_lost_for_as_long_as_it_runs() -> None:
    rig = Rig()
    rig.uploader.damaged_at_s = rig.clock.monotonic_s()
    assert rig.state("spool-content") is HealthState.DEGRADED
    await asyncio.sleep(DAMAGE_SHOWN_S)
    assert rig.state("spool-content") is HealthState.OK
    rig.observation.lost_at_start = IntegrityError("cannot read 3 acknowledged records of the spool any more")
    await asyncio.sleep(DAMAGE_SHOWN_S)
    assert "3 acknowledged" in rig.health("spool-content")[1]


@in_virtual_time
async def test_the_observation_says_what_is_free_and_nothing_where_the_disk_does_not_say() -> None:
    rig = Rig()
    rig.spool.use = SpoolUse(50 * MIB, 0)
    seen = await rig.observation.observe()
    assert (seen.spool_free_fraction, seen.spool_used_bytes) == (0.5, 50 * MIB)
    assert (seen.cpu_fraction, seen.memory_fraction, seen.upload_backlog_age_s) == (0.25, 0.5, 0.0)
    assert (seen.cpu_count, seen.memory_bytes) == (4, 8 * 10**9)
    rig.spool.available = None
    assert (await rig.observation.observe()).spool_free_fraction == 0.0


@in_virtual_time
async def test_what_is_exported_as_free_is_what_is_judged_by_also_where_others_fill_the_file_system() -> None:
    rig = Rig()
    rig.spool.use = SpoolUse(50 * MIB, 0)
    rig.observation.refresh()
    assert rig.figure("spool_free_ratio") == 0.5, "nobody has looked at the file system yet"
    for available in (80 * MIB, 10 * MIB, None):
        rig.spool.available = available
        told = (await rig.observation.observe()).spool_free_fraction
        rig.observation.refresh()
        assert rig.figure("spool_free_ratio") == told
    assert told == 0.0


@in_virtual_time
async def test_what_is_sent_is_exported_beside_the_limit_that_holds() -> None:
    rig = Rig()
    rig.throttle.set_limit(8_000_000)
    for _ in range(200):
        await rig.throttle.take(50_000)
    rig.observation.refresh()
    rig.observation.refresh()

    def exported(name: str) -> float | None:
        return rig.registry.get_sample_value(f"blockferry_process_server_{name}")

    assert exported("store_sent_bytes_total") == 10_000_000
    assert exported("throttle_limit_bits_per_second") == 8_000_000
    assert exported("throttle_measured_bits_per_second") == pytest.approx(8_000_000, rel=0.06)
    assert exported("upload_threads_per_machine") == 4
