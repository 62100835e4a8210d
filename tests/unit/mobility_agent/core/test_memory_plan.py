"""Buffers under a memory limit: they fit, they are never larger than configured, and a limit that is too low is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobility_agent.config import AgentSettings, ConfigServerSettings, LimitsSettings, QuiesceSettings, ShippingSettings
from mobility_agent.core.memory_plan import MIN_MEMORY_BYTES, RESERVED_BYTES, MemoryPlan, fitted
from replication.errors import SettingsError

MIB = 2**20
DEFAULTS = MemoryPlan(8 * MIB, 8, 4, 32 * MIB)
GRANULE = 64 * 1024


@given(
    batch_pages=st.integers(256, 2048),
    buffers=st.integers(2, 64),
    in_flight=st.integers(1, 32),
    round_pages=st.integers(256, 65536),
    memory_bytes=st.integers(MIN_MEMORY_BYTES, 2**32),
)
def test_whatever_is_configured_fits_and_can_be_worked_with(
    batch_pages: int, buffers: int, in_flight: int, round_pages: int, memory_bytes: int
) -> None:
    configured = MemoryPlan(batch_pages * 4096, buffers, min(in_flight, buffers - 1), round_pages * 4096)
    plan = fitted(configured, memory_bytes, GRANULE)
    assert RESERVED_BYTES + plan.buffers * plan.batch_bytes + plan.last_round_bytes <= memory_bytes
    assert plan.batch_bytes <= configured.batch_bytes
    assert plan.buffers <= configured.buffers
    assert plan.last_round_bytes <= configured.last_round_bytes
    # The file's own rules hold for it as for what is configured.
    ShippingSettings(batch_bytes=plan.batch_bytes, buffers=plan.buffers, batches_in_flight=plan.batches_in_flight)
    QuiesceSettings(last_round_bytes=plan.last_round_bytes)


def test_a_quarter_of_a_gibibyte_is_enough_for_the_defaults() -> None:
    assert fitted(DEFAULTS, 256 * MIB, GRANULE) == DEFAULTS


def test_less_memory_means_fewer_buffers_then_smaller_ones() -> None:
    assert fitted(DEFAULTS, 160 * MIB, GRANULE) == MemoryPlan(8 * MIB, 3, 2, 8 * MIB)
    assert fitted(DEFAULTS, MIN_MEMORY_BYTES, GRANULE) == MemoryPlan(2 * MIB, 3, 2, 2 * MIB)


def test_large_granules_need_more() -> None:
    with pytest.raises(SettingsError) as raised:
        fitted(DEFAULTS, MIN_MEMORY_BYTES, 4 * MIB)
    assert raised.value.hint is not None
    least = int(raised.value.hint.split()[2])
    assert fitted(DEFAULTS, least * MIB, 4 * MIB).batch_bytes == 4 * MIB


def test_the_agent_works_with_what_fits() -> None:
    settings = AgentSettings(
        config_server=ConfigServerSettings("https://127.0.0.1:1"), limits=LimitsSettings(memory_bytes=160 * MIB)
    )
    within = settings.within_memory()
    assert within.shipping.buffers * within.shipping.batch_bytes + within.quiesce.last_round_bytes == 32 * MIB
    assert within.within_memory() == within
