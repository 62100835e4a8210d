"""What ``/metrics`` shows of alerts and of what they rest on, from the newest look. Built by ``daemon.py``; called by the registry.

Every severity and code that was ever raised since the start is shown, with 0 when it is over, so that a rule sees the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from config_server.reconciler.alarms import Alarms


class AlertFigures(Collector):
    """Answers Prometheus from ``Alarms.judged``."""

    def __init__(self, alarms: Alarms | None) -> None:
        self._alarms = alarms
        self._shown: set[tuple[str, str]] = set()

    def collect(self) -> Iterable[Metric]:
        judged = None if self._alarms is None else self._alarms.judged
        look = None if judged is None else judged.look
        raised = {} if judged is None else judged.raised
        self._shown |= raised.keys()
        alerts = [(key, raised.get(key, 0)) for key in sorted(self._shown)]
        yield _family("alerts", "Raised alerts", ["severity", "code"], alerts)
        health = [] if judged is None or judged.taken_s is None else [((), judged.health.value)]
        yield _family("site_health", "The worst of alerts and items: 0 healthy, 1 warning, 2 critical", [], health)
        churn = [] if look is None else [((name,), changed) for name, changed in look.churn_of_day.items()]
        yield _family("churn_day_bytes", "Changed within a day by a process server's servers", ["name"], churn)
        free = [] if look is None or look.state_free_bytes is None else [((), look.state_free_bytes)]
        yield _family("state_free_bytes", "Free on the file system of state_dir", [], free)
        webhook = None if look is None else look.webhook
        waiting = [] if webhook is None else [((), webhook.waiting)]
        yield _family("webhook_waiting", "Notifications that wait for the receiver", [], waiting)
        oldest = [] if webhook is None else [((), webhook.oldest_waiting_s)]
        yield _family("webhook_oldest_seconds", "Age of the oldest of them", [], oldest)


def _family(name: str, text: str, labels: list[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(f"blockferry_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(list(key), value)
    return family
