"""Every alert there is: how long its condition must last, how long it must be gone, what it comes from. Called by ``reconciler/alarms.py``.

``docs/operations/alerts.md`` has a section for each, which ``tests/unit/config_server/test_alert_pages.py`` holds against this table.
An item's conditions (``core/health.py``) are alerts of that server, but for those that have one cause for many items: these are alerts of
the process server or of the site, raised once (``SHARED``), and those that say what is under way (``NO_ALERTS``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from config_server.core.alerts import Found, Rule, Sighting, Subject, SubjectKind
from config_server.core.health import Condition, Health

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
SUSTAINED_S: Final = 15 * MINUTE_S
"""FIELD.md: processor or memory above its threshold for 15 minutes."""
FORGOTTEN_PAUSE_S: Final = 24 * HOUR_S


def _rule(
    about: SubjectKind,
    cause: str,
    *,
    hold_s: float = MINUTE_S,
    critical_hold_s: float | None = None,
    calm_s: float = 5 * MINUTE_S,
) -> Rule:
    return Rule(about, hold_s, hold_s if critical_hold_s is None else critical_hold_s, calm_s, cause)


CATALOGUE: Final[dict[str, Rule]] = {
    # -- of a protected server -------------------------------------------------------------------------------------
    "agent-disconnected": _rule(
        "server",
        "The server or its agent is down, its certificate has expired, or the network between it and this server is cut.",
        critical_hold_s=0.0,
    ),
    "agent-never-heard": _rule(
        "server",
        "The agent was enrolled and has not been started since, or cannot reach this server.",
        hold_s=SUSTAINED_S,
    ),
    "failed": _rule("server", "A step of the item's life failed; its state names which, its reason why."),
    "replica-differs": _rule(
        "server",
        "A final disk was compared with its source and was another: something wrote to the replica, or a defect.",
        hold_s=0.0,
    ),
    "source-not-held": _rule(
        "server", "The agent was stopped or killed after the proof and has not compared the source again yet."
    ),
    "source-not-heard": _rule(
        "server", "The agent of a migrated source is silent, so nobody knows whether it is still held.", hold_s=300.0
    ),
    "source-written": _rule(
        "server", "Something mounted or wrote the source after the migration was proved.", hold_s=0.0
    ),
    "paused": _rule(
        "server",
        "An operator paused replication a day ago and has not resumed it.",
        hold_s=FORGOTTEN_PAUSE_S,
        calm_s=0.0,
    ),
    "no-process-server": _rule("server", "No process server is enrolled, or all are silent or being drained."),
    "waits-for-take-over": _rule(
        "server", "Its process server is silent, and no other one can take it over; the message says of each why not."
    ),
    "disk-problem": _rule(
        "server", "The agent or the replica writer cannot go on with a disk; the message says why.", hold_s=120.0
    ),
    "disk-not-reported": _rule(
        "server", "The agent runs and does not speak of a disk that it was told to replicate.", hold_s=120.0
    ),
    "tracking-in-doubt": _rule(
        "server",
        "The change tracker is degraded or blind, or lost marks: a kernel change, a write by a path that it does not see.",
        critical_hold_s=0.0,
    ),
    "stalled": _rule("server", "Something on the road from the disk to the replica stands still."),
    "resynchronizing": _rule(
        "server",
        "Tracking was lost (a reboot, a resized disk, a tracker in doubt) or an operator asked for it.",
        hold_s=SUSTAINED_S,
    ),
    "replication-lag": _rule(
        "server",
        "The disk changes faster than the road carries, or process server, store or replica writer are slow or down.",
        calm_s=SUSTAINED_S,
    ),
    "not-converging": _rule(
        "server",
        "The disk changes faster than the bandwidth, the throttle or the limits of its agent let through.",
        hold_s=10 * MINUTE_S,
        calm_s=SUSTAINED_S,
    ),
    "churn-of-disk": _rule(
        "server",
        "Something writes to this disk more than a disk of the type to be made of it takes.",
        hold_s=SUSTAINED_S,
        calm_s=SUSTAINED_S,
    ),
    "churn-of-server": _rule(
        "server",
        "The disks of this server together change faster than can be replicated for one server.",
        hold_s=SUSTAINED_S,
        calm_s=SUSTAINED_S,
    ),
    "rpo-threshold": _rule(
        "server",
        "Recovery points come too late: freezes fail, or the lag is long.",
        calm_s=30 * MINUTE_S,
    ),
    "no-recovery-point": _rule(
        "server",
        "For an hour no good recovery point was made: freezes fail, quiesce hooks are missing, the lag is long, "
        "or tracking is in doubt.",
    ),
    "no-app-consistent-point": _rule(
        "server", "The quiesce hooks fail or take too long, so that no point was app-consistent within its interval."
    ),
    "points-suspect": _rule("server", "Tracking was lost: points cut since the newest proved one may miss writes."),
    "points-lost": _rule(
        "server", "The store was put back to an older state, or somebody deleted records or snapshots in it."
    ),
    "clock-wrong": _rule(
        "server", "The clock of the server or of the appliance is not synchronized.", hold_s=5 * MINUTE_S
    ),
    # -- of a process server -----------------------------------------------------------------------------------------
    "process-server-disconnected": _rule(
        "process-server",
        "The process server is down, its certificate has expired, or the network between it and this server is cut.",
        critical_hold_s=0.0,
    ),
    "process-server-cpu": _rule(
        "process-server",
        "More is compressed and encrypted than its processors can do, or something else runs there.",
        hold_s=SUSTAINED_S,
    ),
    "process-server-memory": _rule(
        "process-server", "Its memory is too small for its load, or something else runs there.", hold_s=SUSTAINED_S
    ),
    "spool-nearly-full": _rule(
        "process-server",
        "Uploads are slower than what agents send, or the spool's file system is filled by something else. "
        "Below 20 % free, batches are accepted more slowly.",
    ),
    "upload-backlog": _rule(
        "process-server",
        "Uploads are slower than what agents send: bandwidth, throttle, or a store that answers slowly.",
    ),
    "upload-blocked": _rule("process-server", "The store refuses, or cannot be reached from the process server."),
    "process-server-churn": _rule(
        "process-server",
        "The servers assigned to it change more than one process server is made for.",
        calm_s=HOUR_S,
    ),
    # -- of the site -------------------------------------------------------------------------------------------------
    "store-unreachable": _rule("site", "The store is down, or the way from this server to it is cut."),
    "writer-silent": _rule("site", "The replica writer is down, or another one holds its lease and does nothing."),
    "answer-refused": _rule("site", "The replica writer signs with another key than this server was given."),
    "too-many-servers": _rule("site", "More servers are protected than one appliance is made for."),
    "state-space": _rule("site", "The file system of this server's state is filled by it or by something else."),
    "webhook-failing": _rule(
        "site", "The receiver is down, refuses, or cannot be reached; or its certificate is wrong."
    ),
    # -- of any --------------------------------------------------------------------------------------------------------
    "certificate-expires": _rule(
        "site",
        "The certificate was not renewed in time: its holder is silent, or is the sink, whose certificate you renew.",
    ),
}
"""By code. ``certificate-expires`` is about whoever holds the certificate."""

OTHER: Final = _rule("server", "A condition of the item.")
"""For a condition that is not in the table yet: better an alert than silence."""

TOLD_BY: Final = {
    "certificate-not-renewed": "certificate-expires",
    "certificate-ended": "certificate-expires",
    "authority-ending": "certificate-expires",
}
"""Conditions that another alert tells: of whoever holds the certificate."""

SHARED: Final = TOLD_BY.keys() | {
    *("process-server-disconnected", "upload-blocked", "spool-nearly-full", "upload-backlog"),
    *("store-unreachable", "writer-silent", "answer-refused"),
}
"""Conditions of items whose cause is not the item's: the process server's, the store's, the writer's, a certificate's."""

