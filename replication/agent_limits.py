"""How much of its server an agent may use for replication: one document, the same in REST, heartbeat and file.

Called by the configuration server (which keeps it for each server and tells it with the answer to each observation), by ``migratectl`` and
by the agent, which obeys it and remembers it. Without ``work_hours`` its limits hold all the time, with them outside of them. The time
zone is a name here; whether it is known is checked where it comes in (``replication/time_zones.py``).
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from replication.documents import ByteCount, Document
from replication.work_hours import Hours, hours_text

MIN_READ_BYTES_PER_S: Final = 1_000_000
MAX_READ_BYTES_PER_S: Final = 10**12
READ_RANGE: Final = "1 MB/s to 1 TB/s"
MIN_CPU_CORES: Final = 0.05
MAX_CPU_CORES: Final = 1024.0
CPU_RANGE: Final = "0.05 to 1024 cores"

ReadRate = Annotated[int, Field(ge=MIN_READ_BYTES_PER_S, le=MAX_READ_BYTES_PER_S)]
Cores = Annotated[float, Field(ge=MIN_CPU_CORES, le=MAX_CPU_CORES)]


class LimitedHours(Hours):
    """The hours in which other limits hold. Null: none."""

    read_bytes_per_s: ReadRate | None = None
    cpu_cores: Cores | None = None


class AgentLimits(Document):
    """``read_bytes_per_s``: what is read of all disks together; ``cpu_cores``: processor time per time (0.5: half a core). Null: none."""

    read_bytes_per_s: ReadRate | None = None
    cpu_cores: Cores | None = None
    work_hours: LimitedHours | None = None


NO_AGENT_LIMITS: Final = AgentLimits()


class AgentLimitsInForce(Document):
    """What an agent obeys at this moment, and what it has measured in the last ten seconds: its own figures, with each observation.

    ``changes_in_s``: until other hours begin. ``lifted``: the limits of reading and CPU rest, since the workload waits for the agent.
    ``memory_bytes``: what its file allows. ``file``: what its own file asks for; of two limits the lower one counts. ``told``: what it
    remembers of the configuration server's; None: it was never told any.
    """

    read_bytes_per_s: int | None
    cpu_cores: float | None
    measured_read_bytes_per_s: float
    measured_cpu_cores: float
    work_hours: bool
    changes_in_s: float | None
    lifted: bool = False
    memory_bytes: ByteCount | None = None
    file: AgentLimits
    told: AgentLimits | None
    problem: str | None = None


class ObservationAnswer(Document):
    """What an agent is told with the answer to each observation. An agent from before there was an answer does not read it."""

    limits: AgentLimits = NO_AGENT_LIMITS


def read_rate_text(bytes_per_s: float | None) -> str:
    """``100 MB/s``; ``no limit`` for None."""
    if bytes_per_s is None:
        return "no limit"
    for unit, factor in (("GB/s", 10**9), ("MB/s", 10**6), ("kB/s", 10**3)):
        if bytes_per_s >= factor:
            # A limit is told exactly, what was measured to a decimal.
            value = bytes_per_s / factor
            return f"{value if isinstance(bytes_per_s, int) else round(value, 1):.10g} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def cores_text(cores: float | None) -> str:
    """``0.5 cores``; ``no limit`` for None."""
    return "no limit" if cores is None else f"{cores:.3g} {'core' if cores == 1 else 'cores'}"


def agent_limits_text(limits: AgentLimits) -> str:
    """One line for people: events, logs, tables."""
    text = _both_text(limits.read_bytes_per_s, limits.cpu_cores)
    hours = limits.work_hours
    if hours is None:
        return text
    return f"{hours_text(hours)}: {_both_text(hours.read_bytes_per_s, hours.cpu_cores)}; else: {text}"


def _both_text(read_bytes_per_s: int | None, cpu_cores: float | None) -> str:
    if read_bytes_per_s is cpu_cores is None:
        return "no limit"
    parts = [] if read_bytes_per_s is None else [f"reading {read_rate_text(read_bytes_per_s)}"]
    parts += [] if cpu_cores is None else [f"CPU {cores_text(cpu_cores)}"]
    return ", ".join(parts)
