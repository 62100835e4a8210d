"""Whether an agent's limits are what holds its replication back. Called by ``item_health.py``."""

from __future__ import annotations

from typing import Final

from replication.agent_limits import AgentLimitsInForce, cores_text, read_rate_text

USED_UP: Final = 0.85
"""From this part of a limit on it is what is waited for: a mean of ten seconds falls below it at every pause of the disk."""


def limit_reached(in_force: AgentLimitsInForce | None) -> str | None:
    """The limit that the agent works at, in words; None: it has none, or does not use it up."""
    if in_force is None or in_force.lifted:
        return None
    read, cores = in_force.read_bytes_per_s, in_force.cpu_cores
    if read is not None and in_force.measured_read_bytes_per_s >= USED_UP * read:
        return f"its agent may read no faster than {read_rate_text(read)}"
    if cores is not None and in_force.measured_cpu_cores >= USED_UP * cores:
        return f"its agent may use no more than {cores_text(cores)}"
    return None
