"""Waiting after failures, and the gate that keeps a failing store from being flooded."""

from __future__ import annotations

import pytest

from process_server.core.backoff import (
    MAX_RETRY_S,
    SLOW_RETRY_S,
    Failure,
    StoreGate,
    backoff_s,
    classify,
)
from replication.blob_client.failures import failure_from_answer
from replication.errors import (
    BlockferryError,
    IntegrityError,
    NotFound,
    Overloaded,
    PeerProtocolError,
    PeerUnavailable,
    Refused,
    Retryable,
)

AWAY = PeerUnavailable("cannot reach it")


def test_waits_double_up_to_their_limit_and_only_the_upper_half_is_chance() -> None:
    longest = [backoff_s(failures, 1.0) for failures in range(1, 9)]
    assert longest == [0.25, 0.5, 1, 2, 4, 8, MAX_RETRY_S, MAX_RETRY_S]
    assert [backoff_s(failures, 0.0) * 2 for failures in range(1, 9)] == longest
    assert backoff_s(10**6, 1.0) == MAX_RETRY_S


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AuthenticationFailed", Failure.BLOCKED),
        (404, "ContainerNotFound", Failure.BLOCKED),
        (409, "ContainerBeingDeleted", Failure.OF_THIS_BLOB),
        (412, "ConditionNotMet", Failure.OF_THIS_BLOB),
        (400, "InvalidBlobType", Failure.OF_THIS_BLOB),
        (429, "TooManyRequests", Failure.PASSING),
        (500, "InternalError", Failure.PASSING),
        (503, "ServerBusy", Failure.PASSING),
        (302, "", Failure.PASSING),
    ],
)
def test_each_answer_of_a_store_means_the_store_or_the_blob(status: int, code: str, expected: Failure) -> None:
    assert classify(failure_from_answer(status, code, "put blob x")) is expected


@pytest.mark.parametrize("error", [AWAY, Overloaded("cannot"), PeerProtocolError("cannot"), IntegrityError("cannot")])
def test_no_answer_and_a_broken_one_may_pass(error: BlockferryError) -> None:
    assert classify(error) is Failure.PASSING


def test_an_open_gate_lets_everybody_through() -> None:
    gate = StoreGate()
    assert all(gate.permits(now_s) for now_s in (0, 5, 5))
    assert gate.begin(5) == 0
    assert gate.problem is None


def test_after_a_failure_one_probe_at_a_time_goes_through() -> None:
    gate = StoreGate()
    gate.failed(gate.begin(0), AWAY, 0, 1.0)
    assert not gate.permits(0.2)
    assert gate.permits(0.25)
    gate.begin(0.25)
    assert not gate.permits(0.25)
    assert not gate.permits(0.25 + MAX_RETRY_S - 0.01)
    assert gate.permits(0.25 + MAX_RETRY_S), "a probe that hangs is joined by another"


def test_many_that_fail_together_count_as_one_failure() -> None:
    gate = StoreGate()
    tickets = [gate.begin(0) for _ in range(8)]
    for ticket in tickets:
        gate.failed(ticket, AWAY, 1, 1.0)
    assert (gate.failures, gate.opens_at_s) == (1, 1.25)


def test_failed_probes_wait_longer_and_longer_until_one_succeeds() -> None:
    gate, now_s, waits = StoreGate(), 0.0, []
    for _ in range(9):
        gate.failed(gate.begin(now_s), AWAY, now_s, 1.0)
        waits.append(gate.opens_at_s - now_s)
        now_s = gate.opens_at_s
    assert waits == [0.25, 0.5, 1, 2, 4, 8, MAX_RETRY_S, MAX_RETRY_S, MAX_RETRY_S]
    gate.succeeded()
    assert gate.permits(0)
    assert gate.problem is None


def test_whoever_waits_hears_once_that_the_gate_is_open_again() -> None:
    gate, heard = StoreGate(), []
    gate.on_open.append(lambda: heard.append(gate.permits(0)))
    gate.succeeded()
    assert heard == []
    gate.failed(gate.begin(0), AWAY, 0, 1.0)
    gate.succeeded()
    gate.succeeded()
    assert heard == [True]


def test_what_only_a_person_can_mend_is_tried_rarely() -> None:
    for error in (Refused("cannot"), NotFound("cannot")):
        gate = StoreGate()
        gate.failed(gate.begin(0), error, 0, 1.0)
        assert gate.opens_at_s == SLOW_RETRY_S
        assert gate.problem is error


def test_the_patience_that_a_store_asks_for_is_honoured_within_reason() -> None:
    gate = StoreGate()
    gate.failed(gate.begin(0), Retryable("cannot", retry_after_s=7), 0, 1.0)
    assert gate.opens_at_s == 7
    gate.failed(gate.begin(7), Retryable("cannot", retry_after_s=86400), 7, 1.0)
    assert gate.opens_at_s == 7 + SLOW_RETRY_S


def test_a_late_failure_of_before_an_outage_ended_does_not_close_the_gate_again() -> None:
    gate = StoreGate()
    late = gate.begin(0)
    gate.failed(gate.begin(0), AWAY, 0, 1.0)
    gate.failed(gate.begin(1), AWAY, 1, 1.0)
    gate.failed(late, Refused("cannot"), 1, 1.0)
    assert gate.failures == 2
    assert gate.opens_at_s == 1.5
