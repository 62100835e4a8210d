"""The limits in force: told, remembered, read from the file, changed by the hour; and what holds while none of it is known."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from process_server.config import Settings
from process_server.core.backlog import Backlog
from process_server.core.upload_schedule import UploadSchedule
from process_server.settings_watch import SettingsWatch
from process_server.throttle import Throttle
from process_server.upload_limits import CHECK, FILE_NAME, REMEMBER_AGAIN_S, LimitsInForce
from process_server.uploader.upload_room import UploadRoom
from replication.clock import Clock
from replication.limits_memory import LimitsMemory
from replication.service.health import HealthBoard, HealthState
from replication.settings import load_settings
from replication.upload_limits import MIN_LIMIT_BITS_PER_S, NO_LIMITS, UploadLimits, WorkHours
from tests.harness.process_time import in_virtual_time, virtual_clock

MBPS = 10**6
MONDAY_NOON_NS = int(dt.datetime(2026, 3, 2, 12, 0, tzinfo=dt.UTC).timestamp()) * 10**9
TEN = UploadLimits(limit_bits_per_s=10 * MBPS)
OFFICE = UploadLimits(
    limit_bits_per_s=100 * MBPS,
    work_hours=WorkHours(days=["mon"], start="08:00", end="18:00", time_zone="UTC", limit_bits_per_s=20 * MBPS),
)


class Rig:
    """Limits with their throttle on a state directory; ``wall_ns`` sets this machine's clock."""

    def __init__(
        self,
        directory: Path,
        file: UploadLimits = NO_LIMITS,
        watch: SettingsWatch | None = None,
        *,
        fixed: int | None = None,
    ) -> None:
        exact = virtual_clock()
        began_ns, self.wall_ns = exact.unix_ns(), MONDAY_NOON_NS
        clock = Clock(exact.monotonic_s, lambda: self.wall_ns + exact.unix_ns() - began_ns, exact.sleep)
        self.board, self.changes = HealthBoard(), 0
        self.throttle = Throttle(None, clock)
        self.schedule = UploadSchedule(Backlog())
        self.memory = LimitsMemory(directory / FILE_NAME, UploadLimits)
        room = UploadRoom(fixed)
        self.limits = LimitsInForce(
            file, self.memory, watch, self.throttle, self.schedule, self.board, clock, self._changed, room=room
        )

    def _changed(self) -> None:
        self.changes += 1

    def limit(self) -> int | None:
        return self.throttle.limit_bits_per_s

    def both(self) -> tuple[int | None, int]:
        return self.limit(), self.schedule.threads_per_machine

    def health(self) -> HealthState:
        return next(check.state for check in self.board.checks if check.name == CHECK)


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    task = asyncio.create_task(rig.limits.run())
    await asyncio.sleep(0.1)
    try:
        yield rig
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@in_virtual_time
async def test_as_long_as_nothing_is_known_the_lowest_limit_holds(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.limit() == MIN_LIMIT_BITS_PER_S
        assert rig.health() is HealthState.DEGRADED
        assert rig.limits.in_force().told is None
        rig.limits.tell(NO_LIMITS)
        assert rig.limit() is None
        assert rig.health() is HealthState.OK
        assert rig.limits.in_force().told == NO_LIMITS


@in_virtual_time
async def test_what_was_told_last_holds_after_a_restart_before_anything_is_sent(tmp_path: Path) -> None:
    for told in (TEN, NO_LIMITS, OFFICE):
        async with running(Rig(tmp_path)) as rig:
            rig.limits.tell(told)
            await asyncio.sleep(0.1)
        restarted = Rig(tmp_path)  # not running, the configuration server unheard
        assert restarted.limits.in_force().told == told
        assert restarted.health() is HealthState.OK
    assert restarted.limit() == 20 * MBPS


@in_virtual_time
async def test_threads_that_a_fixed_room_does_not_allow_are_said(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, fixed=4)) as rig:
        rig.limits.tell(UploadLimits(threads_per_machine=32))
        problem = rig.limits.in_force().problem
        assert problem is not None
        assert "of 32 threads per machine only 4 are sure" in problem
        assert "275 MiB" in problem
        assert (rig.schedule.threads_per_machine, rig.limits.effective_threads) == (32, 4)
        assert rig.health() is HealthState.DEGRADED
        rig.limits.tell(UploadLimits(threads_per_machine=4))
        assert (rig.limits.problem, rig.health(), rig.limits.effective_threads) == (None, HealthState.OK, 4)


@in_virtual_time
async def test_threads_in_effect_are_those_that_the_limit_leaves_and_the_fewest_are_no_reproach(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, fixed=2)) as rig:
        rig.limits.tell(NO_LIMITS)
        assert (rig.limits.problem, rig.limits.effective_threads) == (None, 2)
    async with running(Rig(tmp_path)) as rig:
        rig.limits.tell(UploadLimits(threads_per_machine=32, limit_bits_per_s=MIN_LIMIT_BITS_PER_S))
        assert (rig.limits.problem, rig.limits.effective_threads) == (None, 2)
        rig.limits.tell(UploadLimits(threads_per_machine=32))
        assert rig.limits.effective_threads == 32


@in_virtual_time
async def test_a_damaged_memory_is_not_taken_for_no_limit(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'{"limit_bits_per_s": nu')
    rig = Rig(tmp_path)
    assert rig.limit() == MIN_LIMIT_BITS_PER_S
    assert rig.health() is HealthState.DEGRADED


