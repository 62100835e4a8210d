"""Echoes of the agent's own writes: when they wait, when they do not, and that nothing waits for ever (R10)."""

from __future__ import annotations

import pytest

from mobility_agent.core.own_writes import BASE_GRANULES, GRANULES_PER_WRITE, MAX_GRANULES, EchoRule, StateWrites

SETTLE_S = 10.0
LONGEST_WAIT_S = 100.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writes(clock: Clock) -> StateWrites:
    return StateWrites(clock)


@pytest.fixture
def rule(writes: StateWrites) -> EchoRule:
    return EchoRule(writes, longest_wait_s=LONGEST_WAIT_S, settle_s=SETTLE_S)


def test_nothing_dirty_is_no_echo(rule: EchoRule, clock: Clock) -> None:
    rule.before_flip()
    assert not rule.is_echo(0, clock())


def test_what_so_many_writes_can_have_caused_waits_and_more_does_not(
    rule: EchoRule, writes: StateWrites, clock: Clock
) -> None:
    writes.note(3)
    rule.before_flip()
    allowed = BASE_GRANULES + 3 * GRANULES_PER_WRITE
    assert rule.is_echo(allowed, clock())
    assert not rule.is_echo(allowed + 1, clock())


def test_writes_after_the_flip_excuse_nothing_in_this_harvest(
    rule: EchoRule, writes: StateWrites, clock: Clock
) -> None:
    rule.before_flip()
    writes.note(100)
    assert not rule.is_echo(BASE_GRANULES + 1, clock())
    rule.before_flip()
    assert rule.is_echo(BASE_GRANULES + 1, clock())


def test_however_often_the_agent_writes_there_is_a_bound(rule: EchoRule, writes: StateWrites, clock: Clock) -> None:
    writes.note(10**6)
    rule.before_flip()
    assert rule.is_echo(MAX_GRANULES, clock())
    assert not rule.is_echo(MAX_GRANULES + 1, clock())


def test_after_settling_the_echo_still_waits_and_anything_new_triggers(
    rule: EchoRule, writes: StateWrites, clock: Clock
) -> None:
    writes.note()
    rule.before_flip()
    assert rule.is_echo(5, clock())
    clock.now_s += SETTLE_S + 1
    assert rule.is_echo(5, clock())
    assert not rule.is_echo(6, clock())


def test_without_any_write_of_the_agent_nothing_waits_once_it_has_settled(rule: EchoRule, clock: Clock) -> None:
    clock.now_s += SETTLE_S + 1
    rule.before_flip()
    assert not rule.is_echo(1, clock())


def test_nothing_waits_longer_than_the_longest_wait(rule: EchoRule, writes: StateWrites, clock: Clock) -> None:
    writes.note()
    rule.before_flip()
    assert rule.is_echo(1, clock())
    clock.now_s += LONGEST_WAIT_S + 1
    writes.note()
    assert not rule.is_echo(1, clock())


def test_a_commit_begins_anew_and_its_writes_excuse_no_later_harvest(
    rule: EchoRule, writes: StateWrites, clock: Clock
) -> None:
    writes.note(50)
    rule.before_flip()
    assert rule.is_echo(BASE_GRANULES + 100, clock())
    clock.now_s += LONGEST_WAIT_S - 1
    rule.committed()
    writes.note()
    rule.before_flip()
    assert not rule.is_echo(BASE_GRANULES + 100, clock())
    clock.now_s += 2
    assert rule.is_echo(BASE_GRANULES, clock())
