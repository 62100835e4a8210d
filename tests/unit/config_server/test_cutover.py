"""What a migration does next, and that its verdict on identity has no false pass (P6)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core.cutover import (
    CutoverFacts,
    Failed,
    MakeFinalDisks,
    Proved,
    ProveIdentity,
    WaitForFinalPoint,
    WaitForSource,
    Work,
    identity_differences,
    next_step,
)
from replication.control_plane import CutoverObservation, SourceHash
from replication.store_documents import (
    MadeDisk,
    MakeDiskItem,
    RecoveryPoint,
    RecoveryPointDisk,
    WriterAnswer,
    WriterProblem,
)
from tests.harness.scripted_peers import DISK, OTHER_DISK

JOB = "bbbbbbbb-0000-4000-8000-000000000001"
CUT = "bbbbbbbb-0000-4000-8000-000000000002"
ITEM = "bbbbbbbb-0000-4000-8000-000000000003"
REQUEST = "bbbbbbbb-0000-4000-8000-000000000004"
SIZES = {DISK: 1024, OTHER_DISK: 512}
HASHES = {DISK: "a" * 64, OTHER_DISK: "b" * 64}
NAMES = {DISK: "web-disk1", OTHER_DISK: "web-disk2"}
PROBLEM = WriterProblem(code="no-space", message="the store is full", hint="make room")


def point(**changes: Any) -> RecoveryPoint:
    usual: dict[str, Any] = {
        "item": ITEM,
        "cut": CUT,
        "time_ns": 1,
        "consistency": "crash",
        "final": True,
        "disks": [
            RecoveryPointDisk(
                disk=disk, generation=1, epoch=1, manifest_hash="0" * 64, snapshot="s", size_bytes=size
            ).model_dump()
            for disk, size in SIZES.items()
        ],
    }
    return RecoveryPoint.model_validate(usual | changes)


def made(disk: str = DISK, **changes: Any) -> MadeDisk:
    usual = MadeDisk(disk=disk, container="disks", name=NAMES[disk], size_bytes=SIZES[disk])
    return MadeDisk.model_validate(usual.model_dump() | changes)


def answer(**changes: Any) -> WriterAnswer:
    return WriterAnswer.model_validate({"request": REQUEST, "state": "succeeded"} | changes)


def source(disk: str = DISK, **changes: Any) -> SourceHash:
    usual = SourceHash(disk=disk, sha256=HASHES[disk], size_bytes=SIZES[disk])
    return SourceHash.model_validate(usual.model_dump() | changes)


def cutover(**changes: Any) -> CutoverObservation:
    usual: dict[str, Any] = {
        "job": JOB,
        "state": "applied",
        "cut": CUT,
        "source_hashes": [source(disk).model_dump() for disk in SIZES],
        "identity_claimed": True,
    }
    return CutoverObservation.model_validate(usual | changes)


def proved_facts() -> CutoverFacts:
    return CutoverFacts(
        mode="offline-disk",
        disks=list(SIZES),
        agent_silent=False,
        cutover=cutover(),
        point=point(),
        planned=[MakeDiskItem(disk=disk, name=name) for disk, name in NAMES.items()],
        make=Work("succeeded", answer(disks=[made(disk).model_dump() for disk in SIZES])),
        hashes={NAMES[disk]: Work("succeeded", answer(sha256=HASHES[disk])) for disk in SIZES},
    )


def facts(**changes: Any) -> CutoverFacts:
    return dataclasses.replace(proved_facts(), **changes)


def test_identity_is_proved_when_everything_agrees() -> None:
    step = next_step(proved_facts())
    assert isinstance(step, Proved)
    assert step.sha256 == HASHES


def test_steps_before_the_final_point() -> None:
    early: dict[str, Any] = {"point": None, "make": None, "planned": [], "hashes": {}}
    assert next_step(facts(**early, cutover=None)) == WaitForSource(
        "the agent is told to claim the disks", operator=False
    )
    silent = next_step(facts(**early, cutover=None, agent_silent=True))
    assert isinstance(silent, WaitForSource)
    assert silent.operator
    mounted = next_step(facts(**early, cutover=cutover(state="waiting-for-disk", problem=PROBLEM.model_dump())))
    assert isinstance(mounted, WaitForSource)
    assert mounted.operator
    assert "the store is full; make room" in mounted.message
    whole = PROBLEM.model_dump() | {"message": "the store is full; make room"}
    told = next_step(facts(**early, cutover=cutover(state="waiting-for-disk", problem=whole)))
    assert isinstance(told, WaitForSource)
    assert told.message == mounted.message, "an agent that puts its hint into the message, too"
    for state in ("shipping", "sealed", "applied"):
        assert isinstance(next_step(facts(**early, cutover=cutover(state=state))), WaitForFinalPoint)


def test_disks_are_made_then_hashed_before_anything_is_judged() -> None:
    assert isinstance(next_step(facts(make=None, hashes={})), MakeFinalDisks)
    assert next_step(facts(make=Work("put", answer(state="in-progress", done_bytes=5, total_bytes=9)))) == (
        MakeFinalDisks(5, 9)
    )
    hashing = next_step(facts(hashes={}))
    assert isinstance(hashing, ProveIdentity)
    assert (hashing.done_bytes, hashing.total_bytes) == (0, 1536)
    half = {NAMES[DISK]: Work("succeeded", answer(sha256=HASHES[DISK])), NAMES[OTHER_DISK]: Work("put", None)}
    waiting = next_step(facts(hashes=half))
    assert isinstance(waiting, ProveIdentity)
    assert waiting.done_bytes == 1024


def test_verdict_waits_for_the_agent_s_claim() -> None:
    for unfinished in (cutover(state="sealed"), cutover(identity_claimed=False), None):
        assert isinstance(next_step(facts(cutover=unfinished)), ProveIdentity)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"point": point(final=False)}, "final-point"),
        ({"point": point(disks=[point().disks[0].model_dump()])}, "final-point"),
        ({"make": Work("failed", answer(state="failed", problem=PROBLEM.model_dump()))}, "no-space"),
        ({"make": Work("failed", None)}, "unexplained"),
        ({"make": Work("succeeded", answer(disks=[made().model_dump()]))}, "final-disks"),
        (
            {
                "make": Work(
                    "succeeded", answer(disks=[made(DISK, name="x").model_dump(), made(OTHER_DISK).model_dump()])
                )
            },
            "final-disks",
        ),
        (
            {
                "make": Work(
                    "succeeded", answer(disks=[made(DISK, size_bytes=1).model_dump(), made(OTHER_DISK).model_dump()])
                )
            },
            "final-disks",
        ),
        ({"make": Work("succeeded", answer(disks=[made().model_dump()] * 2))}, "final-disks"),
        ({"hashes": {NAMES[DISK]: Work("failed", answer(state="failed", problem=PROBLEM.model_dump()))}}, "no-space"),
        ({"cutover": cutover(source_hashes=[])}, "identity-not-proved"),
        ({"cutover": cutover(source_hashes=[source().model_dump()])}, "identity-not-proved"),
        (
            {
                "cutover": cutover(
                    source_hashes=[source().model_dump(), source(OTHER_DISK, sha256="c" * 64).model_dump()]
                )
            },
            "identity-not-proved",
        ),
        (
            {
                "cutover": cutover(
                    source_hashes=[source().model_dump(), source(OTHER_DISK, size_bytes=513).model_dump()]
                )
            },
            "identity-not-proved",
        ),
    ],
)
def test_what_does_not_agree_fails_without_letting_the_source_go(changes: dict[str, Any], code: str) -> None:
    step = next_step(facts(**changes))
    assert isinstance(step, Failed)
    assert (step.code, step.source_released) == (code, False)


@pytest.mark.parametrize(
    ("sources", "hashed", "divergent"),
    [
        ([source(), source(OTHER_DISK, sha256="c" * 64)], HASHES, [OTHER_DISK]),
        ([source(sha256="c" * 64), source(OTHER_DISK, sha256="c" * 64)], HASHES, [DISK, OTHER_DISK]),
        ([source(sha256="c" * 64)], HASHES, [DISK]),
        ([source()], HASHES, []),
        ([source(), source(OTHER_DISK, size_bytes=513, sha256="c" * 64)], HASHES, []),
        ([source(sha256="c" * 64), source(OTHER_DISK)], {DISK: None, OTHER_DISK: HASHES[OTHER_DISK]}, []),
    ],
)
def test_replica_is_known_to_differ_only_where_both_hashes_are_there(
    sources: list[SourceHash], hashed: dict[str, str | None], divergent: list[str]
) -> None:
    works = {NAMES[disk]: Work("succeeded", answer(sha256=sha256)) for disk, sha256 in hashed.items()}
    step = next_step(facts(cutover=cutover(source_hashes=[each.model_dump() for each in sources]), hashes=works))
    assert isinstance(step, Failed)
    assert [found.disk for found in step.divergent] == divergent
    assert all(found.generation == 1 and found.final_sha256 == HASHES[found.disk] for found in step.divergent)
    assert ("unharmed" in str(step.hint)) == (not divergent)


def test_failure_on_the_source_is_told_at_once_and_the_source_is_free() -> None:
    for earlier in ({}, {"point": None}, {"make": None}):
        step = next_step(facts(**earlier, cutover=cutover(state="failed", problem=PROBLEM.model_dump())))
        assert isinstance(step, Failed)
        assert (step.code, step.source_released) == ("no-space", True)


hashes = st.sampled_from(["a" * 64, "b" * 64])
sizes = st.sampled_from([512, 1024])
disks = st.sampled_from([DISK, OTHER_DISK])


@given(
    st.lists(st.tuples(disks, sizes), max_size=3),
    st.lists(st.builds(SourceHash, disk=disks, sha256=hashes, size_bytes=sizes), max_size=3),
    st.dictionaries(disks, st.none() | hashes),
)
def test_identity_is_proved_only_if_every_disk_agrees_with_exactly_one_source(
    made_sizes: list[tuple[str, int]], sources: list[SourceHash], hashed: dict[str, str | None]
) -> None:
    made_list = [MadeDisk(disk=disk, container="disks", name=disk, size_bytes=size) for disk, size in made_sizes]
    proved = not identity_differences(made_list, sources, hashed)
    one_to_one = len({disk for disk, _ in made_sizes}) == len(made_sizes) == len(sources) > 0
    agree = all(
        [(s.sha256, s.size_bytes) for s in sources if s.disk == disk] == [(hashed.get(disk), size)]
        for disk, size in made_sizes
    )
    assert proved == (one_to_one and agree)
