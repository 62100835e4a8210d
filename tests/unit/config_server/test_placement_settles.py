"""Placement under constant facts comes to rest, and nothing goes to and fro, whatever the site is like."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from config_server.core.age import Age
from config_server.core.capacity import GB, Capacity
from config_server.core.placement import Candidate, Cause, Hold, PlacedItem, Rules, loads_of
from config_server.core.reach import ReachWord
from tests.harness.placement_facts import LONG_S, RULES, carried_out, decided, items, server

capacities = st.builds(Capacity, st.integers(0, 3), st.integers(1, 2000).map(lambda gb: gb * GB), st.integers(1, 225))
candidates = st.builds(
    Candidate,
    identifier=st.just(""),
    name=st.just("ps"),
    heard=st.sampled_from([None, Age(0.5), Age(9.0), Age(12.0), Age(40.0), Age(2.0, known=False)]),
    steady=st.sampled_from([None, Age(10.0), Age(LONG_S)]),
    draining=st.booleans(),
    upload_problem=st.sampled_from([None, None, "blocked"]),
    spool_free_fraction=st.sampled_from([0.0, 0.19, 0.2, 1.0]),
    capacity=capacities,
)
healthy = candidates.map(
    lambda each: dataclasses.replace(
        each, heard=Age(1.0), steady=Age(LONG_S), draining=False, upload_problem=None, spool_free_fraction=1.0
    )
)


@st.composite
def sites(draw: st.DrawFn, servers: st.SearchStrategy[Candidate]) -> tuple[list[Candidate], list[PlacedItem]]:
    found = [
        dataclasses.replace(each, identifier=f"ps-{number}")
        for number, each in enumerate(draw(st.lists(servers, min_size=1, max_size=5)))
    ]
    known = [each.identifier for each in found]
    placed = []
    for number in range(draw(st.integers(0, 14))):
        far = draw(st.frozensets(st.sampled_from(known), max_size=2))
        near = draw(st.frozensets(st.sampled_from(known))) - far
        told_s = draw(st.sampled_from([10.0, 2000.0]))
        word = ReachWord(Age(told_s), dict.fromkeys(far, Age(draw(st.sampled_from([30.0, LONG_S])))), near)
        placed.append(
            PlacedItem(
                f"item-{number}",
                draw(st.sampled_from([None, *known])),
                draw(st.integers(0, 400)) * float(GB),
                None,
                draw(st.sampled_from([Hold.NONE, Hold.NONE, Hold.NONE, *Hold])),
                far,
                draw(st.sampled_from([None, word])),
            )
        )
    return found, placed


def _settled(
    servers: list[Candidate], placed: list[PlacedItem], rules: Rules
) -> tuple[list[PlacedItem], dict[str, list[str | None]]]:
    """Round after round with facts that stay; where each item has been."""
    been: dict[str, list[str | None]] = {item.identifier: [item.server] for item in placed}
    for _ in range(400):
        decision = decided(servers, placed, rules)
        if not decision.moves:
            return placed, been
        for move in decision.moves:
            been[move.item].append(move.target)
        placed = carried_out(placed, decision, age_s=LONG_S)
    raise AssertionError(f"it does not settle: {been}")


@given(sites(st.one_of(candidates, healthy)), st.floats(0.05, 1.0))
def test_with_constant_facts_it_settles_and_nothing_moves_back(
    site: tuple[list[Candidate], list[PlacedItem]], min_difference: float
) -> None:
    servers, placed = site
    rules = Rules(min_difference=min_difference)
    settled, been = _settled(servers, placed, rules)
    for where in been.values():
        assert len(where) == len(set(where)), f"to and fro: {been}"
    by_name = {each.identifier: each for each in servers}
    for before, after in zip(placed, settled, strict=True):
        if before.server != after.server:
            target = by_name[after.server or ""]
            assert target.is_fresh(rules)
            assert not target.draining
            assert before.hold is not Hold.SOURCE_HELD or before.server is None
            assert before.server is None or target.refusal(rules) is None
            has_way = before.server is not None and not by_name[before.server].is_silent(rules, LONG_S)
            assert not (has_way and after.server in before.out_of_reach)
            if before.server is not None and before.has_fresh_word(rules):
                assert after.server not in before.out_of_reach, "what is out of reach is never better"
        if after.has_lost_its_way(rules) and after.hold is Hold.NONE and not by_name[after.server or ""].draining:
            assert after.word is not None
            near = [each for each in servers if each.identifier in after.word.open_to]
            assert all(each.refusal(rules) is not None for each in near), "it has a way and is not on it"


@given(sites(healthy))
def test_healthy_site_is_never_worse_after_rebalancing(site: tuple[list[Candidate], list[PlacedItem]]) -> None:
    servers, placed = site
    placed = [dataclasses.replace(item, word=None) for item in placed if item.server is not None]
    before = sorted(loads_of(servers, placed).values(), reverse=True)
    settled, _ = _settled(servers, placed, RULES)
    assert sorted(loads_of(servers, settled).values(), reverse=True) <= before


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.integers(1, 40)), max_size=30), st.booleans()
)
def test_ways_that_come_and_go_move_an_item_now_and_then_and_only_to_where_it_has_one(
    words: list[tuple[str, str, int]],
    flaps: bool,
) -> None:
    """Each word lasts for some looks of 30 s. One that names the same server twice says that this one is open, and no other is lost."""
    if flaps:
        words = [("a", "b", 3), ("b", "a", 3)] * 15
    servers = [server("a"), server("b"), server("c")]
    at, now_s, placed_s, moved_s = "a", 0.0, -LONG_S, list[float]()
    lost_s: dict[str, float] = {}
    for far, near, looks in words:
        told_s = now_s
        lost_s = {} if far == near else {far: lost_s.get(far, now_s)}
        for _ in range(looks):
            now_s += 30.0
            word = ReachWord(
                Age(now_s - told_s), {each: Age(now_s - since_s) for each, since_s in lost_s.items()}, frozenset({near})
            )
            (item,) = items(at, 1, out_of_reach=frozenset(lost_s), word=word)
            moved = Age(now_s - moved_s[-1]) if moved_s else None
            item = dataclasses.replace(item, since=Age(now_s - placed_s), reach_moved=moved)
            for move in decided(servers, [item]).moves:
                assert move.cause is Cause.REACH
                assert (at, move.target) == (far, near)
                assert not moved_s or now_s - moved_s[-1] > RULES.between_reach_moves_s
                assert now_s - lost_s[far] > RULES.unreached_after_s
                at, placed_s = move.target, now_s
                moved_s.append(now_s)
    if flaps:
        assert 2 <= len(moved_s) <= now_s / RULES.between_reach_moves_s + 1


@given(sites(candidates), st.randoms())
def test_same_facts_in_any_order_give_the_same_answer(
    site: tuple[list[Candidate], list[PlacedItem]], random: Any
) -> None:
    servers, placed = site
    shuffled, others = list(servers), list(placed)
    random.shuffle(shuffled)
    random.shuffle(others)
    assert decided(shuffled, others) == decided(servers, placed)
