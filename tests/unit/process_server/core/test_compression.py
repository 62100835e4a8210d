"""How hard a batch is compressed: by what holds replication up, and never by a moment's burst."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from process_server.core.backlog import Backlog
from process_server.core.compression import (
    ABREAST_BYTES,
    BEHIND_BYTES,
    BEHIND_S,
    FASTER,
    SMALLER,
    USUAL,
    Pressure,
    level_for,
)
from process_server.intake.compression_choice import CompressionChoice
from process_server.metrics import ProcessServerMetrics
from process_server.throttle import Throttle
from tests.harness.process_time import in_virtual_time, virtual_clock

MIB = 2**20
LINE = 12 * MIB


@pytest.mark.parametrize(
    ("sealing", "threads", "waiting_bytes", "level"),
    [
        (1, 2, 0, USUAL),
        (2, 2, 0, FASTER),
        (4, 2, 50 * MIB, FASTER),
        (3, 4, 0, USUAL),
        (1, 1, 0, USUAL),
        (2, 1, 0, FASTER),
        (4, 2, 100 * MIB, USUAL),
        (4, 2, 300 * MIB, USUAL),
        (4, 2, 400 * MIB, SMALLER),
        (1, 2, 400 * MIB, SMALLER),
    ],
)
def test_on_a_line_of_twelve_mib_a_second(sealing: int, threads: int, waiting_bytes: int, level: int) -> None:
    assert level_for(Pressure(sealing, threads, waiting_bytes, LINE)) == level


def test_a_store_that_takes_nothing_makes_everything_smaller_once_enough_waits() -> None:
    assert level_for(Pressure(1, 2, BEHIND_BYTES, 0.0)) == USUAL
    assert level_for(Pressure(1, 2, BEHIND_BYTES + 1, 0.0)) == SMALLER
    assert level_for(Pressure(2, 2, ABREAST_BYTES, 0.0)) == FASTER


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**40), st.floats(0, 1e9))
def test_the_more_waits_the_smaller_never_the_other_way(sealing: int, threads: int, waiting: int, line: float) -> None:
    order = [level_for(Pressure(sealing, threads, amount, line)) for amount in (0, waiting // 2, waiting, 2**50)]
    assert order == sorted(order)
    assert order[-1] == SMALLER


@in_virtual_time
async def test_the_choice_follows_backlog_and_line_unless_it_is_fixed() -> None:
    registry = CollectorRegistry()
    clock = virtual_clock()
    backlog, throttle, chosen = Backlog(), Throttle(None, clock), ProcessServerMetrics(registry).segments_sealed
    choice = CompressionChoice(None, 2, backlog, throttle, chosen)
    assert (choice.level(1), choice.level(2)) == (USUAL, FASTER)
    backlog.waiting_bytes = BEHIND_BYTES + 1
    assert choice.level(1) == SMALLER
    await clock.sleep(10.0)
    await throttle.take(backlog.waiting_bytes)
    assert choice.level(1) == USUAL, f"that much is through in {BEHIND_S} s"
    assert CompressionChoice(7, 2, backlog, throttle, chosen).level(64) == 7

    def counted(level: int) -> float | None:
        return registry.get_sample_value("blockferry_process_server_segments_sealed_total", {"level": str(level)})

    assert [counted(level) for level in (FASTER, USUAL, SMALLER, 7)] == [1, 2, 1, 1]
