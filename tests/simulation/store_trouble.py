"""What a store in trouble answers instead: 500 or 503 to some calls or to all, or that it is full, as ``azure-sink`` does.

Used by ``network``, for each call that arrives at the store; ``troubles`` says when. Its chances have a random stream of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from replication.blob_client.failures import BlobOverloaded, BlobServiceFailed

_FULL_RETRY_AFTER_S: Final = 10.0
_BODIES: Final = frozenset({"put_blob", "put_pages"})
_GIVING_BACK: Final = frozenset({"delete_blob", "clear_pages", "release_lease"})


class StoreTrouble:
    """What the store answers instead, as ``azure-sink`` does: with 500 the call happened or it did not, with 503 nothing was accepted."""

    def __init__(self, random: Random) -> None:
        self.busy = self.failing = 0.0
        """Chances of 503 and 500, for each call that arrives."""
        self.is_full = False
        """No room for a body; what is small, what gives room back and what only reads goes on."""
        self.is_brimful = False
        """No room for anything small either."""
        self.refusals = 0
        self._random = random

    def answer(self, call: str, effect: Callable[[], Any], *, is_write: bool) -> Any:
        """Of ``effect``, or the trouble's."""
        if (self.is_full and call in _BODIES) or (self.is_brimful and is_write and call not in _GIVING_BACK):
            self.refusals += 1
            raise BlobOverloaded(f"cannot {call}: the store is full", retry_after_s=_FULL_RETRY_AFTER_S)
        if not self.busy and not self.failing:
            return effect()
        draw = self._random.random()
        if draw < self.busy:
            self.refusals += 1
            raise BlobOverloaded(
                f"cannot {call}: the store is busy", retry_after_s=self._random.choice((None, 0.5, 5.0))
            )
        if draw < self.busy + self.failing:
            self.refusals += 1
            if is_write and self._random.random() < 0.5:
                effect()
            raise BlobServiceFailed(f"cannot {call}: the store failed inside")
        return effect()
