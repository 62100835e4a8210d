"""The verdict on health: Healthy needs all of it, and each lack is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core.age import Age
from config_server.core.health import DiskFacts, Going, Health, HealthFacts, ProcessServerFacts, assess
from config_server.core.protected_item import FAILED_STATES, State
from replication.control_plane import Problem
from tests.harness.scripted_peers import DISK, disk_observation


def disk(**changes: Any) -> DiskFacts:
    own = {"observation_age_s": 1.0, "progress_age_s": 1.0, "falling_behind_s": None}
    own |= {name: changes.pop(name) for name in list(changes) if name in own}
    return DiskFacts(disk=DISK, observation=disk_observation(**changes), **own)  # type: ignore[arg-type]


def healthy_facts() -> HealthFacts:
    return HealthFacts(
        state=State.REPLICATING,
        reason=None,
        agent_age=Age(1.0),
        agent_timeout_s=30.0,
        critical_after_s=900.0,
        process_server=ProcessServerFacts("ps-1", Age(1.0), 30.0, spool_free_fraction=0.9),
        disks=[disk()],
        seeded_age_s=1000.0,
        point_age_s=60.0,
        suspect_points=0,
        lost_points=0,
        rpo_threshold_s=900.0,
        recovery_point_interval_s=300.0,
        store_problem=None,
    )


def facts(**changes: Any) -> HealthFacts:
    return dataclasses.replace(healthy_facts(), **changes)


def test_item_that_lacks_nothing_is_healthy_and_continuous() -> None:
    verdict = assess(healthy_facts())
    assert (verdict.health, verdict.going, verdict.conditions) == (Health.HEALTHY, Going.CONTINUOUS, ())


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        (facts(point_age_s=None, seeded_age_s=10.0), "no-recovery-point-yet"),
        (facts(point_age_s=None, seeded_age_s=3601.0), "no-recovery-point"),
        (facts(point_age_s=3601.0), "no-recovery-point"),
        (facts(point_age_s=901.0), "rpo-threshold"),
    ],
)
def test_what_the_agent_says_of_points_that_it_cannot_make_stands_where_they_lack(
    changed: HealthFacts, code: str
) -> None:
    problem = Problem(code="point-needs-hooks", message="this point needs quiesce hooks", hint="configure quiesce.pre")
    verdict = assess(dataclasses.replace(changed, point_problem=problem))
    [found] = [condition for condition in verdict.conditions if condition.code == code]
    assert found.message.endswith(": this point needs quiesce hooks")
    assert found.remedy == "configure quiesce.pre"


def test_point_that_failed_while_the_newest_is_young_enough_is_no_condition() -> None:
    problem = Problem(code="point-not-made", message="the freeze took longer than its budget of 2 s")
    assert assess(facts(point_problem=problem)).health is Health.HEALTHY


@pytest.mark.parametrize(
    ("changed", "health", "code", "going"),
    [
        (facts(differing=[DISK]), Health.CRITICAL, "replica-differs", Going.CONTINUOUS),
        (facts(state=State.MIGRATED, source_hold="unknown"), Health.WARNING, "source-not-held", None),
        (facts(state=State.MIGRATED, agent_age=Age(31.0)), Health.WARNING, "source-not-heard", None),
        (facts(state=State.MIGRATED, source_hold="written"), Health.CRITICAL, "source-written", None),
        (facts(agent_age=None), Health.CRITICAL, "agent-never-heard", Going.DISCONNECTED),
        (facts(agent_age=Age(31.0)), Health.WARNING, "agent-disconnected", Going.DISCONNECTED),
        (facts(agent_age=Age(901.0)), Health.CRITICAL, "agent-disconnected", Going.DISCONNECTED),
        (facts(process_server=None), Health.CRITICAL, "no-process-server", Going.CONTINUOUS),
        (
            facts(process_server=ProcessServerFacts("ps", None, 30.0)),
            Health.CRITICAL,
            "process-server-disconnected",
            None,
        ),
        (
            facts(process_server=ProcessServerFacts("ps", Age(31.0), 30.0)),
            Health.WARNING,
            "process-server-disconnected",
            None,
        ),
        (
            facts(process_server=ProcessServerFacts("ps", Age(1.0), 30.0, upload_problem="refused")),
            Health.CRITICAL,
            "upload-blocked",
            None,
        ),
        (
            facts(process_server=ProcessServerFacts("ps", Age(1.0), 30.0, spool_free_fraction=0.29)),
            Health.WARNING,
            "spool-nearly-full",
            None,
        ),
        (
            facts(process_server=ProcessServerFacts("ps", Age(1.0), 30.0, spool_free_fraction=0.24)),
            Health.CRITICAL,
            "spool-nearly-full",
            None,
        ),
        (
            facts(process_server=ProcessServerFacts("ps", Age(1.0), 30.0, backlog_age_s=1801.0)),
            Health.WARNING,
            "upload-backlog",
            None,
        ),
        (facts(store_problem="no route"), Health.WARNING, "store-unreachable", None),
        (facts(disks=[disk(tracker_health="blind")]), Health.CRITICAL, "tracking-in-doubt", None),
        (facts(disks=[disk(tracker_health="degraded")]), Health.WARNING, "tracking-in-doubt", None),
        (facts(disks=[disk(doubt="overflow")]), Health.WARNING, "tracking-in-doubt", None),
        (facts(disks=[disk(phase="resynchronizing")]), Health.WARNING, "resynchronizing", Going.RESCAN),
        (facts(disks=[disk(replication_lag_s=299.5)]), Health.WARNING, "replication-lag", Going.LAGGING),
        (facts(disks=[disk(replication_lag_s=None)]), Health.WARNING, "replication-lag", None),
        (facts(disks=[disk(replication_lag_s=2000.0)]), Health.CRITICAL, "replication-lag", Going.LAGGING),
        (facts(disks=[disk(progress_age_s=301.0, backlog_bytes=5)]), Health.CRITICAL, "stalled", Going.STALLED),
        (facts(disks=[disk(falling_behind_s=301.0)]), Health.WARNING, "not-converging", Going.NOT_CONVERGING),
        (
            facts(disks=[disk(problem={"code": "x", "message": "disk is gone", "hint": None})]),
            Health.CRITICAL,
            "disk-x",
            None,
        ),
        (facts(disks=[DiskFacts(DISK, None, 0.0, 0.0, None)]), Health.CRITICAL, "disk-not-reported", None),
        (facts(suspect_points=2), Health.WARNING, "points-suspect", None),
        (facts(lost_points=2), Health.WARNING, "points-lost", None),
        (facts(wrong_times=1), Health.WARNING, "clock-wrong", Going.CONTINUOUS),
        (facts(clock_offset_s=-61.0), Health.WARNING, "clock-wrong", Going.CONTINUOUS),
        (facts(point_age_s=901.0), Health.WARNING, "rpo-threshold", None),
        (facts(point_age_s=3601.0), Health.CRITICAL, "no-recovery-point", None),
        (facts(point_age_s=None, seeded_age_s=10.0), Health.WARNING, "no-recovery-point-yet", None),
        (facts(point_age_s=None, seeded_age_s=3601.0), Health.CRITICAL, "no-recovery-point", None),
        (facts(state=State.PAUSED), Health.WARNING, "paused", Going.PAUSED),
        (facts(state=State.TEST_IN_PROGRESS, paused=True), Health.WARNING, "paused", None),
        (facts(writer_silence_s=301.0), Health.WARNING, "writer-silent", None),
        (facts(writer_silence_s=1801.0), Health.CRITICAL, "writer-silent", None),
        (facts(answer_refused="the signature does not hold"), Health.CRITICAL, "answer-refused", None),
        (
            facts(state=State.MIGRATING, disks=[disk(phase="cutting-over", progress_age_s=301.0, sealed_epoch=4)]),
            Health.CRITICAL,
            "stalled",
            Going.STALLED,
        ),
    ],
)
def test_each_lack_is_named_and_weighed(changed: HealthFacts, health: Health, code: str, going: Going | None) -> None:
    verdict = assess(changed)
    assert verdict.health is health
    assert code in [condition.code for condition in verdict.conditions]
    assert all(condition.message and condition.remedy for condition in verdict.conditions)
    if going is not None:
        assert verdict.going is going


@pytest.mark.parametrize("state", sorted(FAILED_STATES))
def test_failed_item_is_critical_with_its_reason(state: State) -> None:
    verdict = assess(facts(state=state, reason="the disk is gone"))
    assert (verdict.health, verdict.going) == (Health.CRITICAL, Going.FAILED)
    assert "the disk is gone" in verdict.conditions[0].message


def test_replica_that_differs_names_the_way_out_of_each_state_and_nothing_is_called_unharmed() -> None:
    def remedies(**changes: Any) -> str:
        return " ".join(condition.remedy for condition in assess(facts(differing=[DISK], **changes)).conditions)

    failed = remedies(state=State.MIGRATION_FAILED)
    assert "cancel the migration" in failed
    assert "unharmed" not in failed
    assert "wait for the end of the resync" in remedies(repair_ordered=True)
    assert "--distrust-digests" in remedies()


@pytest.mark.parametrize("point_age_s", [None, 1000.0, 3700.0, 30 * 86400.0])
@pytest.mark.parametrize("seeded_age_s", [4000.0, 40 * 86400.0])
@pytest.mark.parametrize("where", [{"state": State.PAUSED}, {"state": State.TEST_IN_PROGRESS, "paused": True}])
def test_of_a_paused_item_no_recovery_point_is_missed_and_it_is_said_that_it_is_paused(
    point_age_s: float | None, seeded_age_s: float, where: dict[str, Any]
) -> None:
    resting = disk(phase="paused", rpo_lag_s=point_age_s, replication_lag_s=point_age_s)
    seen = facts(disks=[resting], seeded_age_s=seeded_age_s, point_age_s=point_age_s, **where)
    verdict = assess(seen)
    assert ([c.code for c in verdict.conditions], verdict.health) == (["paused"], Health.WARNING)
    resumed = dataclasses.replace(seen, state=State.REPLICATING, paused=False)
    missed = {condition.code for condition in assess(resumed).conditions} & {"rpo-threshold", "no-recovery-point"}
    assert missed == {"rpo-threshold" if point_age_s == 1000.0 else "no-recovery-point"}


@pytest.mark.parametrize("point_age_s", [None, 1000.0, 3700.0, 30 * 86400.0])
@pytest.mark.parametrize(
    ("resumed_age_s", "code", "health"),
    [
        (0.0, "no-recovery-point-yet", Health.WARNING),
        (899.0, "no-recovery-point-yet", Health.WARNING),
        (3601.0, "no-recovery-point", Health.CRITICAL),
    ],
)
def test_after_a_pause_a_recovery_point_is_waited_for_from_the_resume_on(
    point_age_s: float | None, resumed_age_s: float, code: str, health: Health
) -> None:
    if point_age_s is not None and resumed_age_s > point_age_s:
        point_age_s = resumed_age_s + 1.0
    verdict = assess(facts(seeded_age_s=40 * 86400.0, point_age_s=point_age_s, resumed_age_s=resumed_age_s))
    assert ([c.code for c in verdict.conditions], verdict.health) == ([code], health)
    if point_age_s is not None:
        assert f"{point_age_s:.0f} s old, none since replication was resumed {resumed_age_s:.0f} s ago" in (
            verdict.conditions[0].message
        ), "how old the newest point is stays what it is"


@given(st.floats(0, 9000), st.none() | st.floats(0, 9000), st.sampled_from([300.0, 7200.0]))
def test_a_resume_puts_off_what_is_wrong_by_no_more_than_its_own_age(
    point_age_s: float, resumed_age_s: float | None, interval_s: float
) -> None:
    def missed(**changes: Any) -> set[str]:
        seen = facts(seeded_age_s=90000.0, recovery_point_interval_s=interval_s, **changes)
        return {c.code for c in assess(seen).conditions} & {"rpo-threshold", "no-recovery-point"}

    waited_s = point_age_s if resumed_age_s is None else min(point_age_s, resumed_age_s)
    assert missed(point_age_s=point_age_s, resumed_age_s=resumed_age_s) == missed(point_age_s=waited_s)


def test_the_lag_that_a_pause_leaves_is_told_and_critical_only_if_it_is_not_caught_up_with() -> None:
    late = facts(disks=[disk(replication_lag_s=86400.0)])

    def lag_health(resumed_age_s: float | None) -> Health:
        [found] = [
            c
            for c in assess(dataclasses.replace(late, resumed_age_s=resumed_age_s)).conditions
            if c.code == "replication-lag"
        ]
        return found.health

    assert [lag_health(age_s) for age_s in (None, 0.0, 1800.0, 1801.0)] == [
        Health.CRITICAL,
        Health.WARNING,
        Health.WARNING,
        Health.CRITICAL,
    ]


@pytest.mark.parametrize("state", [State.MIGRATING, State.MIGRATED, State.MIGRATION_FAILED])
def test_during_a_migration_no_recovery_point_is_missed(state: State) -> None:
    found = {condition.code for condition in assess(facts(state=state, point_age_s=4000.0)).conditions}
    assert not found & {"rpo-threshold", "no-recovery-point"}


def test_a_pause_before_the_end_of_initial_replication_leaves_nothing_to_recover_from() -> None:
    verdict = assess(facts(state=State.PAUSED, seeded_age_s=None, point_age_s=None))
    assert {condition.code for condition in verdict.conditions} == {"paused", "not-protected-yet"}


def test_a_held_disk_has_no_lag() -> None:
    held = disk(replication_lag_s=100.0, rpo_lag_s=100.0, phase="held")
    assert (held.replication_lag_s, held.rpo_lag_s) == (None, None)


def test_lag_includes_the_time_since_it_was_reported() -> None:
    late = disk(replication_lag_s=100.0, observation_age_s=250.0)
    assert late.replication_lag_s == 350.0
    assert assess(facts(disks=[late])).health is Health.WARNING


@given(
    st.sampled_from(["tracking", "degraded", "blind"]),
    st.none() | st.just("doubt"),
    st.none() | st.floats(0, 5000),
    st.sampled_from([1.0, 100.0, 2000.0]),
    st.sampled_from(["replicating", "resynchronizing"]),
)
def test_replica_that_cannot_be_vouched_for_is_never_healthy(
    tracker: str, doubt: str | None, lag_s: float | None, agent_age_s: float, phase: str
) -> None:
    seen = disk(tracker_health=tracker, doubt=doubt, replication_lag_s=lag_s, phase=phase)
    verdict = assess(facts(disks=[seen], agent_age=Age(agent_age_s)))
    sound = (
        tracker == "tracking"
        and doubt is None
        and agent_age_s <= 30
        and phase == "replicating"
        and lag_s is not None
        and lag_s + 1.0 <= 300
    )
    assert (verdict.health is Health.HEALTHY) == sound


def test_seeding_item_is_told_as_initial_sync() -> None:
    seeding = disk(phase="seeding", replication_lag_s=None)
    verdict = assess(facts(state=State.SEEDING, disks=[seeding], seeded_age_s=None, point_age_s=None))
    assert (verdict.health, verdict.going) == (Health.WARNING, Going.INITIAL_SYNC)
    assert [condition.code for condition in verdict.conditions] == ["not-protected-yet"]


def test_a_limit_that_makes_a_disk_fall_behind_is_named_as_the_cause() -> None:
    behind = facts(disks=[disk(falling_behind_s=301.0)])
    (free,) = [each for each in assess(behind).conditions if each.code == "not-converging"]
    limited = dataclasses.replace(behind, limit_reached="its agent may read no faster than 50 MB/s")
    (held,) = [each for each in assess(limited).conditions if each.code == "not-converging"]
    assert held.message == f"{free.message}: its agent may read no faster than 50 MB/s"
    assert "set-agent-limits" in held.remedy
    assert "set-agent-limits" not in free.remedy
    assert not assess(facts(limit_reached="its agent may read no faster than 50 MB/s")).conditions
