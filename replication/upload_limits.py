"""How fast, and with how many connections, a process server may send to the store: one document, the same in REST, heartbeat and file.

Called by the configuration server (which keeps it and tells it with each heartbeat), by ``migratectl`` and by the process server, which
obeys it and remembers it. Without ``work_hours`` its ``limit_bits_per_s`` holds all the time, with them outside of them. The time zone is
a name here; whether it is known is checked where it comes in (``replication/time_zones.py``).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from replication.documents import Document

MIN_LIMIT_BITS_PER_S: Final = 512_000
MAX_LIMIT_BITS_PER_S: Final = 1_023_000_000
LIMIT_RANGE: Final = "512 Kbps to 1023 Mbps"
MIN_THREADS_PER_MACHINE: Final = 4
MAX_THREADS_PER_MACHINE: Final = 32
MINUTES_A_DAY: Final = 24 * 60

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: Final[tuple[Weekday, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of ``datetime.weekday``."""
BitRate = Annotated[int, Field(ge=MIN_LIMIT_BITS_PER_S, le=MAX_LIMIT_BITS_PER_S)]
_TIME = r"^(?:[01][0-9]|2[0-3]):[0-5][0-9]$"
_END_TIME = r"^(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"


def minute_of_day(text: str) -> int:
    """Minutes since midnight of ``HH:MM``."""
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)


class WorkHours(Document):
    """The hours of other days' limit: from ``start`` to just before ``end``, by the clock on the wall in ``time_zone``.

    An ``end`` not after ``start`` is on the next day; such hours belong to the day on which they start. ``limit_bits_per_s`` null: none.
    """

    days: list[Weekday] = Field(min_length=1, max_length=7)
    start: str = Field(pattern=_TIME)
    end: str = Field(pattern=_END_TIME)
    time_zone: str = Field(min_length=1, max_length=64)
    limit_bits_per_s: BitRate | None = None

    @model_validator(mode="after")
    def _make_sense(self) -> WorkHours:
        if len(set(self.days)) != len(self.days):
            raise ValueError("a day is given twice")
        if self.start == self.end:
            raise ValueError("start and end are the same; the whole day is 00:00 to 24:00")
        return self


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


def days_text(days: list[Weekday]) -> str:
    """``mon-fri``, ``mon,wed``: runs of three and more days are drawn together."""
    numbers = sorted(WEEKDAYS.index(day) for day in days)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts: list[str] = []
    for run in runs:
        names: list[str] = [WEEKDAYS[number] for number in run]
        parts += [f"{names[0]}-{names[-1]}"] if len(run) > 2 else names
    return ",".join(parts)


def limits_text(limits: UploadLimits) -> str:
    """One line for people: events, logs, tables."""
    text = rate_text(limits.limit_bits_per_s)
    hours = limits.work_hours
    if hours is not None:
        text = (
            f"{days_text(hours.days)} {hours.start}-{hours.end} {hours.time_zone}: {rate_text(hours.limit_bits_per_s)}; "
            f"else: {text}"
        )
    if limits.threads_per_machine is not None:
        text += f"; {limits.threads_per_machine} threads per machine"
    return text
