"""What the agent's self-examination makes of facts: findings with a verdict and a remedy. Pure.

Called by ``doctor``, which gathers the facts. *failed*: replication does not work, or will not. *warning*: it works, and something
should be seen to. Limits of the clock are those of the enrolment and of certificates: 15 minutes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from replication.certificate_life import CRITICAL_SHARE, OVERDUE_SHARE
from replication.surroundings import LEAST_FREE_BYTES, digest_tables_bytes

CLOCK_FAILS_S: Final = 15 * 60.0
CLOCK_WARNS_S: Final = 5.0
"""An answer's time has whole seconds, and took its way."""
_CERTIFICATES_PAGE: Final = "docs/operations/certificates.md"


class Verdict(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``remedy`` is empty where nothing need be done."""

    check: str
    verdict: Verdict
    what: str
    remedy: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(check, Verdict.OK, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, Verdict.WARNING, what, remedy)


def failed(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, Verdict.FAILED, what, remedy)


def worst(findings: Iterable[Finding]) -> Verdict:
    order = list(Verdict)
    return max((finding.verdict for finding in findings), key=order.index, default=Verdict.OK)


def judge_limits(limits: str, throttles: Mapping[str, str]) -> Finding:
    """:param limits: what the agent's file says, in words.
    :param throttles: settings of the unit's control group that throttle whatever runs in it, with their values.
    """
    if not throttles:
        return ok("limits", limits)
    found = ", ".join(f"{name} is {value}" for name, value in throttles.items())
    return warning(
        "limits",
        f"the control group of the agent's unit is throttled ({found}): so is a freeze, and its watchdog",
        "take CPUQuota= and MemoryHigh= away from the unit; limit the agent as docs/operations/agent-limits.md says",
    )


def judge_clock(offset_s: float) -> Finding:
    """:param offset_s: the configuration server's clock minus this one."""
    what = f"{abs(offset_s):.0f} s {'behind' if offset_s > 0 else 'ahead of'} the configuration server"
    remedy = "synchronize the clocks of both machines: timedatectl set-ntp true"
    if abs(offset_s) > CLOCK_FAILS_S:
        return failed("clock", what, remedy)
    if abs(offset_s) > CLOCK_WARNS_S:
        return warning("clock", what, remedy)
    return ok("clock", f"within {CLOCK_WARNS_S:.0f} s of the configuration server's")


def judge_certificate(begins_in_s: float, ends_in_s: float) -> Finding:
    """As the configuration server judges it: an alert and this say the same. The agent renews its certificate by itself."""
    days, life_s = ends_in_s / 86400, ends_in_s - begins_in_s
    if begins_in_s > 0:
        return failed(
            "certificate",
            "it is not valid yet",
            "synchronize this machine's clock, which is behind; else the running agent replaces it by itself",
        )
    if ends_in_s <= 0:
        return failed(
            "certificate",
            f"it ended {-days:.0f} days ago",
            "the running agent gets a new one by itself once it reaches the configuration server; "
            f"enrol anew only if its log says that this is refused: {_CERTIFICATES_PAGE}",
        )
    what = f"it ends in {days:.0f} days, and was not renewed at two thirds of its life"
    remedy = f"see the agent's log for what keeps it from renewing; start it if it is down: {_CERTIFICATES_PAGE}"
    if ends_in_s <= life_s * (1 - CRITICAL_SHARE):
        return failed("certificate", what, remedy)
    if ends_in_s <= life_s * (1 - OVERDUE_SHARE):
        return warning("certificate", what, remedy)
    return ok("certificate", f"valid for {days:.0f} days more")


def judge_free_space(
    directory: str, free_bytes: int, disks_bytes: int, tables_bytes: int, granule_bytes: int
) -> Finding:
    """:param disks_bytes: size of all disks that can be protected. :param tables_bytes: what digest tables take already.
    :param granule_bytes: as the agent is configured.
    """
    wanted = max(LEAST_FREE_BYTES, digest_tables_bytes(disks_bytes, granule_bytes) - tables_bytes)
    what = f"{directory} has {free_bytes / 2**20:.0f} MiB free"
    if free_bytes < LEAST_FREE_BYTES:
        return failed("state", what, "free some space there: without it no epoch can be made durable")
    if free_bytes < wanted:
        return warning(
            "state", f"{what}; digest tables of all disks need {wanted / 2**20:.0f} MiB", "free some space there"
        )
    return ok("state", what)
