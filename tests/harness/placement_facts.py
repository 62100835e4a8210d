"""Process servers and items as placement sees them, with the usual facts. Called by the tests of ``core/placement.py``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from config_server.core.age import Age
from config_server.core.capacity import GB, Capacity
from config_server.core.placement import Candidate, Decision, PlacedItem, Rules, decide
from config_server.core.reach import ReachWord

RULES = Rules()
LONG_S = 1e6
CAPACITY = Capacity(1, 250 * GB, 85)
SMALL = Capacity(0, 10 * GB, 10)


def server(identifier: str, *, heard_s: float | None = 1.0, **changes: Any) -> Candidate:
    usual = Candidate(
        identifier=identifier,
        name=f"ps-{identifier}",
        heard=None if heard_s is None else Age(heard_s),
        steady=Age(LONG_S),
        draining=False,
        upload_problem=None,
        spool_free_fraction=1.0,
        capacity=CAPACITY,
    )
    return dataclasses.replace(usual, **changes)


def items(on: str | None, count: int, *, first: int = 0, **changes: Any) -> list[PlacedItem]:
    usual = PlacedItem("", on, 0.0, Age(LONG_S))
    return [
        dataclasses.replace(usual, identifier=f"item-{number:03}", **changes) for number in range(first, first + count)
    ]


def decided(
    servers: Sequence[Candidate],
    placed: Sequence[PlacedItem],
    rules: Rules = RULES,
    listening_s: float = LONG_S,
) -> Decision:
    return decide(servers, placed, rules, listening_s=listening_s)


def targets(decision: Decision) -> list[str]:
    return [move.target for move in decision.moves]


def says(
    *, far: Sequence[str] = (), near: Sequence[str] = (), told_s: float = 30.0, for_s: float = 300.0
) -> dict[str, Any]:
    """What the agent of an item says: the fields of the item."""
    word = ReachWord(Age(told_s), dict.fromkeys(far, Age(for_s)), frozenset(near))
    return {"out_of_reach": frozenset(far), "word": word}


def carried_out(placed: Sequence[PlacedItem], decision: Decision, *, age_s: float) -> list[PlacedItem]:
    moved = {move.item: move.target for move in decision.moves}
    return [
        dataclasses.replace(item, server=moved[item.identifier], since=Age(age_s)) if item.identifier in moved else item
        for item in placed
    ]
