"""Which process server an item belongs to: take-over, reach, drain, rebalancing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from config_server.core.age import Age
from config_server.core.capacity import GB
from config_server.core.placement import (
    Candidate,
    Cause,
    Decision,
    Hold,
    PlacedItem,
    Rules,
    choose_process_server,
    loads_of,
)
from tests.harness.placement_facts import (
    CAPACITY,
    LONG_S,
    RULES,
    SMALL,
    carried_out,
    decided,
    items,
    says,
    server,
    targets,
)

# -- new items ----------------------------------------------------------------------------------------------------


def test_new_item_goes_to_the_least_loaded_that_is_heard_and_not_drained() -> None:
    assert choose_process_server([], [], RULES) is None
    assert choose_process_server([server("a", heard_s=60.0), server("b", draining=True)], [], RULES) is None
    assert choose_process_server([server("a", heard_s=None)], [], RULES) is None
    assert choose_process_server([server("a"), server("b")], items("a", 2) + items("b", 1, first=2), RULES) == "b"
    for order in itertools.permutations([server("a"), server("b"), server("c")]):
        assert choose_process_server(order, [], RULES) == "a"


def test_new_item_goes_where_the_capacity_is_not_where_the_fewest_items_are() -> None:
    large = dataclasses.replace(CAPACITY, servers=200)
    placed = items("a", 20) + items("b", 15, first=20)
    assert choose_process_server([server("a", capacity=large), server("b")], placed, RULES) == "a"
    heavy = items("a", 1, churn_bytes_per_day=200.0 * GB)
    assert choose_process_server([server("a"), server("b")], heavy + items("b", 5, first=1), RULES) == "b"


def test_new_item_avoids_a_full_spool_and_blocked_uploads_unless_there_is_nothing_else() -> None:
    full, blocked = server("a", spool_free_fraction=0.1), server("b", upload_problem="no route")
    assert choose_process_server([full, blocked, server("c")], items("c", 50), RULES) == "c"
    assert choose_process_server([full], [], RULES) == "a"


# -- take-over ----------------------------------------------------------------------------------------------------


def test_items_of_a_silent_one_go_to_others_by_load_all_at_once() -> None:
    decision = decided([server("a", heard_s=15.5), server("b"), server("c")], items("a", 6) + items("b", 2, first=6))
    assert {move.cause for move in decision.moves} == {Cause.TAKE_OVER}
    assert sorted(targets(decision)) == ["b", "b", "c", "c", "c", "c"]
    assert "silent" not in decision.moves[0].reason
    assert "ps-a was last heard 16 s ago" in decision.moves[0].reason


@pytest.mark.parametrize(("heard_s", "moves"), [(1.0, 0), (14.9, 0), (15.0, 0), (15.1, 3)])
def test_silence_shorter_than_the_limit_changes_nothing(heard_s: float, moves: int) -> None:
    assert len(decided([server("a", heard_s=heard_s), server("b")], items("a", 3)).moves) == moves


def test_silence_counts_only_while_this_server_listened() -> None:
    facts = [server("a", heard_s=86400.0), server("b")], items("a", 3)
    assert decided(*facts, listening_s=15.0) == Decision()
    assert len(decided(*facts, listening_s=15.1).moves) == 3


def test_silence_that_is_not_known_to_be_longer_counts_as_long_as_it_was_looked_at() -> None:
    since_the_clock_was_set = dataclasses.replace(server("a"), heard=Age(3.0, known=False))
    assert decided([since_the_clock_was_set, server("b")], items("a", 1)) == Decision()


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (server("b", heard_s=14.0), "last heard 14 s ago"),
        (server("b", heard_s=None), "not heard"),
        (server("b", draining=True), "being drained"),
        (server("b", upload_problem="the store refuses"), "uploads are blocked: the store refuses"),
        (server("b", spool_free_fraction=0.19), "19% free"),
        (dataclasses.replace(server("b"), heard=Age(1.0, known=False)), "not known"),
    ],
)
def test_nothing_is_given_to_one_that_is_no_better_off_and_it_is_said_why(other: Candidate, why: str) -> None:
    decision = decided([server("a", heard_s=20.0), other], items("a", 1))
    assert decision.moves == ()
    assert why in decision.waiting[0].reason
    assert "ps-b" in decision.waiting[0].reason


def test_single_process_server_that_is_silent_keeps_its_items_waiting() -> None:
    decision = decided([server("a", heard_s=20.0)], items("a", 2))
    assert decision.moves == ()
    assert len(decision.waiting) == 2
    assert "there is no other one" in decision.waiting[0].reason


def test_take_over_can_be_switched_off() -> None:
    decision = decided([server("a", heard_s=20.0), server("b")], items("a", 1), Rules(take_over=False))
    assert decision.moves == ()
    assert "switched off" in decision.waiting[0].reason


def test_cutover_is_taken_over_but_a_held_source_stays() -> None:
    placed = items("a", 1, hold=Hold.CUTOVER) + items("a", 1, first=1, hold=Hold.SOURCE_HELD)
    decision = decided([server("a", heard_s=20.0), server("b")], placed)
    assert [move.item for move in decision.moves] == ["item-000"]
    assert decision.waiting == ()


def test_who_comes_back_is_not_given_his_items_back_at_once() -> None:
    taken_over = [dataclasses.replace(item, since=Age(30.0)) for item in items("b", 60)]
    back = server("a", steady=Age(20.0))
    assert decided([back, server("b")], taken_over) == Decision()
    steady = dataclasses.replace(back, steady=Age(700.0))
    assert decided([steady, server("b")], taken_over) == Decision(), "they have not settled where they are"
    settled = items("b", 60)
    assert len(decided([steady, server("b")], settled).moves) == 1


# -- draining -----------------------------------------------------------------------------------------------------


def test_drained_one_gives_its_items_away_a_few_at_a_time() -> None:
    servers = [server("a", draining=True), server("b"), server("c")]
    placed = items("a", 10)
    moved: list[str] = []
    for _ in range(3):
        decision = decided(servers, placed)
        assert len(decision.moves) <= RULES.drain_burst
        moved += [move.item for move in decision.moves]
        assert decided(servers, carried_out(placed, decision, age_s=1.0)).moves == (), "the burst is not over"
        placed = carried_out(placed, decision, age_s=60.0)
    assert sorted(moved) == [item.identifier for item in items("a", 10)]
    assert decided(servers, placed) == Decision()


def test_drain_waits_for_the_end_of_a_migration_and_says_so() -> None:
    servers = [server("a", draining=True), server("b")]
    for hold in (Hold.CUTOVER, Hold.SOURCE_HELD):
        decision = decided(servers, items("a", 1, hold=hold))
        assert decision.moves == ()
        assert "migration" in decision.waiting[0].reason


def test_drain_without_another_one_says_why_it_does_not_come_forward() -> None:
    decision = decided([server("a", draining=True), server("b", draining=True)], items("a", 1))
    assert decision.moves == ()
    assert "ps-b: it is being drained" in decision.waiting[0].reason


# -- rebalancing --------------------------------------------------------------------------------------------------


def test_new_empty_one_is_filled_one_item_at_a_time_until_the_difference_is_small() -> None:
    servers, placed = [server("a", capacity=SMALL), server("b", capacity=SMALL)], items("a", 10)
    rounds = 0
    while decision := _moves(servers, placed):
        assert len(decision.moves) == 1
        assert decision.moves[0].cause is Cause.REBALANCE
        placed, rounds = carried_out(placed, decision, age_s=LONG_S), rounds + 1
    assert loads_of(servers, placed) == {"a": 0.6, "b": 0.4}
    assert rounds == 4


def test_rebalancing_leaves_time_between_two_moves() -> None:
    servers, placed = [server("a", capacity=SMALL), server("b", capacity=SMALL)], items("a", 10)
    placed = carried_out(placed, decided(servers, placed), age_s=59.0)
    assert decided(servers, placed) == Decision()


def test_rebalancing_waits_for_a_new_one_to_be_steady_and_for_itself_to_have_listened() -> None:
    placed = items("a", 10)
    young = server("b", capacity=SMALL, steady=Age(100.0))
    assert decided([server("a", capacity=SMALL), young], placed) == Decision()
    servers = [server("a", capacity=SMALL), server("b", capacity=SMALL)]
    assert decided(servers, placed, listening_s=599.0) == Decision()
    assert decided(servers, placed, Rules(rebalance=False)) == Decision()
    assert len(decided(servers, placed).moves) == 1


def test_one_heavy_item_is_not_handed_round() -> None:
    heavy = items("a", 1, churn_bytes_per_day=9.0 * GB)
    assert decided([server("a", capacity=SMALL), server("b", capacity=SMALL)], heavy) == Decision()


def _moves(servers: Sequence[Candidate], placed: Sequence[PlacedItem]) -> Decision | None:
    decision = decided(servers, placed)
    return decision if decision.moves else None


# -- what the agent cannot reach ----------------------------------------------------------------------------------

A_IS_FAR = frozenset({"a"})
BOTH_ARE_FAR = frozenset({"a", "b"})


def test_new_item_goes_where_its_agent_has_a_way() -> None:
    servers = [server("a"), server("b")]
    assert choose_process_server(servers, items("b", 3), RULES) == "a"
    assert choose_process_server(servers, items("b", 3), RULES, A_IS_FAR) == "b"
    assert choose_process_server(servers, items("b", 3), RULES, BOTH_ARE_FAR) == "a", "its word may be old"
    full = server("b", spool_free_fraction=0.0)
    assert choose_process_server([server("a"), full], [], RULES, A_IS_FAR) == "b", "a slow way is one"


def test_take_over_goes_where_the_agent_has_a_way() -> None:
    servers = [server("a"), server("b"), server("dead", heard_s=60.0)]
    for told_s in (30.0, LONG_S):
        placed = items("b", 3, first=10) + items("dead", 1, **says(far=["a"], told_s=told_s))
        assert targets(decided(servers, placed)) == ["b"]


def test_take_over_waits_while_the_agent_says_that_it_reaches_none_of_the_others() -> None:
    servers = [server("a"), server("b"), server("dead", heard_s=60.0)]
    for hold in (Hold.NONE, Hold.CUTOVER):
        decision = decided(servers, items("dead", 1, hold=hold, **says(far=["a", "b"], told_s=900.0)))
        assert not decision.moves
        (waiting,) = decision.waiting
        assert "ps-dead was last heard 60 s ago" in waiting.reason
        assert "ps-a: the agent cannot reach it; ps-b: the agent cannot reach it" in waiting.reason
    assert targets(decided(servers, items("dead", 1, **says(far=["a"], near=["dead"])))) == ["b"], "not tried yet"
    assert decided([server("a"), server("b"), server("dead")], items("dead", 1, **says(far=["a", "b"]))) == Decision()


def test_word_that_is_old_keeps_no_item_on_a_dead_process_server() -> None:
    servers = [server("a"), server("b"), server("dead", heard_s=60.0)]
    placed = items("b", 3, first=10) + items("dead", 1, **says(far=["a", "b"], told_s=901.0))
    assert targets(decided(servers, placed)) == ["a"]
    assert targets(decided(servers, items("dead", 1, out_of_reach=BOTH_ARE_FAR))) == ["a"]


def test_item_that_has_lost_its_way_goes_where_its_agent_has_one() -> None:
    servers = [server("a"), server("b"), server("c"), server("d")]
    lost = says(far=["a"], near=["b", "c"])
    (move,) = decided(servers, items("b", 2, first=10) + items("a", 1, **lost)).moves
    assert (move.target, move.cause) == ("c", Cause.REACH), "the least loaded of those that it has connected to"
    assert "its agent cannot reach process server ps-a, but ps-c" in move.reason
    young = [dataclasses.replace(each, steady=Age(5.0)) for each in servers]
    assert decided(young, items("a", 2, **lost), listening_s=60.0).moves, "the newcomers need not have settled"
    assert not decided(young, items("a", 2, **lost), listening_s=59.0).moves, (
        "a word from before this server's start may be of the reboot of both; its agent has had no time for another"
    )


@pytest.mark.parametrize(
    "told",
    [
        says(far=["a"]),
        says(far=["a"], near=["gone"]),
        says(near=["b"]),
        says(far=["a"], near=["b"], for_s=60.0),
        says(far=["a"], near=["b"], told_s=901.0, for_s=2000.0),
        {"since": Age(20.0), **says(far=["a"], near=["b"], told_s=20.0)},
        {"hold": Hold.SOURCE_HELD, **says(far=["a"], near=["b"])},
    ],
    ids=["no-other-is-open", "the-other-was-removed", "it-is-not-lost", "a-restart", "an-old-word", "a-word-from-before", "held"],
)  # fmt: skip
def test_item_stays_where_it_is_as_long_as_it_may_have_a_way_or_has_no_other(told: dict[str, Any]) -> None:
    assert decided([server("a"), server("b")], items("a", 1, **told)) == Decision()


def test_reach_gives_nothing_to_one_that_is_no_better_off() -> None:
    lost = items("a", 1, **says(far=["a"], near=["b"]))
    for other in (server("b", draining=True), server("b", heard_s=12.0), server("b", spool_free_fraction=0.1)):
        assert decided([server("a"), other], lost) == Decision()


@pytest.mark.parametrize(
    ("changes", "rules", "why"),
    [
        ({"hold": Hold.CUTOVER}, RULES, "a migration of it is under way"),
        ({"reach_moved": Age(600.0)}, RULES, "changed over for that within the last 10 min already"),
        ({}, Rules(take_over=False), "switched off"),
    ],
)
def test_item_that_has_lost_its_way_and_must_not_move_says_why(changes: dict[str, Any], rules: Rules, why: str) -> None:
    decision = decided([server("a"), server("b")], items("a", 1, **changes, **says(far=["a"], near=["b"])), rules)
    assert not decision.moves
    assert why in decision.waiting[0].reason
    assert "its agent cannot reach process server ps-a" in decision.waiting[0].reason


def test_drained_item_that_has_lost_its_way_moves_once() -> None:
    servers = [server("a", draining=True), server("b")]
    (move,) = decided(servers, items("a", 1, **says(far=["a"], near=["b"]))).moves
    assert move.cause is Cause.DRAIN


def test_drained_item_keeps_its_way_until_another_one_is_in_reach() -> None:
    servers = [server("a"), server("b"), server("old", draining=True)]
    placed = items("b", 3, first=10) + items("old", 1, out_of_reach=A_IS_FAR)
    assert targets(decided(servers, placed)) == ["b"]
    decision = decided(servers, items("old", 1, out_of_reach=BOTH_ARE_FAR))
    assert not decision.moves
    (waiting,) = decision.waiting
    assert "ps-a: the agent cannot reach it; ps-b: the agent cannot reach it" in waiting.reason


def test_rebalancing_moves_only_who_reaches_the_other_one() -> None:
    servers = [server("a", capacity=SMALL), server("b", capacity=SMALL)]
    assert not decided(servers, items("b", 6, out_of_reach=A_IS_FAR)).moves
    placed = items("b", 5, out_of_reach=A_IS_FAR) + items("b", 1, first=5)
    assert [move.item for move in decided(servers, placed).moves] == ["item-005"]
