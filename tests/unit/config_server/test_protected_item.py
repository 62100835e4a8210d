"""The lifecycle table of protected items."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core import protected_item as lifecycle
from config_server.core.protected_item import TRANSITIONS, Event, EventType, Progress, State, next_state
from replication.errors import Conflict

EVENT_TYPES: tuple[EventType, ...] = typing.get_args(Event)
NEEDS_REASON = (
    lifecycle.EnablingFailed,
    lifecycle.TestMigrationFailed,
    lifecycle.CleanupFailed,
    lifecycle.MigrationFailed,
    lifecycle.DeletionFailed,
)
NEEDS_PROGRESS = (
    lifecycle.ReplicationObserved,
    lifecycle.ResumeRequested,
    lifecycle.CleanupSucceeded,
    lifecycle.MigrationCancelled,
)


def make_event(kind: EventType, progress: Progress = Progress.REPLICATING) -> Event:
    arguments: dict[str, object] = {}
    if kind in NEEDS_REASON:
        arguments["reason"] = "because"
    if kind in NEEDS_PROGRESS:
        arguments["progress"] = progress
    return kind(**arguments)  # type: ignore[arg-type]


events = st.builds(make_event, st.sampled_from(EVENT_TYPES), st.sampled_from(Progress))


@given(st.sampled_from(State), events)
def test_next_state_follows_the_table_or_the_event_is_refused(state: State, event: Event) -> None:
    allowed = TRANSITIONS.get((state, type(event)))
    if allowed is None:
        with pytest.raises(Conflict, match="while the item is in state"):
            next_state(state, event)
    else:
        assert next_state(state, event) in allowed


@given(st.lists(events, max_size=60))
def test_walks_never_delete_without_the_operator_s_verb(walk: list[Event]) -> None:
    state, asked = State.ENABLING, False
    for event in walk:
        if (state, type(event)) not in TRANSITIONS:
            continue
        state = next_state(state, event)
        asked = asked or isinstance(event, lifecycle.StopRequested | lifecycle.CompletionRequested)
        if state in lifecycle.DELETING_STATES | lifecycle.ENDED_STATES:
            assert asked


def reachable(start: State) -> set[State]:
    found, pending = {start}, [start]
    while pending:
        here = pending.pop()
        for (state, _kind), targets in TRANSITIONS.items():
            if state is here:
                new = targets - found
                found |= new
                pending += new
    return found


def test_every_state_is_reached_from_enabling() -> None:
    assert reachable(State.ENABLING) == set(State)


@pytest.mark.parametrize("state", [state for state in State if state not in lifecycle.ENDED_STATES])
def test_every_state_leads_to_an_end(state: State) -> None:
    assert reachable(state) & lifecycle.ENDED_STATES


@pytest.mark.parametrize("state", sorted(lifecycle.ENDED_STATES))
def test_ended_items_take_no_event(state: State) -> None:
    assert not [kind for (here, kind) in TRANSITIONS if here is state]


@pytest.mark.parametrize("state", [state for state in State if state not in lifecycle.ENDED_STATES])
def test_an_observation_has_a_place_in_every_state_that_has_not_ended(state: State) -> None:
    assert (state, lifecycle.ReplicationObserved) in TRANSITIONS


@pytest.mark.parametrize(
    "state",
    sorted(lifecycle.TEST_STATES | {State.PAUSED, State.MIGRATING, State.MIGRATED, State.STOPPING, State.COMPLETING}),
)
@pytest.mark.parametrize("progress", Progress)
def test_an_observation_does_not_disturb_a_verb_under_way(state: State, progress: Progress) -> None:
    assert next_state(state, lifecycle.ReplicationObserved(progress)) is state


def test_no_migration_starts_while_anything_is_in_doubt() -> None:
    may = {state for (state, kind) in TRANSITIONS if kind is lifecycle.MigrationRequested}
    assert may == {State.REPLICATING, State.MIGRATION_FAILED}


def test_a_failed_step_can_be_tried_again_or_left() -> None:
    for state in lifecycle.FAILED_STATES:
        ways_out = {kind for (here, kind), targets in TRANSITIONS.items() if here is state and targets != {state}}
        assert ways_out, state


def test_no_event_type_is_forgotten() -> None:
    assert {kind for _state, kind in TRANSITIONS} == set(EVENT_TYPES)


def test_reason_is_kept_from_failures_only() -> None:
    for kind in EVENT_TYPES:
        expected = "because" if kind in NEEDS_REASON else None
        assert lifecycle.reason_of(make_event(kind)) == expected
