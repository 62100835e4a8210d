"""How long to wait after failures, and whether the store is worth a try at all.

Called by the uploader. Randomness comes in as a number from 0 to 1, the time as an argument.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from replication.errors import BlockferryError, NotFound, PeerProtocolError, Refused, Retryable

FIRST_RETRY_S: Final = 0.25
MAX_RETRY_S: Final = 15.0
SLOW_RETRY_S: Final = 30.0
"""Between tries of what only a person can mend (a wrong key, a missing container)."""
_MAX_DOUBLINGS: Final = 16


def backoff_s(failures: int, chance: float, *, first_s: float = FIRST_RETRY_S, cap_s: float = MAX_RETRY_S) -> float:
    """Seconds to wait after the n-th failure in a row (from 1): doubling up to ``cap_s``, of which the upper half is random.

    :param chance: a random number from 0 to 1.
    """
    whole = min(cap_s, first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    return whole * (0.5 + 0.5 * chance)


class Failure(enum.Enum):
    """What a failed call to the store says about the store."""

    PASSING = enum.auto()
    """It may work soon: no answer, overloaded, an error inside."""
    BLOCKED = enum.auto()
    """Nothing will work until a person acts: key, clock, container."""
    OF_THIS_BLOB = enum.auto()
    """This one request is refused; others may pass."""


def classify(error: BlockferryError) -> Failure:
    match error:
        case Retryable() | PeerProtocolError():
            return Failure.PASSING
        case Refused() | NotFound():
            return Failure.BLOCKED
        case _:
            return Failure.OF_THIS_BLOB


@dataclass(slots=True)
class StoreGate:
    """Closed after failures that concern the whole store; then one probe at a time goes through until one succeeds.

    Invariant: while ``failures`` is 0 everybody may go, and ``problem`` is None. Whoever waits for
    ``opens_at_s`` is in ``on_open``, too: another's success opens it earlier.
    """

    failures: int = 0
    opens_at_s: float = 0.0
    problem: BlockferryError | None = None
    on_open: list[Callable[[], None]] = field(default_factory=list)

    def permits(self, now_s: float) -> bool:
        """Whether another request may start."""
        return self.failures == 0 or now_s >= self.opens_at_s

    def begin(self, now_s: float) -> int:
        """A request starts; returns the ticket for ``failed``. A probe that hangs is joined by another after ``MAX_RETRY_S``."""
        if self.failures:
            self.opens_at_s = now_s + MAX_RETRY_S
        return self.failures

    def failed(self, ticket: int, error: BlockferryError, now_s: float, chance: float) -> None:
        """Note a failure that is not ``OF_THIS_BLOB``. Requests that started before the newest probe say nothing new."""
        if self.failures or ticket == self.failures:
            self.problem = error
        if ticket != self.failures:
            return
        self.failures += 1
        if classify(error) is Failure.BLOCKED:
            wait_s = backoff_s(1, chance, first_s=SLOW_RETRY_S, cap_s=SLOW_RETRY_S)
        else:
            asked_s = (error.retry_after_s or 0.0) if isinstance(error, Retryable) else 0.0
            wait_s = max(backoff_s(self.failures, chance), min(asked_s, SLOW_RETRY_S))
        self.opens_at_s = now_s + wait_s

    def succeeded(self) -> None:
        was_closed = self.failures > 0
        self.failures = 0
        self.problem = None
        if was_closed:
            for hear in self.on_open:
                hear()
