"""Certificates that are not renewed in time, and an authority that comes to its end: conditions from ages. Called by
``certificate_ages.py`` (for items, for alerts), ``server_identity.py`` and ``store_certificate.py``.

Every holder renews at two thirds of its life, spread over a twentieth, and tries hundreds of times (``replication/certificate_life.py``).
So a certificate that is older than that is a renewal that fails: a warning. In its last tenth it is critical: the holder is about to be cut
off. After its end it is still exchanged for a new one by itself as long as ``certificate_recovery_s`` has not passed. Only the sink's is
renewed by a person, who has to be told of it by the same times. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from config_server.core.health import Condition, Health
from replication.certificate_life import CRITICAL_SHARE, OVERDUE_SHARE

AUTHORITY_WARNING_S: Final = 365 * 86400.0
AUTHORITY_CRITICAL_S: Final = 90 * 86400.0
SINK_REMEDY: Final = (
    "renew it by `config-server issue-certificate --renew` and carry the files to the sink, which takes them without a restart: "
    "docs/operations/certificates.md#the-sinks"
)
_DAY_S: Final = 86400.0


def certificate_condition(holder: str, left_s: float, life_s: float) -> Condition | None:
    """What is wrong with the newest certificate that ``holder`` uses: ``left_s`` to its end, of ``life_s``; None: nothing."""
    if left_s < 0:
        return Condition(
            "certificate-ended",
            Health.CRITICAL,
            f"the certificate of {holder} ended {_days(-left_s)} ago",
            "start it, and see that it reaches this server: it gets a new one by itself; if this server refuses that, enrol it anew",
        )
    if left_s > life_s * (1 - OVERDUE_SHARE):
        return None
    critical = left_s <= life_s * (1 - CRITICAL_SHARE)
    return Condition(
        "certificate-not-renewed",
        Health.CRITICAL if critical else Health.WARNING,
        f"the certificate of {holder} ends in {_days(left_s)} and was not renewed at two thirds of its life",
        "see check `certificate` of its /healthz and its log for what keeps it from renewing; start it if it is down",
    )


def sink_certificate_condition(left_s: float, life_s: float, end: str) -> Condition | None:
    """As ``certificate_condition`` of the sink's, which a person renews; ``end``: the moment, as people write it."""
    wrong = certificate_condition("the sink", left_s, life_s)
    if wrong is None:
        return None
    message = (
        f"the certificate of the sink expired on {end}, {_days(-left_s)} ago: nothing reaches the store"
        if left_s < 0
        else f"the certificate of the sink ends on {end}, in {_days(left_s)}: it is renewed by hand, and then nothing reaches the store"
    )
    return replace(wrong, message=message, remedy=SINK_REMEDY)


def authority_condition(left_s: float) -> Condition | None:
    """What is wrong with the site's authority, which has ``left_s`` to its end; None: nothing."""
    if left_s > AUTHORITY_WARNING_S:
        return None
    return Condition(
        "authority-ending",
        Health.CRITICAL if left_s <= AUTHORITY_CRITICAL_S else Health.WARNING,
        f"the site's authority ends in {_days(left_s)}, and every certificate with it"
        if left_s > 0
        else f"the site's authority ended {_days(-left_s)} ago: no certificate is valid any more",
        "finish the migrations, or set up a new site before that: docs/operations/certificates.md",
    )


def _days(seconds: float) -> str:
    if seconds >= 2 * _DAY_S:
        return f"{seconds / _DAY_S:.0f} days"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} s"
