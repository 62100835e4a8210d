"""The agent's limits in force: what the configuration server told, what the file says, and the hour, together; and what is measured.

Built by ``daemon``; ``tell`` with the answer to each observation, ``run`` in a task. Of two limits the lower one counts, at every instant
(``core/limits_now`` says which holds when). What was told last is durable: after a restart it holds before anything is read, whether the
configuration server answers or not. If what was remembered is damaged, the lowest limits hold until it has answered once.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mobility_agent.core.limits_now import LimitsNow, both, limits_at
from mobility_agent.pace import RESOURCES, Pace
from mobility_agent.shipping.disk_figures import NANOSECONDS, Rate
from replication.agent_limits import (
    MIN_CPU_CORES,
    MIN_READ_BYTES_PER_S,
    NO_AGENT_LIMITS,
    AgentLimits,
    AgentLimitsInForce,
    agent_limits_text,
)
from replication.clock import Clock
from replication.errors import InvalidInput
from replication.limits_memory import LimitsMemory
from replication.time_zones import time_zone

FILE_NAME: Final = "limits.json"
"""In the state directory: what was told last."""
LOOK_AT_CLOCK_EVERY_S: Final = 1.0
"""So soon is it noticed that somebody has set the clock."""
REMEMBER_AGAIN_S: Final = 5.0
_UNKNOWN: Final = AgentLimits(read_bytes_per_s=MIN_READ_BYTES_PER_S, cpu_cores=MIN_CPU_CORES)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """Limits with their time zone; ``problem``: why the zone cannot be told."""

    limits: AgentLimits
    zone: dt.tzinfo | None = None
    problem: str | None = None

    @classmethod
    def of(cls, limits: AgentLimits) -> _Source:
        if limits.work_hours is None:
            return cls(limits)
        try:
            return cls(limits, time_zone(limits.work_hours.time_zone))
        except InvalidInput as error:
            return cls(
                limits,
                problem=f"{error.message} here: the lower limits hold at all hours; install newer tzdata and restart",
            )

    def now(self, unix_s: float) -> LimitsNow:
        return limits_at(self.limits, self.zone, unix_s)


class LimitsInForce(Collector):
    """Sets ``pace``. Holds from its making on. As a collector: configured against measured, for Prometheus."""

    def __init__(
        self,
        file: AgentLimits,
        memory: LimitsMemory[AgentLimits],
        pace: Pace,
        clock: Clock,
        *,
        memory_bytes: int | None = None,
        cpu_s: Callable[[], float] = time.process_time,
        note_write: Callable[[], None] = lambda: None,
    ) -> None:
        """:param memory_bytes: what the file allows; only shown here.
        :param note_write: called before the state directory is written to (R10).
        """
        self._pace = pace
        self._clock = clock
        self._memory = memory
        self._memory_bytes = memory_bytes
        self._cpu_s = cpu_s
        self._note_write = note_write
        self._file = _Source.of(file)
        self._told = _Source.of(_UNKNOWN if memory.is_damaged else memory.limits or NO_AGENT_LIMITS)
        self._ever_told = memory.limits is not None
        self._memory_problem: str | None = None
        self._now = LimitsNow(None, None, work_hours=False, until_unix_s=None)
        self._read_rate, self._cpu_rate = Rate(), Rate()
        self._look = asyncio.Event()
        self._to_remember = asyncio.Event()
        self._obey()

    @property
    def problem(self) -> str | None:
        """The first thing that keeps the limits from being what was asked for, if anything does."""
        if self._memory.is_damaged and not self._ever_told:
            return "the remembered limits are damaged: the lowest hold until the configuration server answers"
        return self._told.problem or self._file.problem or self._memory_problem

    def tell(self, limits: AgentLimits) -> None:
        """The configuration server's newest word: in force on return, durable soon after. That there never were any needs no file."""
        known = self._told.limits if self._ever_told else None
        if limits == known or (known is None and limits == NO_AGENT_LIMITS and not self._memory.is_damaged):
            return
        _logger.info(
            "the configuration server sets this agent's limits",
            extra={"fields": {"before": agent_limits_text(known or NO_AGENT_LIMITS), "now": agent_limits_text(limits)}},
        )
        self._told, self._ever_told = _Source.of(limits), True
        self._to_remember.set()
        self._look.set()
        self._obey()

    def observe(self) -> AgentLimitsInForce | None:
        """For the observation; None if nothing limits, or ever did."""
        read_per_s, cpu_cores = self._measured()
        if not self._ever_told and self._file.limits == NO_AGENT_LIMITS and self._memory_bytes is None:
            return None if self.problem is None else self._in_force(read_per_s, cpu_cores)
        return self._in_force(read_per_s, cpu_cores)

    def _in_force(self, read_per_s: float, cpu_cores: float) -> AgentLimitsInForce:
        until = self._now.until_unix_s
        return AgentLimitsInForce(
            read_bytes_per_s=self._now.read_bytes_per_s,
            cpu_cores=self._now.cpu_cores,
            measured_read_bytes_per_s=read_per_s,
            measured_cpu_cores=cpu_cores,
            work_hours=self._now.work_hours,
            changes_in_s=None if until is None else max(0.0, until - self._unix_s()),
            lifted=self._pace.is_lifted,
            memory_bytes=self._memory_bytes,
            file=self._file.limits,
            told=self._told.limits if self._ever_told else None,
            problem=self.problem,
        )

    def _measured(self) -> tuple[float, float]:
        """Bytes read, and processor seconds used, per second."""
        now_ns = self._clock.unix_ns()
        read_per_s = self._read_rate.sample(now_ns, self._pace.read_bytes)
        return read_per_s, self._cpu_rate.sample(now_ns, int(self._cpu_s() * NANOSECONDS)) / NANOSECONDS

    async def run(self) -> None:
        """Follow the clock until cancelled. A disk that hangs does not hold it up."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_clock())
            tasks.create_task(self._keep_remembered())

    def _unix_s(self) -> float:
        return self._clock.unix_ns() / NANOSECONDS

    def _obey(self) -> None:
        now_s = self._unix_s()
        before, self._now = self._now, both(self._told.now(now_s), self._file.now(now_s))
        if (before.read_bytes_per_s, before.cpu_cores) != (self._now.read_bytes_per_s, self._now.cpu_cores):
            self._pace.set_limits(self._now.read_bytes_per_s, self._now.cpu_cores)
        self._pace.settle()

    async def _follow_clock(self) -> None:
        while True:
            self._look.clear()
            before = self._now.work_hours
            self._obey()
            if self._now.work_hours != before:
                present = AgentLimits(read_bytes_per_s=self._now.read_bytes_per_s, cpu_cores=self._now.cpu_cores)
                _logger.info("other limits hold at this hour", extra={"fields": {"limits": agent_limits_text(present)}})
            until = self._now.until_unix_s
            wait_s = LOOK_AT_CLOCK_EVERY_S if until is None else min(LOOK_AT_CLOCK_EVERY_S, until - self._unix_s())
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._look.wait()
            except TimeoutError:
                continue

    async def _keep_remembered(self) -> None:
        while True:
            await self._to_remember.wait()
            self._to_remember.clear()
            told = self._told.limits
            if told == self._memory.limits:
                continue
            self._note_write()
            try:
                await asyncio.to_thread(self._memory.remember, told)
            except OSError as error:
                self._memory_problem = f"cannot remember the limits: {error.strerror or error}; a restart forgets them"
                _logger.warning("the limits are not durable", extra={"fields": {"error": str(error)}})
                await self._clock.sleep(REMEMBER_AGAIN_S)
                self._to_remember.set()
            else:
                self._memory_problem = None

    # ---- metrics

    def collect(self) -> Iterable[Metric]:
        limits = (
            (
                GaugeMetricFamily("blockferry_agent_read_limit_bytes_per_second", "What may be read of all disks."),
                self._now.read_bytes_per_s,
            ),
            (
                GaugeMetricFamily("blockferry_agent_cpu_limit_cores", "Processor time that may be used, per time."),
                self._now.cpu_cores,
            ),
            (
                GaugeMetricFamily("blockferry_agent_memory_limit_bytes", "Memory that the agent's file allows."),
                self._memory_bytes,
            ),
        )
        for gauge, limit in limits:
            if limit is not None:
                gauge.add_metric([], limit)
            yield gauge
        lifted = GaugeMetricFamily("blockferry_agent_limits_lifted", "1 while a workload that stands still waits.")
        lifted.add_metric([], float(self._pace.is_lifted))
        yield lifted
        read = CounterMetricFamily("blockferry_agent_read_bytes", "Bytes read of all disks, limited or not.")
        read.add_metric([], self._pace.read_bytes)
        yield read
        waited = CounterMetricFamily(
            "blockferry_agent_limit_wait_seconds", "How long reading has waited for a limit.", labels=["limit"]
        )
        for resource in RESOURCES:
            waited.add_metric([resource], self._pace.waited_s[resource])
        yield waited


def open_memory(state_dir: Path) -> LimitsMemory[AgentLimits]:
    """What was told last. :raises OSError: the file is there and cannot be read."""
    return LimitsMemory(state_dir / FILE_NAME, AgentLimits)
