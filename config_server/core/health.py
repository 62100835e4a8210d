"""The verdict on an item's health, with every reason and remedy. Called by ``item_health.py``.

P3: never Healthy on a replica that cannot be vouched for. Healthy needs all of it: the agent was heard, every tracker tracks, no disk is
in doubt, lags are within thresholds, something moves where something is to be done, the process server and the store answer. What is not
known counts as not good. The worst condition is the verdict. Beside it stands one word on how replication goes (AWS MGN's habit).
Thresholds are FIELD.md's where it names one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from config_server.core.age import Age
from config_server.core.doubt import doubt_of
from config_server.core.point_times import TOLERANCE_S
from config_server.core.point_wait import NO_NEW_POINTS, PointWait, points_are_due
from config_server.core.protected_item import ENDED_STATES, FAILED_STATES, State
from config_server.core.source_hold import SourceHold, hold_now
from replication.control_plane import DiskObservation, Problem
from replication.data_plane import SPOOL_THROTTLED_BELOW

NO_POINT_CRITICAL_S: Final = 3600.0
LAG_WARNING_S: Final = 300.0
LAG_CRITICAL_S: Final = 1800.0
STALLED_S: Final = 300.0
NOT_CONVERGING_S: Final = 300.0
WRITER_SILENT_S: Final = 300.0
WRITER_SILENT_CRITICAL_S: Final = 1800.0
SPOOL_FREE_WARNING: Final = 0.30
SPOOL_FREE_CRITICAL: Final = 0.25
BACKLOG_AGE_WARNING_S: Final = 1800.0
BACKLOG_AGE_CRITICAL_S: Final = 2700.0


class Health(enum.IntEnum):
    """Ordered: the worst wins."""

    HEALTHY = 0
    WARNING = 1
    CRITICAL = 2


class Going(enum.StrEnum):
    """How replication goes, in one word."""

    WAITING = "WAITING"
    INITIAL_SYNC = "INITIAL_SYNC"
    CONTINUOUS = "CONTINUOUS"
    RESCAN = "RESCAN"
    LAGGING = "LAGGING"
    NOT_CONVERGING = "NOT_CONVERGING"
    STALLED = "STALLED"
    DISCONNECTED = "DISCONNECTED"
    PAUSED = "PAUSED"
    HELD = "HELD"
    FAILED = "FAILED"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that is not as it should be; ``code`` is stable."""

    code: str
    health: Health
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A disk, its newest observation and its ages in seconds; ``observation_age_s`` None: not known; ``falling_behind_s``: how long
    its backlog has been growing; None: it does not fall behind.
    """

    disk: str
    observation: DiskObservation | None
    observation_age_s: float | None
    progress_age_s: float
    falling_behind_s: float | None

    @property
    def replication_lag_s(self) -> float | None:
        """As reported, plus the time since; None also if that is not known, and for a held disk, to which nothing is added."""
        return self._aged(None if self.observation is None else self.observation.replication_lag_s)

    @property
    def rpo_lag_s(self) -> float | None:
        """As ``replication_lag_s``."""
        return self._aged(None if self.observation is None else self.observation.rpo_lag_s)

    def _aged(self, reported_s: float | None) -> float | None:
        held = self.observation is not None and self.observation.phase == "held"
        return (
            None
            if reported_s is None or held or self.observation_age_s is None
            else reported_s + self.observation_age_s
        )


@dataclass(frozen=True, slots=True)
class ProcessServerFacts:
    """The assigned process server; ``heard_age`` None: never heard."""

    name: str
    heard_age: Age | None
    timeout_s: float
    spool_free_fraction: float | None = None
    backlog_age_s: float = 0.0
    upload_problem: str | None = None


@dataclass(frozen=True, slots=True)
class HealthFacts:
    """Everything that the verdict rests on. ``agent_age`` None: never heard; ``point_age_s`` None: there is no good point;
    ``seeded_age_s`` None: initial replication is not over.
    """

    state: State
    reason: str | None
    agent_age: Age | None
    agent_timeout_s: float
    critical_after_s: float
    process_server: ProcessServerFacts | None
    disks: Sequence[DiskFacts]
    seeded_age_s: float | None
    point_age_s: float | None
    suspect_points: int
    lost_points: int
    rpo_threshold_s: float
    recovery_point_interval_s: float
    store_problem: str | None
    paused: bool = False
    """Also while a test migration of a paused item is under way."""
    resumed_age_s: float | None = None
    """Since the operator resumed it; None: he never paused it."""
    writer_silence_s: float | None = None
    """How long the replica writer has said nothing about a request of this item that it was given; None: it owes no answer."""
    answer_refused: str | None = None
    wrong_times: int = 0
    """Recovery points found lately that carry another time than that of their cut."""
    clock_offset_s: float = 0.0
    """The protected server's clock less this one's."""
    differing: Sequence[str] = ()
    """Disks whose replica was found to differ from its source and has not been repaired since."""
    repair_ordered: bool = False
    """A resync of the item is open."""
    certificate_conditions: Sequence[Condition] = ()
    """What is wrong with the certificates of its agent and its process server (``certificate_health.py``)."""
    placement_problem: str | None = None
    """Why the item should have another process server and has not."""
    source_hold: SourceHold = "held"
    """Of a migrated item: whether its source still was what was proved when its agent was last heard."""
    point_problem: Problem | None = None
    """Why the agent could not make the newest crash-consistent recovery point that it tried."""
    limit_reached: str | None = None
    """The limit of its own that the agent works at (``agent_limits.py``)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``conditions`` worst first; empty if and only if Healthy. Of an item that has ended nothing is wrong; its health is not shown."""

    health: Health
    going: Going
    conditions: tuple[Condition, ...]


def assess(facts: HealthFacts) -> Verdict:
    """The verdict of this moment."""
    if facts.state in ENDED_STATES:
        return Verdict(Health.HEALTHY, Going.ENDED, ())
    found = sorted(_conditions(facts), key=lambda condition: -condition.health)
    return Verdict(max((c.health for c in found), default=Health.HEALTHY), _going(facts), tuple(found))


def _conditions(facts: HealthFacts) -> Iterator[Condition]:
    if facts.state in FAILED_STATES:
        yield Condition(
            "failed",
            Health.CRITICAL,
            f"{facts.state}: {facts.reason or 'no reason given'}",
            "see the events and the job"
            + ("" if facts.differing else "; the replica and its recovery points are unharmed"),
        )
    yield from _of_differences(facts)
    yield from _of_source(facts)
    if facts.state is State.PAUSED or facts.paused:
        yield Condition("paused", Health.WARNING, "replication is paused: no new recovery points", "resume it")
    yield from _of_agent(facts)
    yield from _of_process_server(facts)
    yield from _of_writer(facts)
    if facts.store_problem is not None:
        yield Condition(
            "store-unreachable",
            Health.WARNING,
            f"the store does not answer: {facts.store_problem}",
            "do what is said, else check the way to it",
        )
    for disk in facts.disks:
        yield from _of_disk(facts, disk)
    yield from _of_clock(facts)
    yield from facts.certificate_conditions
    yield from _of_points(facts)


def _of_differences(facts: HealthFacts) -> Iterator[Condition]:
    if facts.state is State.MIGRATION_FAILED:
        remedy = "cancel the migration: the source runs on, and every block of the disk is sent anew"
    elif facts.repair_ordered:
        remedy = "wait for the end of the resync that sends every block anew"
    else:
        remedy = "`migratectl resync --distrust-digests` sends every block anew"
    for disk in facts.differing:
        yield Condition(
            "replica-differs",
            Health.CRITICAL,
            f"disk {disk}: the replica differs from its source, as a final disk has shown",
            remedy,
        )


def _of_source(facts: HealthFacts) -> Iterator[Condition]:
    if facts.source_hold == "unknown":
        yield Condition(
            "source-not-held",
            Health.WARNING,
            "the source was not held all the time since the migration was proved; it has not been compared again yet",
            "wait until the agent has hashed the source again; if it cannot, cancel, then migrate again",
        )
    elif (
        facts.state is State.MIGRATED
        and hold_now(facts.source_hold, facts.agent_age, facts.agent_timeout_s) == "unknown"
    ):
        since = "its agent was never heard" if facts.agent_age is None else f"its agent was {facts.agent_age.heard}"
        yield Condition(
            "source-not-heard",
            Health.WARNING,
            f"whether the source is still held is not known: {since}",
            "start the agent, which compares the source; if it was shut down for good, complete: soon, or with `--discard-source-changes`",
        )
    elif facts.source_hold == "written":
        yield Condition(
            "source-written",
            Health.CRITICAL,
            "the source has been written to since the migration was proved; the final disks do not hold those writes",
            "cancel, then migrate again; or `migratectl complete --discard-source-changes` if those writes are not wanted",
        )


def _of_agent(facts: HealthFacts) -> Iterator[Condition]:
    if facts.agent_age is None:
        yield Condition("agent-never-heard", Health.CRITICAL, "the agent has not reported yet", "start the agent")
    elif not facts.agent_age.is_within(facts.agent_timeout_s):
        health = Health.CRITICAL if facts.agent_age.exceeds(facts.critical_after_s) else Health.WARNING
        yield Condition(
            "agent-disconnected",
            health,
            f"the agent was {facts.agent_age.heard}",
            "see that the server and its agent run and reach this server",
        )


def _of_process_server(facts: HealthFacts) -> Iterator[Condition]:
    server = facts.process_server
    if server is None:
        why = "no process server is assigned" if facts.placement_problem is None else facts.placement_problem
        yield Condition("no-process-server", Health.CRITICAL, why, "enrol a process server, or undrain one")
        return
    if server.heard_age is None or not server.heard_age.is_within(server.timeout_s):
        silent = server.heard_age is None or server.heard_age.exceeds(facts.critical_after_s)
        since = "was never heard" if server.heard_age is None else f"was {server.heard_age.heard}"
        yield Condition(
            "process-server-disconnected",
            Health.CRITICAL if silent else Health.WARNING,
            f"process server {server.name} {since}",
            "see that it runs and reaches this server",
        )
        if facts.placement_problem is not None:
            yield Condition(
                "waits-for-take-over",
                Health.CRITICAL if silent else Health.WARNING,
                f"nothing is shipped, changes are tracked: {facts.placement_problem}",
                "start that process server again, or make another one able to take its items",
            )
    if server.upload_problem is not None:
        yield Condition(
            "upload-blocked",
            Health.CRITICAL,
            f"uploads are blocked: {server.upload_problem}",
            "check the way to the store",
        )
    if server.spool_free_fraction is not None and server.spool_free_fraction < SPOOL_FREE_WARNING:
        critical = server.spool_free_fraction < SPOOL_FREE_CRITICAL
        yield Condition(
            "spool-nearly-full",
            Health.CRITICAL if critical else Health.WARNING,
            f"the spool of {server.name} has {server.spool_free_fraction:.0%} free"
            + (", so that it accepts more slowly" if server.spool_free_fraction < SPOOL_THROTTLED_BELOW else ""),
            "more bandwidth to the store; free space on its file system, which counts too; a larger spool",
        )
    if server.backlog_age_s > BACKLOG_AGE_WARNING_S:
        critical = server.backlog_age_s > BACKLOG_AGE_CRITICAL_S
        yield Condition(
            "upload-backlog",
            Health.CRITICAL if critical else Health.WARNING,
            f"the oldest segment has waited {server.backlog_age_s:.0f} s for its upload",
            "more bandwidth to the store, or another process server",
        )


def _of_writer(facts: HealthFacts) -> Iterator[Condition]:
    if facts.writer_silence_s is not None and facts.writer_silence_s > WRITER_SILENT_S:
        critical = facts.writer_silence_s > WRITER_SILENT_CRITICAL_S
        yield Condition(
            "writer-silent",
            Health.CRITICAL if critical else Health.WARNING,
            f"the replica writer has not answered a request for {facts.writer_silence_s:.0f} s",
            "see that it runs, and its log",
        )
    if facts.answer_refused is not None:
        yield Condition(
            "answer-refused",
            Health.CRITICAL,
            f"an answer of the replica writer is not accepted: {facts.answer_refused}",
            "see that `writer_public_key` is the line that `azure-sink show-writer-key` prints",
        )


def _of_disk(facts: HealthFacts, disk: DiskFacts) -> Iterator[Condition]:
    observed = disk.observation
    if observed is None:
        if facts.seeded_age_s is not None:
            yield Condition(
                "disk-not-reported",
                Health.CRITICAL,
                f"disk {disk.disk} is not reported by the agent",
                "see the agent's log",
            )
        return
    name = f"disk {disk.disk}"
    if observed.problem is not None:
        yield Condition(
            f"disk-{observed.problem.code}",
            Health.CRITICAL,
            f"{name}: {observed.problem.message}",
            observed.problem.hint or "see the agent's log",
        )
    doubt = doubt_of(observed)
    if doubt is not None:
        blind = observed.tracker_health == "blind"
        yield Condition(
            "tracking-in-doubt",
            Health.CRITICAL if blind else Health.WARNING,
            f"{name}: {doubt}",
            "it repairs itself by a resync; if it returns, see the tracker's requirements",
        )
    if observed.phase in ("paused", "held"):
        return
    if disk.progress_age_s > STALLED_S and observed.phase != "waiting":
        yield Condition(
            "stalled",
            Health.CRITICAL,
            f"{name} has not come forward for {disk.progress_age_s:.0f} s with {observed.backlog_bytes} bytes to do",
            "see the logs of agent, process server and replica writer",
        )
    if observed.phase == "cutting-over":
        return
    if observed.phase == "resynchronizing":
        yield Condition(
            "resynchronizing",
            Health.WARNING,
            f"{name} is being compared and repaired",
            "wait for the end of the resync",
        )
    lag_s = disk.replication_lag_s
    if observed.phase == "replicating" and (lag_s is None or lag_s > LAG_WARNING_S):
        # What a pause has left is being caught up with; for longer than this it may not take.
        catches_up = facts.resumed_age_s is not None and facts.resumed_age_s <= LAG_CRITICAL_S
        critical = lag_s is not None and lag_s > LAG_CRITICAL_S and not catches_up
        text = "is not known" if lag_s is None else f"is {lag_s:.0f} s"
        yield Condition(
            "replication-lag",
            Health.CRITICAL if critical else Health.WARNING,
            f"{name}: replication lag {text}",
            "compare churn with bandwidth",
        )
    if disk.falling_behind_s is not None and disk.falling_behind_s > NOT_CONVERGING_S:
        why = "" if facts.limit_reached is None else f": {facts.limit_reached}"
        yield Condition(
            "not-converging",
            Health.WARNING,
            f"{name} changes at {observed.churn_bytes_per_s / 1e6:.1f} MB/s but ships at "
            f"{observed.send_rate_bytes_per_s / 1e6:.1f} MB/s{why}",
            "a higher limit of the agent (`migratectl set-agent-limits`), or fewer writes"
            if why
            else "more bandwidth, a higher throttle, or fewer writes",
        )


def _of_clock(facts: HealthFacts) -> Iterator[Condition]:
    if facts.wrong_times or abs(facts.clock_offset_s) > TOLERANCE_S:
        points = (
            f"{facts.wrong_times} recovery points of the last day carry a wrong time; " if facts.wrong_times else ""
        )
        yield Condition(
            "clock-wrong",
            Health.WARNING,
            f"{points}the server's clock and this server's differ by {abs(facts.clock_offset_s):.0f} s now",
            "synchronize both clocks (chrony, systemd-timesyncd); points are ordered by their history and nothing is pruned for it",
        )


def _of_points(facts: HealthFacts) -> Iterator[Condition]:
    if facts.suspect_points:
        yield Condition(
            "points-suspect",
            Health.WARNING,
            f"{facts.suspect_points} recovery points may miss writes",
            "use an older or newer point; suspect ones end with their retention",
        )
    if facts.lost_points:
        yield Condition(
            "points-lost",
            Health.WARNING,
            f"{facts.lost_points} recovery points are gone from the store without having been pruned",
            "if the store was put back by mistake, bring its newer state back: they are offered again; else this ends with their retention",
        )
    if facts.state in NO_NEW_POINTS:
        return
    if facts.seeded_age_s is None:
        yield Condition(
            "not-protected-yet",
            Health.WARNING,
            "initial replication is not over: there is nothing to recover from yet",
            "wait for its end",
        )
        return
    if not points_are_due(facts.state, paused=facts.paused):
        return  # it is paused, which is said of it, and becomes an alert in its own time
    due_s = facts.rpo_threshold_s + facts.recovery_point_interval_s
    wait = PointWait(
        age_s=facts.seeded_age_s if facts.point_age_s is None else facts.point_age_s,
        none_yet=facts.point_age_s is None,
        resumed_age_s=facts.resumed_age_s,
    )
    refused = facts.point_problem
    why = "" if refused is None else f": {refused.message}"

    def remedy(otherwise: str) -> str:
        return (None if refused is None else refused.hint) or otherwise

    if wait.waited_s > NO_POINT_CRITICAL_S and wait.waited_s > facts.recovery_point_interval_s:
        remedy_now = remedy("see the agent's freeze times and the lags")
        yield Condition("no-recovery-point", Health.CRITICAL, wait.shortage + why, remedy_now)
    elif wait.waited_s > (due_s if wait.none_yet else facts.rpo_threshold_s):
        yield Condition(
            "rpo-threshold",
            Health.WARNING,
            f"RPO lag {wait.age_s:.0f} s is above the policy's threshold of {facts.rpo_threshold_s:.0f} s"
            f"{wait.since_resumed}{why}",
            remedy("see the lags, or change the policy"),
        )
    elif wait.none_yet or wait.age_s > facts.rpo_threshold_s:
        message = "there is no recovery point yet" if wait.none_yet else wait.shortage
        yield Condition("no-recovery-point-yet", Health.WARNING, message + why, remedy("wait for the first one"))


def _going(facts: HealthFacts) -> Going:
    if facts.state in FAILED_STATES:
        return Going.FAILED
    if facts.state is State.PAUSED:
        return Going.PAUSED
    if facts.agent_age is None or not facts.agent_age.is_within(facts.agent_timeout_s):
        return Going.DISCONNECTED
    phases = {disk.observation.phase for disk in facts.disks if disk.observation is not None}
    moving = [disk for disk in facts.disks if disk.observation is not None and disk.observation.phase != "held"]
    if any(disk.progress_age_s > STALLED_S for disk in moving):
        return Going.STALLED
    if phases and phases <= {"held", "cutting-over"}:
        return Going.HELD
    if any((disk.falling_behind_s or 0.0) > NOT_CONVERGING_S for disk in facts.disks):
        return Going.NOT_CONVERGING
    if facts.seeded_age_s is None:
        return Going.INITIAL_SYNC if "seeding" in phases or "replicating" in phases else Going.WAITING
    if phases & {"resynchronizing", "seeding"}:
        return Going.RESCAN
    if any((disk.replication_lag_s or 0.0) > LAG_WARNING_S for disk in facts.disks):
        return Going.LAGGING
    return Going.CONTINUOUS
