"""What a service's listener counts for Prometheus: open connections, those cut to make room, requests that are no HTTP.

Registered by each server's ``daemon.py`` once it listens.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from replication.service.connections import Listener


class ConnectionFigures(Collector):
    """Asks the listener when Prometheus asks."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def collect(self) -> Iterator[Metric]:
        places = self._listener.places
        connections = GaugeMetricFamily("blockferry_connections", "Open connections by what they do", labels=["state"])
        for state, count in (("unidentified", places.unidentified), ("idle", places.idle), ("busy", places.busy)):
            connections.add_metric([state], count)
        yield connections
        yield CounterMetricFamily(
            "blockferry_connections_cut_for_room", "Connections closed for new ones", value=self._listener.cut_for_room
        )
        yield CounterMetricFamily(
            "blockferry_malformed_requests", "Requests that are no HTTP", value=self._listener.malformed_requests
        )
