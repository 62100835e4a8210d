"""The upload limits in force: what the configuration server told, what the file says, and the hour, together.

Built by ``daemon``; ``tell`` with each heartbeat's answer, ``run`` in a task. Of two limits the lower one counts, at every instant
(``core.upload_hours`` says which holds when). What was told last is durable: after a restart it holds before anything is uploaded,
whether the configuration server answers or not. As long as nothing is remembered, the lowest limit holds until it has answered once.
A file that cannot be used changes nothing: what it said before goes on holding.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from process_server.core.upload_hours import Regime, both, regime_at
from process_server.core.upload_schedule import DEFAULT_THREADS_PER_MACHINE, UploadSchedule, uploads_at_once
from process_server.settings_watch import SettingsWatch
from process_server.spool.kept_segments import MAX_SEGMENT_RECORD_BYTES
from process_server.throttle import BITS_PER_BYTE, Throttle
from process_server.uploader.upload_room import UploadRoom
from replication.clock import Clock
from replication.errors import BlockferryError, InvalidInput
from replication.limits_memory import LimitsMemory
from replication.service.health import HealthBoard, HealthState
from replication.time_zones import time_zone
from replication.upload_limits import (
    MIN_LIMIT_BITS_PER_S,
    MIN_THREADS_PER_MACHINE,
    UploadInForce,
    UploadLimits,
    limits_text,
    rate_text,
)

CHECK: Final = "upload-limits"
FILE_NAME: Final = "upload-limits.json"
"""In the state directory: what was told last."""
LOOK_AT_CLOCK_EVERY_S: Final = 1.0
"""So soon is it noticed that somebody has set the clock."""
LOOK_AT_FILE_EVERY_S: Final = 2.0
REMEMBER_AGAIN_S: Final = 5.0
_UNKNOWN: Final = UploadLimits(limit_bits_per_s=MIN_LIMIT_BITS_PER_S)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """Limits with their time zone; ``problem``: why the zone cannot be told."""

    limits: UploadLimits
    zone: dt.tzinfo | None
    problem: str | None

    @classmethod
    def of(cls, limits: UploadLimits) -> _Source:
        if limits.work_hours is None:
            return cls(limits, None, None)
        try:
            return cls(limits, time_zone(limits.work_hours.time_zone), None)
        except InvalidInput as error:
            return cls(
                limits, None, f"{error.message} here: the lower of both limits holds; install newer tzdata and restart"
            )

    def regime(self, unix_s: float) -> Regime:
        return regime_at(self.limits, self.zone, unix_s)


class LimitsInForce:
    """Sets ``throttle`` and ``schedule``; ``on_change`` when something else holds from now on. Holds from its making on."""

    def __init__(
        self,
        file: UploadLimits,
        memory: LimitsMemory[UploadLimits],
        watch: SettingsWatch | None,
        throttle: Throttle,
        schedule: UploadSchedule,
        board: HealthBoard,
        clock: Clock,
        on_change: Callable[[], None],
        *,
        room: UploadRoom,
    ) -> None:
        self._memory = memory
        self._watch = watch
        self._throttle = throttle
        self._schedule = schedule
        self._board = board
        self._clock = clock
        self._on_change = on_change
        self._room = room
        self._file = _Source.of(file)
        self._told = _Source.of(memory.limits or _UNKNOWN)
        self._ever_told = memory.limits is not None
        self._file_problem: str | None = None
        self._memory_problem: str | None = None
        self._regime = Regime(None, work_hours=False, until_unix_s=None)
        self._look = asyncio.Event()
        self._to_remember = asyncio.Event()
        self._obey()

    @property
    def problem(self) -> str | None:
        """The first thing that keeps the limits from being what was asked for, if anything does."""
        if not self._ever_told:
            return f"it is not known what may be sent: {rate_text(MIN_LIMIT_BITS_PER_S)} at most until the configuration server answers"
        return (
            self._told.problem
            or self._file.problem
            or self._file_problem
            or self._memory_problem
            or self._threads_problem
        )

    @property
    def _threads_problem(self) -> str | None:
        threads = self._schedule.threads_per_machine
        sure = self._room.surely_at_once(threads)
        if threads <= max(sure, MIN_THREADS_PER_MACHINE):  # at the fewest nobody asked for more than there are
            return None
        mib = -(-threads * MAX_SEGMENT_RECORD_BYTES // 2**20)
        return (
            f"of {threads} threads per machine only {sure} are sure, as the configuration fixes their room: leave out store.connections "
            f"and upload.buffer_bytes, or set them to {threads} and {mib} MiB or more, and restart"
        )

    @property
    def effective_threads(self) -> int:
        """So many uploads a machine that is alone surely has at this hour, even if nothing compresses."""
        threads = self._schedule.threads_per_machine
        return min(threads, uploads_at_once(self._throttle.limit_bits_per_s, self._room.surely_at_once(threads)))

    def tell(self, limits: UploadLimits) -> None:
        """The configuration server's newest word: in force on return, durable soon after."""
        if self._ever_told and limits == self._told.limits:
            return
        before = limits_text(self._told.limits) if self._ever_told else "not known"
        self._told, self._ever_told = _Source.of(limits), True
        _logger.info(
            "the configuration server sets the upload limits",
            extra={"fields": {"before": before, "now": limits_text(limits)}},
        )
        self._to_remember.set()
        self._look.set()
        self._obey()

    def in_force(self) -> UploadInForce:
        """For the heartbeat."""
        until = self._regime.until_unix_s
        return UploadInForce(
            limit_bits_per_s=self._throttle.limit_bits_per_s,
            sent_bits_per_s=self._throttle.measured_bytes_per_s() * BITS_PER_BYTE,
            work_hours=self._regime.work_hours,
            changes_in_s=None if until is None else max(0.0, until - self._unix_s()),
            threads_per_machine=self._schedule.threads_per_machine,
            file=self._file.limits,
            told=self._told.limits if self._ever_told else None,
            problem=self.problem,
        )

    async def run(self) -> None:
        """Follow clock and file until cancelled. A disk that hangs holds up neither."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_clock())
            tasks.create_task(self._keep_remembered())
            if self._watch is not None:
                tasks.create_task(self._follow_file(self._watch))

    # -- what holds -------------------------------------------------------------------------------------------

    def _unix_s(self) -> float:
        return self._clock.unix_ns() / 1e9

    def _obey(self) -> None:
        now_s = self._unix_s()
        self._regime = both(self._told.regime(now_s), self._file.regime(now_s))
        threads = self._told.limits.threads_per_machine or self._file.limits.threads_per_machine
        threads = threads or DEFAULT_THREADS_PER_MACHINE
        before = (self._throttle.limit_bits_per_s, self._schedule.threads_per_machine)
        self._throttle.set_limit(self._regime.limit_bits_per_s)
        self._schedule.threads_per_machine = threads
        if before != (self._regime.limit_bits_per_s, threads):
            self._on_change()
        problem = self.problem
        self._board.report(CHECK, HealthState.OK if problem is None else HealthState.DEGRADED, problem or "")

    async def _follow_clock(self) -> None:
        while True:
            self._look.clear()
            before = self._regime.limit_bits_per_s
            self._obey()
            if self._regime.limit_bits_per_s != before:
                _logger.info(
                    "another upload limit holds at this hour",
                    extra={"fields": {"limit": rate_text(self._regime.limit_bits_per_s)}},
                )
            until = self._regime.until_unix_s
            wait_s = LOOK_AT_CLOCK_EVERY_S if until is None else min(LOOK_AT_CLOCK_EVERY_S, until - self._unix_s())
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    await self._look.wait()
            except TimeoutError:
                continue

    # -- disk -------------------------------------------------------------------------------------------------

    async def _keep_remembered(self) -> None:
        while True:
            await self._to_remember.wait()
            self._to_remember.clear()
            told = self._told.limits
            if told == self._memory.limits:
                continue
            try:
                await asyncio.to_thread(self._memory.remember, told)
            except OSError as error:
                self._memory_problem = (
                    f"cannot remember the upload limits: {error.strerror or error}; a restart forgets them"
                )
                _logger.warning("the upload limits are not durable", extra={"fields": {"error": str(error)}})
                self._obey()
                await self._clock.sleep(REMEMBER_AGAIN_S)
                self._to_remember.set()
            else:
                self._memory_problem = None
            self._obey()

    async def _follow_file(self, watch: SettingsWatch) -> None:
        while True:
            try:
                limits = await asyncio.to_thread(watch.changed)
            except BlockferryError as error:
                self._file_problem = f"{error.message}: what it said before goes on holding"
                _logger.warning("a changed configuration is left out", extra={"fields": {"error": str(error)}})
            else:
                if limits is not None:
                    self._take_file(limits)
            self._obey()
            await self._clock.sleep(LOOK_AT_FILE_EVERY_S)

    def _take_file(self, limits: UploadLimits) -> None:
        self._file_problem = None
        if limits != self._file.limits:
            _logger.info(
                "the configuration file sets the upload limits",
                extra={"fields": {"before": limits_text(self._file.limits), "now": limits_text(limits)}},
            )
            self._file = _Source.of(limits)
            self._look.set()
