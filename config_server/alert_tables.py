"""Tables of alerts, of the notifications about them, and of the figures that they rest on. Conventions: ``tables.py``.

Used by ``alerts.py``, ``webhook.py``, ``churn.py`` and ``process_server_load.py``. Apart from ``tables.py`` because nothing of an item's
life rests on them: with all of it lost, alerts are raised anew.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from config_server.tables import Base

_ID = String(36)
_NAME = String(255)
_KIND = String(40)
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


class AlertRow(Base):
    """An alert, or (``raised_ns`` None) a condition that is on its way to become one. At most one of a code and subject is not over.

    ``*_latch``, ``*_since_ns``: ``core/alerts.py``. ``seen_ns``: when the condition was last found, ``looked_ns``: when anybody last
    looked; both are written now and then only. ``acknowledged_until_ns``: set while an acknowledgement counts.
    """

    __tablename__ = "alerts"
    __table_args__ = (
        Index(
            "uq_alerts_subject_not_cleared",
            "code",
            "subject_kind",
            "subject_id",
            unique=True,
            sqlite_where=text("cleared_ns IS NULL"),
            postgresql_where=text("cleared_ns IS NULL"),
        ),
        Index("ix_alerts_cleared", "cleared_ns"),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    code: Mapped[str] = mapped_column(_KIND)
    subject_kind: Mapped[str] = mapped_column(_KIND)
    subject_id: Mapped[str] = mapped_column(_ID)
    subject_name: Mapped[str] = mapped_column(_NAME)
    machine_id: Mapped[str | None] = mapped_column(_ID)
    severity: Mapped[str] = mapped_column(_KIND)
    message: Mapped[str] = mapped_column(Text)
    remedy: Mapped[str] = mapped_column(Text)
    warning_latch: Mapped[str] = mapped_column(_KIND)
    warning_since_ns: Mapped[int] = mapped_column(BigInteger)
    critical_latch: Mapped[str] = mapped_column(_KIND)
    critical_since_ns: Mapped[int] = mapped_column(BigInteger)
    first_seen_ns: Mapped[int] = mapped_column(BigInteger)
    seen_ns: Mapped[int] = mapped_column(BigInteger)
    looked_ns: Mapped[int] = mapped_column(BigInteger)
    raised_ns: Mapped[int | None] = mapped_column(BigInteger)
    changed_ns: Mapped[int | None] = mapped_column(BigInteger)
    acknowledged_by: Mapped[str | None] = mapped_column(_NAME)
    acknowledged_ns: Mapped[int | None] = mapped_column(BigInteger)
    acknowledged_until_ns: Mapped[int | None] = mapped_column(BigInteger)
    acknowledged_note: Mapped[str | None] = mapped_column(Text)
    cleared_ns: Mapped[int | None] = mapped_column(BigInteger)


class AlertDeliveryRow(Base):
    """A notification on its way to the webhook's receiver, in the order of ``sequence``. States: pending, delivered, given-up."""

    __tablename__ = "alert_deliveries"
    __table_args__ = (Index("ix_alert_deliveries_state_sequence", "state", "sequence"),)

    sequence: Mapped[int] = mapped_column(_SEQUENCE, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(_ID, unique=True)
    alert_id: Mapped[str] = mapped_column(_ID, index=True)
    change: Mapped[str] = mapped_column(_KIND)
    document: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(_KIND)
    attempts: Mapped[int] = mapped_column(default=0)
    problem: Mapped[str | None] = mapped_column(Text)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    attempted_ns: Mapped[int | None] = mapped_column(BigInteger)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger)


class DiskChurnRow(Base):
    """How fast a protected disk changes. ``counted_bytes``: the agent's counter when it was last looked at, at ``counted_ns``;
    ``rate_bytes_per_s``: of the minute or so before.
    """

    __tablename__ = "disk_churn"

    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), primary_key=True)
    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"), primary_key=True)
    counted_bytes: Mapped[int] = mapped_column(BigInteger)
    counted_ns: Mapped[int] = mapped_column(BigInteger)
    rate_bytes_per_s: Mapped[float | None]


class ProcessServerLoadRow(Base):
    """Processor and memory of a process server, a mean over about a minute of its heartbeats."""

    __tablename__ = "process_server_load"

    process_server_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    cpu_fraction: Mapped[float]
    memory_fraction: Mapped[float]
    measured_ns: Mapped[int] = mapped_column(BigInteger)
