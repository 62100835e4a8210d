"""Room by machine: who has least is next, who has most gives way, and a slow line keeps one body."""

from __future__ import annotations

import pytest

from process_server.core.fair_turns import (
    MEASURED_FOR_S,
    PATIENCE_S,
    Incoming,
    is_kept_waiting,
    next_in_turn,
    to_break_off,
    to_send_away,
)

LONGEST_S = 600.0
LENGTH = 8 * 2**20


def coming(machine: str, received_bytes: int, since_s: float = 0.0) -> Incoming:
    return Incoming(machine, since_s, received_bytes, LENGTH)


def test_who_has_least_is_next_and_among_equals_who_came_first() -> None:
    assert next_in_turn(["a", "b", "c"], {"a": 2, "b": 1, "c": 1}) == 1
    assert next_in_turn(["a", "b", "new"], {"a": 2, "b": 1}) == 2
    assert next_in_turn(["a", "b"], {}) == 0


def test_only_others_buffers_keep_a_machine_waiting() -> None:
    assert is_kept_waiting("new", {"a": 1})
    assert not is_kept_waiting("a", {"a": 2, "b": 2})
    assert not is_kept_waiting("a", {"a": 4})


def test_a_machine_with_many_gives_up_the_body_of_which_least_has_come() -> None:
    bodies = [coming("slow", 5000), coming("slow", 3000), coming("slow", 4000), coming("few", 10)]
    assert to_break_off(bodies, {"slow": 3, "few": 1}, "new", PATIENCE_S, LONGEST_S) == 1


@pytest.mark.parametrize(
    ("held", "machine"),
    [({"slow": 1}, "new"), ({"slow": 2, "other": 1}, "other"), ({"slow": 4}, "slow")],
    ids=["its last one", "hardly more than the other has", "its own"],
)
def test_no_body_is_broken_off_that_is_a_fair_share(held: dict[str, int], machine: str) -> None:
    assert to_break_off([coming("slow", 5000)], held, machine, PATIENCE_S, LONGEST_S) is None


def test_a_body_that_has_just_begun_is_not_slow() -> None:
    assert to_break_off([coming("fast", 0, since_s=9.5)], {"fast": 4}, "new", 10.0, LONGEST_S) is None


def test_a_last_body_goes_only_if_it_cannot_be_whole_in_time() -> None:
    now_s = 2 * MEASURED_FOR_S
    least = int(LENGTH * now_s / LONGEST_S)
    for received_bytes, index in ((least - 1, 0), (least + 1, None)):
        assert to_break_off([coming("slow", received_bytes)], {"slow": 1}, "new", now_s, LONGEST_S) == index
    assert to_break_off([coming("slow", 0)], {"slow": 1}, "new", MEASURED_FOR_S - 1, LONGEST_S) is None


def test_in_a_full_queue_who_has_many_places_leaves_the_last_of_them_to_who_has_none() -> None:
    assert to_send_away(["many", "few", "many", "many"], "new") == 3
    assert to_send_away(["a", "b", "c"], "new") is None
    assert to_send_away(["many", "many"], "many") is None
