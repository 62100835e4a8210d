"""Late or reverted: when a store that says less than was known is taken for one that was put back to an older state."""

from __future__ import annotations

from mobility_agent.core.sink_standing import (
    IN_STEP,
    REVERTED_AFTER_ANSWERS,
    REVERTED_AFTER_S,
    SinkReverted,
    SinkStanding,
)
from replication.identifiers import DiskId, EpochId

DISK = DiskId("22222222-2222-4222-8222-222222222222")


def behind(*seen: tuple[int, float]) -> SinkStanding:
    standing = IN_STEP
    for epoch, now_s in seen:
        standing = standing.found_behind(EpochId(epoch), now_s)
    return standing


def test_in_step_there_is_no_problem_and_nothing_is_reverted() -> None:
    assert IN_STEP.problem(EpochId(9)) is None
    assert not IN_STEP.is_reverted(1e9)


def test_a_store_that_stays_behind_is_reverted_after_the_deadline_and_not_before() -> None:
    standing = behind((4, 100.0), (4, 110.0), (4, 100.0 + REVERTED_AFTER_S))
    assert not standing.is_reverted(100.0 + REVERTED_AFTER_S - 0.1)
    assert standing.is_reverted(100.0 + REVERTED_AFTER_S)


def test_one_answer_is_not_enough_however_long_ago_it_came() -> None:
    assert not behind((4, 100.0)).is_reverted(1e6)
    assert not behind(*[(4, 100.0)] * (REVERTED_AFTER_ANSWERS - 1)).is_reverted(1e6)


def test_a_writer_that_applies_what_the_older_store_still_holds_is_waited_for() -> None:
    standing = behind((4, 100.0), (4, 110.0), (5, 119.0), (5, 125.0), (5, 130.0))
    assert not standing.is_reverted(130.0)
    assert standing.is_reverted(119.0 + REVERTED_AFTER_S)


def test_a_store_that_falls_further_does_not_begin_the_wait_anew() -> None:
    assert behind((4, 100.0), (2, 110.0), (0, 121.0)).is_reverted(121.0)


def test_it_is_said_at_once_with_what_to_do() -> None:
    problem = behind((4, 100.0)).problem(EpochId(9))
    assert problem is not None
    assert (problem.code, problem.message) == ("sink-behind", "the sink is at epoch 4, though it had applied epoch 9")
    assert problem.hint is not None
    assert "bring the newer one back" in problem.hint
    emptied = behind((0, 100.0)).problem(EpochId(9))
    assert emptied is not None
    assert "knows nothing of this generation" in emptied.message


def test_the_error_leads_to_a_resync_that_trusts_no_digest() -> None:
    error = behind((4, 100.0)).error(DISK, EpochId(9))
    assert isinstance(error, SinkReverted)
    assert error.code == "sink-reverted"
    assert error.message == "cannot go on: the sink is at epoch 4, though it had applied epoch 9"
