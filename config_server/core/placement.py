"""Which process server a new item is given. Called by ``protection.py`` and the reconciler.

Simple for now: one that was heard, is not draining and can upload, with the fewest items; among equals the one with more spool free,
then by identifier, so that the same facts give the same answer. Capacity tables and take-over come with several process servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process server: is it ``alive`` (heard within its timeout), how many items has it, how much of its spool is free."""

    identifier: str
    alive: bool
    draining: bool
    items: int
    spool_free_fraction: float


def choose_process_server(candidates: Sequence[Candidate]) -> str | None:
    """The identifier of the chosen one, or None if none can take an item."""
    able = [candidate for candidate in candidates if candidate.alive and not candidate.draining]
    best = min(able, key=lambda c: (c.items, -c.spool_free_fraction, c.identifier), default=None)
    return None if best is None else best.identifier
