"""``/healthz`` and Prometheus ``/metrics`` on a loopback listener of their own, apart from the service's traffic.

Called by each ``daemon.py``. ``/healthz`` answers 200 while nothing has failed (degraded included), else 503.
Metric names start with ``blockferry_``; each daemon declares its own next to the code that moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

from replication.service.health import HealthBoard, HealthState
from replication.service.https import ListenAddress, RunningServer, start_server

_HEALTH_PATH: Final = "/healthz"
_METRICS_PATH: Final = "/metrics"


@dataclass(frozen=True, slots=True)
class ObservabilitySettings:
    """Where ``/healthz`` and ``/metrics`` are served in clear; loopback unless an operator opens it on purpose."""

    listen: str

    def __post_init__(self) -> None:
        ListenAddress.parse(self.listen)


def make_registry() -> CollectorRegistry:
    """A registry with the process's own figures (resident memory, CPU, file descriptors)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


async def start_observability(
    settings: ObservabilitySettings, board: HealthBoard, registry: CollectorRegistry
) -> RunningServer:
    """Serve health and metrics until the returned server is closed.

    :raises SettingsError: if the address cannot be bound.
    """

    async def health(_request: web.Request) -> web.Response:
        status = 503 if board.worst is HealthState.FAILED else 200
        return web.json_response(board.as_json(), status=status)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get(_HEALTH_PATH, health)
    app.router.add_get(_METRICS_PATH, metrics)
    return await start_server(app, ListenAddress.parse(settings.listen), tls=None)
