"""Bodies that would keep a buffer for long since their machine's line is slow, and whose turn it is among them.

Called by ``buffer_arena.py``. Without this, as many slow machines as there are large buffers would have them all, with one body each, and
no other machine would ship anything.

- A body is long if it takes more than ``LONG_BODY_S`` at its machine's pace as last measured. A machine that is not measured, or not for
  ``REMEMBERED_S``, counts as fast until its body has been coming for a second: so a line that has become better is found out.
- Long bodies together have at most half of the arena, but always one, while others ship; all of it while no others do.
- Among machines with long bodies the turn is that of who receives the fewest, then of whose last turn is longest ago. A turn ends with the
  body, whole or failed; a body that was broken off for others keeps its machine's turn. Who is next need not be waiting at that moment:
  an agent that was turned away comes back within seconds, and so long its turn is kept.

A long body that began in its turn, within the half, is not broken off for short ones. So with S large bodies in half of the arena, N slow
machines and T seconds for the slowest of their bodies, each has a body through within (ceil(N / S) + 1) * (T + SEEKS_FOR_S) seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LONG_BODY_S: Final = 5.0
"""Of a body of 8.5 MiB, what comes at less than 1.8 MB/s (14 Mbps)."""
MEASURED_S: Final = 1.0
MEASURED_BYTES: Final = 2**20
"""A pace is known after so long, or so much."""
REMEMBERED_S: Final = 600.0
SEEKS_FOR_S: Final = 10.0
"""So long after it asked in vain a machine's turn is kept; agents ask again after one to three seconds."""
_MANY: Final = 1024


@dataclass(slots=True)
class _Line:
    turn_ended_s: float
    bytes_per_s: float
    measured_s: float
    asked_s: float = float("-inf")


def is_long(received_bytes: int, length_bytes: int, age_s: float) -> bool:
    """Whether a body that has been coming for ``age_s`` will have taken long; not known of a younger one than ``MEASURED_S``."""
    return age_s >= MEASURED_S and received_bytes * LONG_BODY_S < length_bytes * age_s


class LongBodies:
    """What is remembered of machines' lines, and the order among those that ask for room for long bodies."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def is_long(self, machine: str, length_bytes: int, now_s: float) -> bool:
        """Whether a body of ``machine`` that begins now is expected to take long."""
        line = self._lines.get(machine)
        known = line is not None and now_s - line.measured_s < REMEMBERED_S
        return known and line is not None and length_bytes > line.bytes_per_s * LONG_BODY_S

    def measure(self, machine: str, received_bytes: int, age_s: float, now_s: float) -> None:
        """So much of a body came within ``age_s``; too little to tell anything is left out."""
        if age_s < MEASURED_S and received_bytes < MEASURED_BYTES:
            return
        line = self._lines.get(machine)
        if line is None:
            self._forget_old(now_s)
            line = self._lines[machine] = _Line(now_s, 0.0, now_s)
        line.bytes_per_s, line.measured_s = received_bytes / max(age_s, 1e-3), now_s

    def ask(self, machine: str, now_s: float) -> None:
        """The machine wants room for a long body, or was just refused it."""
        self._lines[machine].asked_s = now_s

    def end_turn(self, machine: str, now_s: float) -> None:
        """A long body of the machine is whole or has failed."""
        line = self._lines.get(machine)
        if line is not None:
            line.turn_ended_s = now_s

    def before(self, machine: str, held: Mapping[str, int], now_s: float) -> int:
        """How many machines that ask for room have their turn before ``machine``; ``held``: how many long bodies each receives."""
        own = self._place(machine, held)
        return sum(
            self._place(other, held) < own
            for other, line in self._lines.items()
            if other != machine and now_s - line.asked_s <= SEEKS_FOR_S
        )

    def asking(self, now_s: float) -> set[str]:
        """The machines that ask for room for long bodies."""
        return {machine for machine, line in self._lines.items() if now_s - line.asked_s <= SEEKS_FOR_S}

    def _place(self, machine: str, held: Mapping[str, int]) -> tuple[int, float, str]:
        return held.get(machine, 0), self._lines[machine].turn_ended_s, machine

    def _forget_old(self, now_s: float) -> None:
        if len(self._lines) >= _MANY:
            self._lines = {
                machine: line
                for machine, line in self._lines.items()
                if now_s - max(line.measured_s, line.asked_s) < REMEMBERED_S
            }
