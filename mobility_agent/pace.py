"""The agent's pace: before it reads a step of a disk it waits here until the read rate and the CPU limit allow one.

Asked by ``epoch_shipper`` (initial replication, delta, resync, the rounds before a point) and by the ``scan`` tracker, for all disks
together; set by ``limits_in_force``. Two token buckets. One counts what is read. The other counts what processor time the whole process
has used, whatever for: reading is what makes the agent's work (zeros, digests, TLS), so who is not let read uses no processor either.

The limit is not a control group's (docs/decisions/0021): what must not wait is simply not asked here. That is the last round of a point,
which is read while file systems are frozen; the freeze watchdog, which is a process of its own; and what is shipped of a point's image.
``lifted`` while a workload stands still and waits for the agent: a cutover once the disks are claimed, a point between quiesce hooks.

On one event loop, but for the ``scan`` tracker's ``wait_in_thread``; the clocks are injected.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from replication.clock import Clock
from replication.token_bucket import TokenBucket

CPU_STEP_BYTES: Final = 1024 * 1024
"""Read at a time under a CPU limit: some milliseconds of work."""
LONGEST_EPOCH_S: Final = 20.0
"""To read an epoch under a read limit, if one disk is read: what would begin sooner (a point, a cutover) waits for it."""
LONGEST_SLEEP_S: Final = 0.25
"""So soon does a changed or lifted limit reach those that wait already."""

Resource = Literal["read", "cpu"]
RESOURCES: Final[tuple[Resource, ...]] = ("read", "cpu")


@dataclass(frozen=True, slots=True)
class Step:
    """Leave to read: at most so many bytes (None: as many as one likes), of which ``taken_bytes`` are accounted for already."""

    at_most_bytes: int | None
    taken_bytes: int


class Pace:
    """Shared by all disks of the agent. Without limits nobody waits and no clock is asked."""

    def __init__(
        self,
        clock: Clock,
        cpu_s: Callable[[], float] = time.process_time,
        sleep_in_thread: Callable[[float], None] = time.sleep,
    ) -> None:
        """:param cpu_s: processor time that this process has used in all its threads."""
        self._clock = clock
        self._cpu_s = cpu_s
        self._sleep_in_thread = sleep_in_thread
        now_s = clock.monotonic_s()
        self._reads = TokenBucket(None, now_s)
        self._cpu = TokenBucket(None, now_s)
        self._cpu_seen_s, self._charged_at_s = cpu_s(), now_s
        self._guard = threading.Lock()
        self._turn = asyncio.Lock()
        self._lifts = 0
        self.read_bytes = 0
        """Everything that was read of the disks, limited or not."""
        self.waited_s: dict[Resource, float] = dict.fromkeys(RESOURCES, 0.0)
        """How long reading has waited for each of them."""

    @property
    def read_bytes_per_s(self) -> float | None:
        return self._reads.rate_per_s

    @property
    def cpu_cores(self) -> float | None:
        return self._cpu.rate_per_s

    @property
    def largest_epoch_bytes(self) -> int | None:
        """An epoch is shown, confirmed and given way to as a whole: it should not take minutes to read. None: it does not."""
        rate = self._reads.rate_per_s
        return None if rate is None or self.is_lifted else int(rate * LONGEST_EPOCH_S)

    @property
    def is_limited(self) -> bool:
        return self._reads.rate_per_s is not None or self._cpu.rate_per_s is not None

    @property
    def is_lifted(self) -> bool:
        return self._lifts > 0

    def set_limits(self, read_bytes_per_s: int | None, cpu_cores: float | None) -> None:
        """From now on; those that wait already notice within a quarter of a second."""
        with self._guard:
            now_s = self._clock.monotonic_s()
            self._charge_cpu(now_s)
            self._reads.set_rate(read_bytes_per_s, now_s)
            self._cpu.set_rate(cpu_cores, now_s)

    def settle(self) -> None:
        """Set what was used against what was allowed. Called every second, so that a burst is not forgotten while nothing is read."""
        if self._cpu.rate_per_s is not None:
            with self._guard:
                now_s = self._clock.monotonic_s()
                self._charge_cpu(now_s)
                self._cpu.delay_s(now_s)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Nobody waits inside, and nothing of it is to be paid for afterwards."""
        self._lifts += 1
        try:
            yield
        finally:
            with self._guard:
                self._forget_cpu()
                self._lifts -= 1

    async def step(self) -> Step:
        """Return when some may be read, in order of arrival; tell ``read`` afterwards. On cancel nothing was taken."""
        if not self.is_limited or self.is_lifted:
            return Step(None, 0)
        async with self._turn:
            while (wait := self._wait()) is not None:
                await self._clock.sleep(self._counted(*wait))
            return self._begin()

    def wait_in_thread(self, amount_bytes: int, is_cancelled: Callable[[], bool]) -> None:
        """As ``step`` and ``read`` of ``amount_bytes``, for who reads in a thread. Returns early, without taking, if cancelled."""
        while (wait := self._wait()) is not None:
            if is_cancelled():
                return
            self._sleep_in_thread(self._counted(*wait))
        self.read(Step(None, 0), amount_bytes)

    def read(self, step: Step, amount_bytes: int) -> None:
        """``amount_bytes`` were read with this leave."""
        if self.is_limited and not self.is_lifted:
            with self._guard:
                self._reads.take(amount_bytes - step.taken_bytes, self._clock.monotonic_s())

    def note_read(self, amount_bytes: int) -> None:
        """Count a read, whatever it is for. Callable from any thread."""
        with self._guard:
            self.read_bytes += amount_bytes

    def _wait(self) -> tuple[Resource, float] | None:
        """What stands in the way, and for how long; None: nothing."""
        if not self.is_limited or self.is_lifted:
            return None
        with self._guard:
            now_s = self._clock.monotonic_s()
            self._charge_cpu(now_s)
            read_s, cpu_s = self._reads.delay_s(now_s), self._cpu.delay_s(now_s)
        if read_s == cpu_s == 0.0:
            return None
        return ("read", read_s) if read_s >= cpu_s else ("cpu", cpu_s)

    def _counted(self, resource: Resource, delay_s: float) -> float:
        pause_s = min(delay_s, LONGEST_SLEEP_S)
        self.waited_s[resource] += pause_s
        return pause_s

    def _begin(self) -> Step:
        """Taken before it is read: another disk must not go meanwhile as if nothing were."""
        with self._guard:
            if self.is_lifted:
                return Step(None, 0)
            most = self._reads.largest_amount
            if self._cpu.rate_per_s is not None:
                most = CPU_STEP_BYTES if most is None else min(most, CPU_STEP_BYTES)
            if most is None:
                return Step(None, 0)
            self._reads.take(most, self._clock.monotonic_s())
            return Step(most, most)

    def _charge_cpu(self, now_s: float) -> None:
        if self.is_lifted:
            self._forget_cpu()
            return
        used_s = self._cpu_s()
        # As of when it was looked at last: what the time since then allowed is set against it, not only what a bucket saves up.
        self._cpu.take(used_s - self._cpu_seen_s, self._charged_at_s)
        self._cpu_seen_s, self._charged_at_s = used_s, now_s

    def _forget_cpu(self) -> None:
        self._cpu_seen_s = self._cpu_s()


def unlimited() -> Pace:
    """For who has no limits."""
    return Pace(Clock(), lambda: 0.0)