@in_virtual_time
async def test_a_limit_that_cannot_be_remembered_holds_is_said_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Rig(tmp_path)) as rig:

        def refuse(_limits: UploadLimits) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(rig.memory, "remember", refuse)
            rig.limits.tell(TEN)
            await asyncio.sleep(2)
            assert rig.limit() == 10 * MBPS
            assert "No space left" in (rig.limits.problem or "")
            assert rig.health() is HealthState.DEGRADED
        await asyncio.sleep(REMEMBER_AGAIN_S + 2)
        assert rig.health() is HealthState.OK
    assert LimitsMemory(tmp_path / FILE_NAME, UploadLimits).limits == TEN


@in_virtual_time
async def test_the_limit_changes_with_the_hour_and_on_the_second(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.wall_ns += (5 * 3600 + 3599) * 10**9  # 17:59:59
    async with running(rig):
        rig.limits.tell(OFFICE)
        changes = rig.changes
        assert rig.limit() == 20 * MBPS
        in_force = rig.limits.in_force()
        assert in_force.work_hours
        assert in_force.changes_in_s == pytest.approx(0.9)
        await asyncio.sleep(0.89)
        assert rig.limit() == 20 * MBPS
        await asyncio.sleep(0.02)
        assert rig.limit() == 100 * MBPS
        assert not rig.limits.in_force().work_hours
        assert rig.changes == changes + 1


@in_virtual_time
async def test_a_clock_that_is_set_is_noticed(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        rig.limits.tell(OFFICE)
        for hours, limit in ((12, 100), (-12, 20)):
            rig.wall_ns += hours * 3600 * 10**9
            await asyncio.sleep(1.1)
            assert rig.limit() == limit * MBPS


@in_virtual_time
async def test_of_file_and_configuration_server_the_lower_limit_counts_and_the_servers_threads(tmp_path: Path) -> None:
    file = UploadLimits(limit_bits_per_s=30 * MBPS, threads_per_machine=8)
    async with running(Rig(tmp_path, file)) as rig:
        rig.limits.tell(NO_LIMITS)
        assert rig.both() == (30 * MBPS, 8)
        rig.limits.tell(OFFICE)
        assert rig.limit() == 20 * MBPS
        rig.limits.tell(UploadLimits(limit_bits_per_s=50 * MBPS, threads_per_machine=16))
        assert rig.both() == (30 * MBPS, 16)


@in_virtual_time
async def test_a_time_zone_that_this_machine_does_not_know_means_the_lower_limit(tmp_path: Path) -> None:
    assert OFFICE.work_hours is not None
    unknown = OFFICE.model_copy(
        update={"work_hours": OFFICE.work_hours.model_copy(update={"time_zone": "Mars/Olympus"})}
    )
    async with running(Rig(tmp_path)) as rig:
        rig.limits.tell(unknown)
        rig.wall_ns += 12 * 3600 * 10**9
        await asyncio.sleep(1.1)
        assert rig.limit() == 20 * MBPS
        assert "Mars/Olympus" in (rig.limits.problem or "")
        assert rig.health() is HealthState.DEGRADED


def config(path: Path, **changes: object) -> Settings:
    document = {
        "config_server": {"url": "https://appliance.example.internal"},
        "store": {"url": "https://sink.example.internal/blockferry", "account": "blockferry", "key_file": "/key"},
    }
    path.write_text(yaml.safe_dump(document | changes))
    return load_settings(Settings, path)


@in_virtual_time
async def test_the_file_is_obeyed_live_and_one_that_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "process-server.yaml"
    started_with = config(path, upload={"limit_bits_per_s": "30 Mbps"})
    rig = Rig(tmp_path, started_with.upload.limits, SettingsWatch(path, started_with))
    async with running(rig):
        rig.limits.tell(NO_LIMITS)
        assert rig.limit() == 30 * MBPS
        hours = {"days": ["mon"], "start": "08:00", "end": "18:00", "time_zone": "UTC", "limit_bits_per_s": "5 Mbps"}
        config(path, upload={"limit_bits_per_s": "40 Mbps", "work_hours": hours})
        await asyncio.sleep(2.1)
        assert rig.limit() == 5 * MBPS
        path.write_text("upload: {limit_bits_per_s: 100 MBps}\n")
        await asyncio.sleep(2.1)
        assert rig.limit() == 5 * MBPS
        assert rig.health() is HealthState.DEGRADED
        assert "MBps" in (rig.limits.problem or "")
        path.unlink()
        await asyncio.sleep(2.1)
        assert rig.limit() == 5 * MBPS
        config(path, upload={"threads_per_machine": 12}, listen="127.0.0.1:9444")
        await asyncio.sleep(2.1)
        assert rig.both() == (None, 12)
        assert rig.health() is HealthState.OK
        assert "restart" in caplog.text


@in_virtual_time
async def test_what_is_told_again_is_no_news(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        rig.limits.tell(TEN)
        await asyncio.sleep(0.1)
        changes, written = rig.changes, (tmp_path / FILE_NAME).stat().st_mtime_ns
        for _ in range(3):
            rig.limits.tell(TEN)
            await asyncio.sleep(5)
        assert rig.changes == changes
        assert (tmp_path / FILE_NAME).stat().st_mtime_ns == written
