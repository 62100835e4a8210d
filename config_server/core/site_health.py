"""What is not as it should be with process servers, the site and the churn of servers: thresholds with hysteresis.

Called by ``reconciler/alarms.py``, which gathers the facts. What an item lacks is ``core/health.py``'s. Thresholds are FIELD.md's where
it names one. A process server that is not heard is judged by its silence only: what it last said is not known to be so still.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from config_server.core.age import Age
from config_server.core.alerts import SITE, Found, Limit, Sighting, Subject
from config_server.core.health import (
    BACKLOG_AGE_CRITICAL_S,
    BACKLOG_AGE_WARNING_S,
    SPOOL_FREE_CRITICAL,
    SPOOL_FREE_WARNING,
)
from config_server.core.target_disks import DEFAULT_DISK_TYPE, ChurnLimit, churn_limit
from replication.data_plane import SPOOL_THROTTLED_BELOW

CPU_WARNING: Final = Limit(0.80, 0.75)
CPU_CRITICAL: Final = Limit(0.95, 0.90)
MEMORY_WARNING: Final = Limit(0.80, 0.77)
MEMORY_CRITICAL: Final = Limit(0.95, 0.92)
SPOOL_WARNING: Final = Limit(SPOOL_FREE_WARNING, 0.32)
SPOOL_CRITICAL: Final = Limit(SPOOL_FREE_CRITICAL, 0.27)
BACKLOG_WARNING: Final = Limit(BACKLOG_AGE_WARNING_S, 1500.0)
BACKLOG_CRITICAL: Final = Limit(BACKLOG_AGE_CRITICAL_S, 2400.0)
DAY_CHURN_WARNING: Final = Limit(2e12, 1.9e12)
SERVERS_WARNING: Final = Limit(200.0, 200.0)
STATE_FREE_WARNING: Final = Limit(0.10, 0.12)
STATE_FREE_CRITICAL: Final = Limit(0.05, 0.06)
STATE_SPACE_COUNTED_BYTES: Final = 100 * 2**30
"""Of a larger file system so much counts as the whole: a tenth of many terabytes is enough."""
WEBHOOK_LATE: Final = Limit(900.0, 60.0)
CHURN_CLEARS_AT: Final = 0.9
APP_POINT_LATE_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class ProcessServerState:
    """A process server, silent since it was heard or, if it never was, since it was enrolled.

    ``cpu``, ``memory``: fractions, a mean of the last minute; ``churn_day_bytes``: of its servers in 24 h.
    """

    subject: Subject
    heard_age: Age | None
    enrolled_age: Age
    timeout_s: float
    critical_after_s: float
    cpu: float | None
    memory: float | None
    spool_free_fraction: float | None
    backlog_age_s: float | None
    upload_problem: str | None
    churn_day_bytes: int


def of_process_server(facts: ProcessServerState) -> Iterator[Sighting]:
    """Everything that may be said of one."""
    subject, name = facts.subject, facts.subject.name
    heard = facts.heard_age is not None and facts.heard_age.is_within(facts.timeout_s)
    silent = (facts.heard_age or facts.enrolled_age).exceeds(facts.critical_after_s)
    since = "was never heard" if facts.heard_age is None else f"was {facts.heard_age.heard}"
    yield Sighting(
        "process-server-disconnected",
        subject,
        Found.ABSENT if heard else Found.PRESENT,
        Found.PRESENT if silent else Found.ABSENT,
        f"process server {name} {since}",
        "see that it runs and reaches this server: `systemctl status blockferry-process-server`, then its log",
    )

    def told(value: float | None) -> float | None:
        return value if heard else None

    cpu, memory, spool = told(facts.cpu), told(facts.memory), told(facts.spool_free_fraction)
    backlog_s = told(facts.backlog_age_s)
    yield Sighting(
        "process-server-cpu",
        subject,
        CPU_WARNING.judge(cpu),
        CPU_CRITICAL.judge(cpu),
        f"the processors of {name} are busy to {_percent(cpu)}",
        "give it more processors, or enrol another process server; see what else runs there",
    )
    yield Sighting(
        "process-server-memory",
        subject,
        MEMORY_WARNING.judge(memory),
        MEMORY_CRITICAL.judge(memory),
        f"the memory of {name} is in use to {_percent(memory)}",
        "give it more memory, or enrol another process server; see what else runs there",
    )
    yield Sighting(
        "spool-nearly-full",
        subject,
        SPOOL_WARNING.judge(spool),
        SPOOL_CRITICAL.judge(spool),
        f"the spool of {name} has {_percent(spool)} free"
        + (", so that it accepts more slowly" if spool is not None and spool < SPOOL_THROTTLED_BELOW else ""),
        "more bandwidth to the store; free space on its file system, which counts too; a larger spool",
    )
    yield Sighting(
        "upload-backlog",
        subject,
        BACKLOG_WARNING.judge(backlog_s),
        BACKLOG_CRITICAL.judge(backlog_s),
        f"the oldest segment of {name} has waited {backlog_s or 0.0:.0f} s for its upload",
        "more bandwidth to the store, a higher throttle, or another process server",
    )
    blocked = Found.UNKNOWN if not heard else Found.ABSENT if facts.upload_problem is None else Found.PRESENT
    yield Sighting(
        "upload-blocked",
        subject,
        blocked,
        blocked,
        f"uploads of {name} are blocked: {facts.upload_problem}",
        "check the way to the store, its name, its key",
    )
    yield Sighting(
        "process-server-churn",
        subject,
        DAY_CHURN_WARNING.judge(facts.churn_day_bytes),
        Found.ABSENT,
        f"the servers of {name} changed {facts.churn_day_bytes / 1e12:.2f} TB within a day",
        "enrol another process server: one is made for 2 TB a day",
    )


def _percent(fraction: float | None) -> str:
    return "an unknown share" if fraction is None else f"{fraction:.0%}"


@dataclass(frozen=True, slots=True)
class DiskChurn:
    """``bytes_per_s``: over the last minute; None: not known. ``limit``: by the type of disk that is to be made of it."""

    path: str
    bytes_per_s: float | None
    limit: ChurnLimit

    @property
    def share(self) -> float:
        return (self.bytes_per_s or 0.0) / self.limit.bytes_per_s


_NO_DISK: Final = DiskChurn("-", None, churn_limit(DEFAULT_DISK_TYPE, 0))


@dataclass(frozen=True, slots=True)
class ServerState:
    """What of a protected server ``core/health.py`` does not judge. ``app_interval_s`` None: no app-consistent points are made.

    ``app_point_age_s``: of the newest good one, or since initial replication is over; None: it is not.
    """

    subject: Subject
    disks: tuple[DiskChurn, ...]
    server_limit_bytes: int
    app_interval_s: float | None
    app_point_age_s: float | None


def of_server(facts: ServerState) -> Iterator[Sighting]:
    """Churn beyond the limits (bytes a second), and app-consistent points that do not come."""
    judged = [(_churn(disk.bytes_per_s, disk.limit.bytes_per_s), disk) for disk in facts.disks]
    over = [disk for found, disk in judged if found is Found.PRESENT]
    worst = max(over or facts.disks, key=lambda disk: disk.share, default=_NO_DISK)
    yield Sighting(
        "churn-of-disk",
        facts.subject,
        _worst([found for found, _ in judged]),
        Found.ABSENT,
        f"disk {worst.path} changes at {(worst.bytes_per_s or 0.0) / 1e6:.1f} MB/s; "
        f"the limit is {worst.limit}" + (f" ({len(over)} disks)" if len(over) > 1 else ""),
        "spread the writes over more disks, or plan a faster type of disk: `migratectl set-policy NAME --target-disk-type premium`",
    )
    rates = [disk.bytes_per_s for disk in facts.disks]
    whole = None if not rates or None in rates else sum(rate or 0.0 for rate in rates)
    yield Sighting(
        "churn-of-server",
        facts.subject,
        _churn(whole, facts.server_limit_bytes),
        Found.ABSENT,
        f"its disks change at {(whole or 0.0) / 1e6:.1f} MB/s together; "
        f"the limit is {facts.server_limit_bytes / 1e6:.1f} MB/s",
        "fewer writes, a migration at a quieter time, or a split of the server's load",
    )
    late = facts.app_interval_s is not None and facts.app_point_age_s is not None
    due_s = (facts.app_interval_s or 0.0) + APP_POINT_LATE_S
    yield Sighting(
        "no-app-consistent-point",
        facts.subject,
        Found.PRESENT if late and (facts.app_point_age_s or 0.0) > due_s else Found.ABSENT,
        Found.ABSENT,
        f"the newest app-consistent recovery point is {facts.app_point_age_s or 0.0:.0f} s old; "
        f"one is due every {facts.app_interval_s or 0.0:.0f} s",
        "see the agent's log for the quiesce hooks' last output",
    )


def _churn(bytes_per_s: float | None, limit_bytes: float) -> Found:
    return Limit(limit_bytes, limit_bytes * CHURN_CLEARS_AT).judge(bytes_per_s)


def _worst(found: list[Found]) -> Found:
    """Of several disks: one that is over is enough; absent only if all are."""
    for each in (Found.PRESENT, Found.BETWEEN, Found.UNKNOWN):
        if each in found:
            return each
    return Found.ABSENT


@dataclass(frozen=True, slots=True)
class SiteState:
    """The site as a whole. ``state_free_bytes`` None: the file system did not say; ``webhook_late_s`` None: there is no webhook."""

    store_problem: str | None
    servers: int
    state_free_bytes: int | None
    state_total_bytes: int | None
    webhook_late_s: float | None
    webhook_problem: str | None
    store_remedy: str | None = None
    """If it is known why the store does not answer."""


def of_site(facts: SiteState) -> Iterator[Sighting]:
    """Everything that may be said of it."""
    yield Sighting(
        "store-unreachable",
        SITE,
        Found.ABSENT if facts.store_problem is None else Found.PRESENT,
        Found.ABSENT,
        f"the store does not answer: {facts.store_problem}",
        facts.store_remedy or "check the way to it, its name, its key; jobs and pruning wait for it",
    )
    yield Sighting(
        "too-many-servers",
        SITE,
        SERVERS_WARNING.judge(facts.servers),
        Found.ABSENT,
        f"{facts.servers} servers are protected by this appliance",
        "set up another appliance: one is made for 200 servers",
    )
    free, total = facts.state_free_bytes, facts.state_total_bytes
    share = None if free is None or not total else free / min(total, STATE_SPACE_COUNTED_BYTES)
    yield Sighting(
        "state-space",
        SITE,
        STATE_FREE_WARNING.judge(share),
        STATE_FREE_CRITICAL.judge(share),
        f"the file system of this server's state has {(free or 0) / 2**20:.0f} MiB free",
        "free space on the file system of `state_dir`: if it is full, nothing that is ordered or reported can be written down",
    )
    if facts.webhook_late_s is not None:
        problem = "" if facts.webhook_problem is None else f": {facts.webhook_problem}"
        yield Sighting(
            "webhook-failing",
            SITE,
            WEBHOOK_LATE.judge(facts.webhook_late_s),
            Found.ABSENT,
            f"a notification has waited {facts.webhook_late_s:.0f} s for its receiver{problem}",
            "see the receiver's log; `migratectl test-webhook` tries it",
        )
