"""How fast, and with how many connections, a process server may send to the store: one document, the same in REST, heartbeat and file.

Called by the configuration server (which keeps it and tells it with each heartbeat), by ``migratectl`` and by the process server, which
obeys it and remembers it. Without ``work_hours`` its ``limit_bits_per_s`` holds all the time, with them outside of them. The time zone is
a name here; whether it is known is checked where it comes in (``replication/time_zones.py``).
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from replication.documents import Document
from replication.work_hours import Hours, hours_text

MIN_LIMIT_BITS_PER_S: Final = 512_000
MAX_LIMIT_BITS_PER_S: Final = 1_023_000_000
LIMIT_RANGE: Final = "512 Kbps to 1023 Mbps"
MIN_THREADS_PER_MACHINE: Final = 4
MAX_THREADS_PER_MACHINE: Final = 32
BitRate = Annotated[int, Field(ge=MIN_LIMIT_BITS_PER_S, le=MAX_LIMIT_BITS_PER_S)]


class WorkHours(Hours):
    """The hours in which another limit holds. ``limit_bits_per_s`` null: none."""

    limit_bits_per_s: BitRate | None = None


class UploadLimits(Document):
    """``threads_per_machine`` null: what the process server's file says, by default 4. ``limit_bits_per_s`` null: none."""

    threads_per_machine: int | None = Field(default=None, ge=MIN_THREADS_PER_MACHINE, le=MAX_THREADS_PER_MACHINE)
    limit_bits_per_s: BitRate | None = None
    work_hours: WorkHours | None = None


NO_LIMITS: Final = UploadLimits()


class UploadInForce(Document):
    """What a process server obeys at this moment, and what it has measured: its own figures, with each heartbeat.

    ``sent_bits_per_s``: what it handed to its connections to the store in the last ten seconds. ``changes_in_s``: until other hours begin.
    ``file``: what its own file asks for; of two limits the lower one counts. ``told``: what it remembers of the configuration server's.
    """

    limit_bits_per_s: int | None
    sent_bits_per_s: float
    work_hours: bool
    changes_in_s: float | None
    threads_per_machine: int
    file: UploadLimits
    told: UploadLimits | None
    problem: str | None = None


def rate_text(bits_per_s: float | None) -> str:
    """``20 Mbps``; ``no limit`` for None."""
    if bits_per_s is None:
        return "no limit"
    for unit, factor in (("Mbps", 10**6), ("Kbps", 10**3)):
        if bits_per_s >= factor:
            # A limit is told exactly, what was measured or computed to a decimal.
            value = bits_per_s / factor
            return f"{value if isinstance(bits_per_s, int) else round(value, 1):.10g} {unit}"
    return f"{bits_per_s:.0f} bps"


def limits_text(limits: UploadLimits) -> str:
    """One line for people: events, logs, tables."""
    text = rate_text(limits.limit_bits_per_s)
    hours = limits.work_hours
    if hours is not None:
        text = f"{hours_text(hours)}: {rate_text(hours.limit_bits_per_s)}; else: {text}"
    if limits.threads_per_machine is not None:
        text += f"; {limits.threads_per_machine} threads per machine"
    return text
