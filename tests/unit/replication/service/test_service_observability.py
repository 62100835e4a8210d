"""``/healthz`` and ``/metrics``: what monitoring sees of a daemon, on a listener of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from replication.errors import SettingsError
from replication.service.health import HealthBoard, HealthState
from replication.service.https import RunningServer
from replication.service.observability import ObservabilitySettings, make_registry, start_observability


@pytest.fixture
def board() -> HealthBoard:
    return HealthBoard()


@pytest.fixture
def registry() -> CollectorRegistry:
    return make_registry()


@pytest.fixture
async def server(board: HealthBoard, registry: CollectorRegistry) -> AsyncIterator[RunningServer]:
    running = await start_observability(ObservabilitySettings("127.0.0.1:0"), board, registry)
    yield running
    await running.close()


async def _get(server: RunningServer, path: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}{path}") as response:
        return response.status, response.headers["Content-Type"], await response.text()


@pytest.mark.parametrize(
    ("state", "status"), [(HealthState.OK, 200), (HealthState.DEGRADED, 200), (HealthState.FAILED, 503)]
)
async def test_health_is_an_error_only_when_something_failed(
    server: RunningServer, board: HealthBoard, state: HealthState, status: int
) -> None:
    board.report("spool", state, "because")
    answered, content_type, body = await _get(server, "/healthz")
    assert (answered, content_type.partition(";")[0]) == (status, "application/json")
    assert f'"status": "{state.name.lower()}"' in body
    assert "because" in body


async def test_metrics_hold_the_process_and_what_the_daemon_counts(
    server: RunningServer, registry: CollectorRegistry
) -> None:
    Counter("some_batches", "Batches.", registry=registry).inc(3)
    status, content_type, body = await _get(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert "some_batches_total 3.0" in body
    assert "process_resident_memory_bytes" in body


async def test_anything_else_is_not_found(server: RunningServer) -> None:
    assert (await _get(server, "/"))[0] == 404


def test_unusable_address_is_refused_when_the_settings_are_read() -> None:
    with pytest.raises(SettingsError, match="cannot listen"):
        ObservabilitySettings("nowhere")
