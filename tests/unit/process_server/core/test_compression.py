"""How hard a batch is compressed: harder while the line is behind, not for a moment's burst, and never if the level is fixed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from process_server.core.backlog import Backlog
from process_server.core.compression import BEHIND_BYTES, BEHIND_S, SMALLER, USUAL, level_for
from process_server.intake.compression_choice import CompressionChoice
from process_server.metrics import ProcessServerMetrics
from process_server.throttle import Throttle
from tests.harness.process_time import in_virtual_time, virtual_clock

MIB = 2**20


@pytest.mark.parametrize(
    ("waiting_bytes", "sent_bytes_per_s", "level"),
    [
        (0, 0.0, USUAL),
        (BEHIND_BYTES, 0.0, USUAL),
        (BEHIND_BYTES + 1, 0.0, SMALLER),
        (BEHIND_BYTES + 1, 1.0 * MIB, SMALLER),
        (300 * MIB, 12.0 * MIB, USUAL),
        (400 * MIB, 12.0 * MIB, SMALLER),
        (400 * MIB, 120.0 * MIB, USUAL),
    ],
)
def test_a_line_is_behind_where_more_waits_than_it_takes_in_half_a_minute(
    waiting_bytes: int, sent_bytes_per_s: float, level: int
) -> None:
    assert level_for(waiting_bytes, sent_bytes_per_s) == level


@given(st.integers(0, 2**50), st.integers(0, 2**50), st.floats(0, 1e12))
def test_the_more_waits_the_harder_never_the_other_way(less: int, more: int, line: float) -> None:
    less, more = sorted((less, more))
    assert level_for(less, line) <= level_for(more, line)


@in_virtual_time
async def test_the_choice_follows_backlog_and_line_unless_it_is_fixed() -> None:
    registry = CollectorRegistry()
    clock = virtual_clock()
    backlog, throttle, chosen = Backlog(), Throttle(None, clock), ProcessServerMetrics(registry).segments_sealed
    choice = CompressionChoice(None, backlog, throttle, chosen)
    assert choice() == USUAL
    backlog.waiting_bytes = BEHIND_BYTES + 1
    assert choice() == SMALLER
    await clock.sleep(10.0)
    await throttle.take(backlog.waiting_bytes)
    assert choice() == USUAL, f"that much is through in {BEHIND_S} s"
    assert CompressionChoice(7, backlog, throttle, chosen)() == 7

    def counted(level: int) -> float | None:
        return registry.get_sample_value("blockferry_process_server_segments_sealed_total", {"level": str(level)})

    assert [counted(level) for level in (USUAL, SMALLER, 7)] == [2, 1, 1]
