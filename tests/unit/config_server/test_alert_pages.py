"""``docs/operations/alerts.md`` and the catalogue of alerts say the same: codes, causes, times, thresholds; each has a remedy."""

from __future__ import annotations

import re
from typing import Final

import pytest

from config_server.alert_settings import AlertSettings
from config_server.config import HeartbeatSettings
from config_server.core import certificate_health, health, site_health
from config_server.core.alert_catalogue import CATALOGUE, NO_ALERTS
from config_server.core.alerts import Limit
from tests.harness.source_tree import REPOSITORY

PAGE: Final = (REPOSITORY / "docs/operations/alerts.md").read_text()
SECTIONS: Final[dict[str, str]] = dict(re.findall(r"^## (\S+)\n\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def _duration(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % unit == 0 and (seconds > unit or name != "d"):
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _after(seconds: float) -> str:
    return "at once" if seconds == 0 else f"after {_duration(seconds)}"


def test_the_page_has_a_section_for_every_alert_and_no_other() -> None:
    assert list(SECTIONS) == list(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_cause_and_times_are_the_code_s_and_there_is_a_remedy(code: str) -> None:
    rule, section = CATALOGUE[code], SECTIONS[code]
    assert f"- **Cause:** {rule.cause}\n" in section
    remedy = re.search(r"- \*\*Remedy:\*\* (.+)\n", section)
    assert remedy is not None
    assert len(remedy[1].split()) >= 3
    critical = "" if rule.critical_hold_s == rule.hold_s else f", critical {_after(rule.critical_hold_s)}"
    assert f"Raised {_after(rule.hold_s)}{critical}; over {_after(rule.calm_s)}." in section
    assert re.search(r"\b(Warning|Critical): ", section)


def _shares(warning: Limit, critical: Limit) -> list[str]:
    return [
        f"{share:.0%}".replace("%", " %") for limit in (warning, critical) for share in (limit.enters, limit.leaves)
    ]


@pytest.mark.parametrize(
    ("code", "numbers"),
    [
        ("process-server-cpu", _shares(site_health.CPU_WARNING, site_health.CPU_CRITICAL)),
        ("process-server-memory", _shares(site_health.MEMORY_WARNING, site_health.MEMORY_CRITICAL)),
        ("spool-nearly-full", _shares(site_health.SPOOL_WARNING, site_health.SPOOL_CRITICAL)),
        ("state-space", _shares(site_health.STATE_FREE_WARNING, site_health.STATE_FREE_CRITICAL)),
        (
            "upload-backlog",
            [
                _duration(seconds)
                for limit in (site_health.BACKLOG_WARNING, site_health.BACKLOG_CRITICAL)
                for seconds in (limit.enters, limit.leaves)
            ],
        ),
        (
            "process-server-churn",
            [
                f"{site_health.DAY_CHURN_WARNING.enters / 1e12:g} TB",
                f"{site_health.DAY_CHURN_WARNING.leaves / 1e12:g} TB",
            ],
        ),
        ("too-many-servers", [f"more than {site_health.SERVERS_WARNING.enters:.0f} protected"]),
        ("webhook-failing", [_duration(site_health.WEBHOOK_LATE.enters), _duration(site_health.WEBHOOK_LATE.leaves)]),
        (
            "certificate-expires",
            [
                _duration(certificate_health.AUTHORITY_WARNING_S).replace(" d", " days"),
                _duration(certificate_health.AUTHORITY_CRITICAL_S).replace(" d", " days"),
            ],
        ),
        ("churn-of-disk", [*(f"{limit:g} MB/s" for limit in (2, 8, 20)), "90 %"]),
        ("churn-of-server", [f"{AlertSettings().server_churn_limit_bytes / 1e6:.0f} MB", "90 %"]),
        (
            "agent-disconnected",
            [_duration(HeartbeatSettings().agent_timeout_s), _duration(HeartbeatSettings().critical_after_s)],
        ),
        (
            "process-server-disconnected",
            [_duration(HeartbeatSettings().process_server_timeout_s), _duration(HeartbeatSettings().critical_after_s)],
        ),
        ("replication-lag", [_duration(health.LAG_WARNING_S), _duration(health.LAG_CRITICAL_S)]),
        ("stalled", [_duration(health.STALLED_S)]),
        ("not-converging", [_duration(health.NOT_CONVERGING_S)]),
        ("writer-silent", [_duration(health.WRITER_SILENT_S), _duration(health.WRITER_SILENT_CRITICAL_S)]),
        ("no-recovery-point", ["60 min"]),
        ("no-app-consistent-point", [_duration(site_health.APP_POINT_LATE_S)]),
    ],
)
def test_thresholds_are_the_code_s(code: str, numbers: list[str]) -> None:
    assert not [number for number in numbers if number not in SECTIONS[code]]


def test_what_is_no_alert_is_named() -> None:
    assert not [code for code in NO_ALERTS if f"`{code}`" not in PAGE.partition("## ")[0]]
