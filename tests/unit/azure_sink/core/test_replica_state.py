"""The replica's life: what may follow what, and that the metadata says exactly that. Called by pytest."""

from __future__ import annotations

import itertools

import pytest

from azure_sink.core.replica_metadata import decode_state, encode_state
from azure_sink.core.replica_state import (
    TRANSITIONS,
    EpochApplied,
    EpochBegun,
    EpochVoided,
    GenerationClosed,
    GenerationOpened,
    GenerationOpening,
    Opening,
    Phase,
    PointMark,
    PointSnapshotTaken,
    Position,
    ReplicaEvent,
    ReplicaState,
    advance,
    created,
)
from replication.errors import PeerProtocolError, Refused
from replication.identifiers import CutId, DiskId, ItemId

ITEM = ItemId("00000000-0000-4000-8000-000000000001")
DISKS = tuple(DiskId(f"00000000-0000-4000-8000-0000000001{n:02x}") for n in range(64))
MARK = PointMark(CutId("00000000-0000-4000-8000-000000000002"), ITEM, DISKS, app_consistent=True, final=True)
HASH = "ab" * 32
OPENING = GenerationOpening(Opening(1, 4096, ITEM))


def after(*events: ReplicaEvent) -> ReplicaState:
    state = created(ITEM, 4096)
    for event in events:
        state = advance(state, event)
    return state


SETTLED = (OPENING, GenerationOpened())
APPLIED = (*SETTLED, EpochBegun(1), EpochApplied(1, HASH, 77))
POINT = (*SETTLED, EpochBegun(1), EpochApplied(1, HASH, 77, MARK))

STORIES: dict[Phase, tuple[ReplicaEvent, ...]] = {
    Phase.CREATED: (),
    Phase.OPENING: (OPENING,),
    Phase.SETTLED: APPLIED,
    Phase.APPLYING: (*APPLIED, EpochBegun(2)),
    Phase.POINT_DUE: POINT,
    Phase.CLOSED: (*APPLIED, GenerationClosed()),
}
EVENTS: tuple[ReplicaEvent, ...] = (
    GenerationOpening(Opening(2, 8192, ITEM)),
    GenerationOpened(),
    EpochBegun(2),
    EpochApplied(2, HASH, 78),
    EpochVoided(2, HASH),
    PointSnapshotTaken(),
    GenerationClosed(),
)


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, EVENTS)), ids=str)
def test_only_listed_transitions_are_taken(phase: Phase, event: ReplicaEvent) -> None:
    state = after(*STORIES[phase])
    assert state.phase is phase
    if (phase, type(event)) in TRANSITIONS:
        assert advance(state, event).phase in TRANSITIONS[phase, type(event)]
    else:
        with pytest.raises(Refused):
            advance(state, event)


@pytest.mark.parametrize("phase", Phase)
def test_metadata_says_the_state(phase: Phase) -> None:
    state = after(*STORIES[phase])
    assert decode_state(encode_state(state)) == state


def test_metadata_of_a_torn_generation_says_the_epoch() -> None:
    state = after(*APPLIED, EpochBegun(2), GenerationClosed())
    assert state.torn_epoch == 2
    assert decode_state(encode_state(state)) == state
    assert decode_state(encode_state(state)).applied == Position(1, 1)


def test_point_whose_snapshot_is_only_remembered_comes_back_as_due() -> None:
    state = after(*POINT, PointSnapshotTaken())
    assert state.phase is Phase.SETTLED
    assert decode_state(encode_state(state)).phase is Phase.POINT_DUE


def test_metadata_of_a_point_of_64_disks_fits_the_service() -> None:
    metadata = encode_state(after(*POINT))
    assert sum(len(name) + len(value) for name, value in metadata.items()) < 8 * 1024
    assert all(name.isidentifier() and name == name.lower() for name in metadata)
    assert all(value.isascii() and value.isprintable() for value in metadata.values())


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_epochs_are_applied_in_order(epoch: int) -> None:
    with pytest.raises(Refused):
        advance(after(*APPLIED), EpochBegun(epoch))
    with pytest.raises(Refused):
        advance(after(*APPLIED), EpochVoided(epoch, HASH))
    with pytest.raises(Refused):
        advance(after(*APPLIED, EpochBegun(2)), EpochApplied(epoch, HASH, 1))


def test_epoch_is_begun_again_after_a_crash() -> None:
    state = after(*APPLIED, EpochBegun(2))
    assert advance(state, EpochBegun(2)) == state


def test_void_epoch_keeps_the_time_of_the_cut_before() -> None:
    state = advance(after(*APPLIED), EpochVoided(2, "cd" * 32))
    assert (state.applied, state.manifest_hash, state.cut_time_ns) == (Position(1, 2), "cd" * 32, 77)


def test_generation_is_not_opened_twice() -> None:
    closed = after(*APPLIED, GenerationClosed())
    with pytest.raises(Refused):
        advance(closed, OPENING)
    assert advance(closed, GenerationOpening(Opening(3, 512, ITEM))).phase is Phase.OPENING


def test_opened_generation_starts_from_nothing_applied() -> None:
    state = after(*APPLIED, GenerationClosed(), GenerationOpening(Opening(2, 8192, ITEM)), GenerationOpened())
    assert state == ReplicaState(Phase.SETTLED, ITEM, 8192, Position(2, 0))


@pytest.mark.parametrize(
    "damage",
    [
        {"bfversion": "2"},
        {"item": "x"},
        {"sizebytes": "many"},
        {"applied": "1/2"},
        {"applied": "1/2/xyz"},
        {"applying": ""},
        {"opening": "1"},
        {"point": "a/b/c/d"},
        {"pointdisks": "zz"},
    ],
    ids=str,
)
def test_damaged_metadata_is_refused(damage: dict[str, str]) -> None:
    with pytest.raises(PeerProtocolError):
        decode_state({**encode_state(after(*POINT)), **damage})


def test_metadata_of_nothing_is_refused() -> None:
    with pytest.raises(PeerProtocolError):
        decode_state({})