NO_ALERTS: Final = frozenset({"not-protected-yet", "no-recovery-point-yet"})
"""What is under way, and is told by ``stalled`` or ``no-recovery-point`` if it does not end."""


def rule_of(code: str) -> Rule:
    return CATALOGUE.get(code, OTHER)


def alert_code(condition: str) -> str | None:
    """The alert that a condition of an item can become; None: none of that server."""
    if condition in SHARED or condition in NO_ALERTS:
        return None
    if condition.startswith("disk-") and condition not in CATALOGUE:
        return "disk-problem"
    return condition


def sightings_of_item(subject: Subject, conditions: Iterable[Condition]) -> list[Sighting]:
    """One for each alert that the conditions of an item's verdict can become; conditions come worst first, the worst speaks."""
    found: dict[str, list[Condition]] = {}
    for condition in conditions:
        code = alert_code(condition.code)
        if code is not None:
            found.setdefault(code, []).append(condition)
    return [sighting_of(code, subject, alike) for code, alike in found.items()]


def sighting_of(code: str, subject: Subject, alike: list[Condition]) -> Sighting:
    """What conditions of one code say together; the first speaks."""
    worst, others = alike[0], len(alike) - 1
    critical = any(condition.health is Health.CRITICAL for condition in alike)
    return Sighting(
        code,
        subject,
        Found.PRESENT,
        Found.PRESENT if critical else Found.ABSENT,
        worst.message + (f" (and {others} more)" if others else ""),
        worst.remedy,
    )
