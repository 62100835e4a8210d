"""Documents about alerts: what the API answers, ``migratectl`` reads and the webhook's receiver gets. Called by all three.

Conventions: ``operator_plane.py``. ``Notification`` is versioned: fields may be added to a version, none changes its meaning.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from config_server.core.alerts import SubjectKind
from config_server.operator_plane import HealthLevel
from replication.documents import Document, Uuid

AlertState = Literal["pending", "raised", "clearing", "cleared"]
MAX_ACKNOWLEDGED_S: Final = 30 * 86400.0


class AlertSubject(Document):
    """``id``: of a server its protected item's, of a process server its own; empty for the site."""

    kind: SubjectKind
    id: str
    name: str


class Acknowledgement(Document):
    """Who took an alert on, and until when it is silent."""

    by: str
    at: str
    until: str
    note: str


class AlertStatus(Document):
    """An alert. ``pending``: its condition has not lasted long enough; ``clearing``: it is gone, not for long enough yet.

    ``last_seen_at`` is up to half a minute old while the condition lasts.
    """

    id: Uuid
    code: str
    severity: HealthLevel
    state: AlertState
    subject: AlertSubject
    message: str
    cause: str
    remedy: str
    first_seen_at: str
    last_seen_at: str
    raised_at: str | None
    changed_at: str | None
    cleared_at: str | None
    acknowledgement: Acknowledgement | None


class AcknowledgementRequest(Document):
    """For how long an alert is silent; it speaks again when it becomes worse, or is raised anew."""

    valid_for_s: float = Field(default=8 * 3600.0, gt=0.0, le=MAX_ACKNOWLEDGED_S)
    note: str = Field(default="", max_length=500)


class HealthReason(Document):
    """Why the site is not healthy. ``alert`` null: a condition of an item that is no alert (yet)."""

    health: HealthLevel
    code: str
    subject: AlertSubject
    message: str
    remedy: str
    alert: Uuid | None
    acknowledged: bool


class SiteHealth(Document):
    """The worst of all alerts and of all items' health. ``age_s``: since it was judged; None: it was not yet."""

    health: HealthLevel
    age_s: float | None
    reasons: list[HealthReason]


class WebhookTrial(Document):
    """What came of a test notification."""

    delivered: bool
    receiver: str
    status: int | None
    duration_s: float
    problem: str | None


class Notification(Document):
    """What the receiver gets. At least once, in the order of each alert; ``delivery`` stays the same when it is sent again.

    ``change``: raised, worsened, eased, cleared, acknowledged, acknowledgement-ended; ``test`` has no alert.
    """

    version: Literal[1] = 1
    delivery: Uuid
    change: str
    at: str
    site: str
    alert: AlertStatus | None
