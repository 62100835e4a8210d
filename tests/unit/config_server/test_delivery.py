"""Which notification is sent next and when again: order, pauses, probes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core.delivery import Head, Outcome, Schedule, outcome_of, pause_s


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DELIVERED),
        (204, Outcome.DELIVERED),
        (301, Outcome.REFUSED),
        (400, Outcome.REFUSED),
        (401, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (408, Outcome.UNAVAILABLE),
        (429, Outcome.UNAVAILABLE),
        (500, Outcome.UNAVAILABLE),
        (503, Outcome.UNAVAILABLE),
        (None, Outcome.UNAVAILABLE),
    ],
)
def test_what_an_answer_means(status: int | None, outcome: Outcome) -> None:
    assert outcome_of(status) is outcome


def test_pauses_double_up_to_the_longest() -> None:
    assert [pause_s(failures, 10.0) for failures in (1, 2, 3, 4, 5, 1000)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_receiver_that_is_away_is_probed_one_at_a_time() -> None:
    schedule, heads = Schedule(300.0), [Head("b", 2), Head("a", 1)]
    assert schedule.due(heads, 0.0) == Head("a", 1)
    schedule.note("a", Outcome.UNAVAILABLE, 0.0)
    assert schedule.due(heads, 0.9) is None
    assert schedule.next_s(heads, 0.25) == 0.75
    assert schedule.due(heads, 1.0) == Head("a", 1)
    schedule.note("a", Outcome.UNAVAILABLE, 1.0)
    assert schedule.due(heads, 2.9) is None
    schedule.note("a", Outcome.DELIVERED, 3.0)
    assert schedule.due([Head("b", 2)], 3.0) == Head("b", 2)


def test_a_notification_that_is_refused_keeps_only_its_own_alert_waiting() -> None:
    schedule, heads = Schedule(300.0), [Head("a", 1), Head("b", 2)]
    schedule.note("a", Outcome.REFUSED, 0.0)
    assert schedule.due(heads, 0.5) == Head("b", 2)
    assert schedule.due([Head("a", 1)], 0.5) is None
    assert schedule.due(heads, 1.0) == Head("a", 1)
    schedule.forget_others([Head("b", 2)])
    assert schedule.due(heads, 0.5) == Head("a", 1)


def test_where_nothing_waits_nothing_is_due() -> None:
    schedule = Schedule(300.0)
    assert (schedule.due([], 0.0), schedule.next_s([], 0.0)) == (None, None)


@given(
    queued=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    outcomes=st.lists(st.sampled_from(Outcome), max_size=60),
)
def test_of_an_alert_nothing_overtakes_and_in_the_end_all_is_delivered(
    queued: list[str], outcomes: list[Outcome]
) -> None:
    schedule, now_s, delivered = Schedule(16.0), 0.0, []
    waiting = [Head(alert, sequence) for sequence, alert in enumerate(queued)]
    answers = iter(outcomes)
    while waiting:
        heads = [next(head for head in waiting if head.alert == alert) for alert in {head.alert for head in waiting}]
        head = schedule.due(heads, now_s)
        if head is None:
            pause = schedule.next_s(heads, now_s)
            assert pause is not None
            assert 0.0 < pause <= 16.0
            now_s += pause
            continue
        outcome = next(answers, Outcome.DELIVERED)
        schedule.note(head.alert, outcome, now_s)
        if outcome is Outcome.DELIVERED:
            waiting.remove(head)
            delivered.append(head)
    for alert in "abc":
        order = [head.sequence for head in delivered if head.alert == alert]
        assert order == sorted(order)
