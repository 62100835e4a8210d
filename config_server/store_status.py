"""Whether the store answered when it was last asked. Written by the reconciler, read by readiness checks, status and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StoreStatus:
    """``problem`` None and ``answered_ns`` set: reachable. ``problem``: what the last call complained of."""

    answered_ns: int | None = None
    problem: str | None = None

    def answered(self, now_ns: int) -> None:
        self.answered_ns, self.problem = now_ns, None

    def failed(self, problem: str) -> None:
        self.problem = problem

    @property
    def reachable(self) -> bool:
        return self.problem is None and self.answered_ns is not None
