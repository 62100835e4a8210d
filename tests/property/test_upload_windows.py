"""At most 3 % over the limit in any ten seconds: bodies as the Blob client slices them, through the throttle, under virtual time.

Connections send bodies of random sizes, pause, break off and begin again, while the limit is changed now and then. What went out is noted
with its time, and every window of ten seconds held against what the limits in it allowed (``limit_windows``). Timers fire late, as they do.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from process_server.throttle import Throttle
from replication.blob_client.pace import on_the_wire
from replication.blob_client.transport import Outflow, paced_slices
from replication.clock import Clock
from replication.upload_limits import MAX_LIMIT_BITS_PER_S, MIN_LIMIT_BITS_PER_S
from tests.harness.limit_windows import allowed_bytes, worst_window
from tests.harness.process_time import in_virtual_time, now_s, virtual_clock

OVER = 1.03
MAX_BODY = 8 * 2**20


@dataclass
class Line:
    """What was sent when, and which limit began when."""

    sent: list[tuple[float, int]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)

    def worst_ratio(self) -> float:
        return worst_window(self.sent, self.limits)


def late_clock(chance: random.Random) -> Clock:
    """Timers fire up to 20 ms late."""
    exact = virtual_clock()
    return Clock(exact.monotonic_s, exact.unix_ns, lambda seconds: asyncio.sleep(seconds + chance.random() * 0.02))


async def send(line: Line, throttle: Throttle, chance: random.Random, until_s: float) -> None:
    """One connection: bodies one after another; now and then it breaks in the middle, and what it has sent has been sent."""
    body = memoryview(bytes(MAX_BODY))
    while now_s() < until_s:
        size = chance.choice((chance.randrange(1, 4096), chance.randrange(1, MAX_BODY)))
        broken_after = chance.choice((MAX_BODY, MAX_BODY, chance.randrange(MAX_BODY)))
        sent = 0
        async with asyncio.timeout(60) as deadline:
            async for piece in paced_slices(body[:size], Outflow(throttle, deadline, 60.0)):
                line.sent.append((now_s(), on_the_wire(piece.nbytes)))
                sent += piece.nbytes
                if sent > broken_after or now_s() >= until_s:
                    break
        await asyncio.sleep(chance.choice((0.0, chance.random() * 3)))


_LIMITS = st.one_of(
    st.sampled_from((MIN_LIMIT_BITS_PER_S, 8_000_000, MAX_LIMIT_BITS_PER_S)),
    st.integers(MIN_LIMIT_BITS_PER_S, MAX_LIMIT_BITS_PER_S),
)


@given(
    limits=st.lists(st.tuples(_LIMITS, st.floats(1, 15)), min_size=1, max_size=4),
    connections=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_no_ten_seconds_have_more_than_three_percent_above_the_limit(
    limits: list[tuple[int, float]], connections: int, seed: int
) -> None:
    line, chance = Line(), random.Random(seed)

    @in_virtual_time
    async def run() -> None:
        throttle = Throttle(None, late_clock(chance))
        until_s = sum(seconds for _, seconds in limits)

        async def change() -> None:
            for bits, seconds in limits:
                line.limits.append((now_s(), bits))
                throttle.set_limit(bits)
                await asyncio.sleep(seconds)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(change())
            await asyncio.sleep(0)
            for _ in range(connections):
                tasks.create_task(send(line, throttle, random.Random(chance.random()), until_s))
        assert throttle.sent_bytes == sum(amount for _, amount in line.sent)

    run()
    assert line.worst_ratio() <= OVER


@given(bits=_LIMITS, connections=st.integers(1, 8), seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_connections_that_never_pause_use_the_limit_up(bits: int, connections: int, seed: int) -> None:
    line = Line()

    @in_virtual_time
    async def run() -> None:
        throttle = Throttle(bits, late_clock(random.Random(seed)))
        line.limits.append((0.0, bits))

        async def stream() -> None:
            body = memoryview(bytes(MAX_BODY))
            while now_s() < 30:
                async with asyncio.timeout(3600) as deadline:
                    async for piece in paced_slices(body, Outflow(throttle, deadline, 3600.0)):
                        line.sent.append((now_s(), on_the_wire(piece.nbytes)))
                        if now_s() >= 30:
                            return

        async with asyncio.TaskGroup() as tasks:
            for _ in range(connections):
                tasks.create_task(stream())

    run()
    assert line.worst_ratio() <= OVER
    assert sum(amount for at_s, amount in line.sent if at_s < 30) >= 0.97 * allowed_bytes(line.limits, 0.0, 30.0)[0]
