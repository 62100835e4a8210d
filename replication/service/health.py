"""Health of a daemon: named checks, each ok, degraded or failed with its reason; the worst is the whole's.

Called by a daemon's parts to report, and by ``observability.py`` to answer ``/healthz``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class HealthState(enum.IntEnum):
    """Ordered: the worst wins."""

    OK = 0
    DEGRADED = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One named part's state; ``reason`` is empty only when it is OK."""

    name: str
    state: HealthState
    reason: str = ""


class HealthBoard:
    """Collects the newest state of each check."""

    def __init__(self) -> None:
        self._checks: dict[str, HealthCheck] = {}

    def report(self, name: str, state: HealthState, reason: str = "") -> None:
        self._checks[name] = HealthCheck(name, state, reason)

    def forget(self, name: str) -> None:
        self._checks.pop(name, None)

    @property
    def checks(self) -> list[HealthCheck]:
        return [self._checks[name] for name in sorted(self._checks)]

    @property
    def worst(self) -> HealthState:
        return max((check.state for check in self._checks.values()), default=HealthState.OK)

    def as_json(self) -> dict[str, object]:
        return {
            "status": self.worst.name.lower(),
            "checks": [{"name": c.name, "status": c.state.name.lower(), "reason": c.reason} for c in self.checks],
        }
