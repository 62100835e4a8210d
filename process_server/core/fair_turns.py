"""Who gets the next buffer, and whose body is broken off for it: room is shared by machine, not by request.

Called by ``buffer_arena.py``. Without this, one agent whose bodies come slowly (a thin line, or malice) would have every buffer for as long
as they take, and no other agent would ship anything.

- The turn is that of who waits with the fewest buffers; among equals, of who came first.
- Who has to wait for long gets a buffer of a machine that has at least two more than itself. A machine keeps its last one, however slow
  its line is, as long as its body can be whole in time: one that cannot be is in vain, and goes when others wait.
- For a short body that has to wait for long, a long one goes if such have more than their part of the arena: see ``long_bodies.py``.
- Then, for a while, a machine that has a buffer, and no fewer than any other, gets one more only if room for a large body stays free.
  Otherwise what was broken off would be back at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PATIENCE_S: Final = 1.0
"""So long a machine waits before others' bodies are broken off for it; younger bodies are not slow yet."""
MEASURED_FOR_S: Final = 10.0
"""So long a body has been coming before its pace is judged: a line may stand still for some seconds."""
KEPT_FREE_FOR_S: Final = 60.0
"""So long after a machine was kept waiting by others, room is kept free."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A body on its way into a buffer of ``machine``, begun at ``since_s``."""

    machine: str
    since_s: float
    received_bytes: int
    length_bytes: int
    is_long: bool = False
    is_in_turn: bool = False
    """It was given room as a long one."""

    def is_in_vain(self, now_s: float, longest_s: float) -> bool:
        """Whether, at its pace, it takes longer than any body may."""
        age_s = now_s - self.since_s
        return age_s >= MEASURED_FOR_S and self.received_bytes * longest_s < self.length_bytes * age_s


def next_in_turn(waiting: Sequence[str], held: Mapping[str, int]) -> int:
    """Which of ``waiting`` (machines, in order of arrival, not empty) is next; ``held``: how many buffers each machine has."""
    return min(range(len(waiting)), key=lambda index: held.get(waiting[index], 0))


def is_kept_waiting(machine: str, held: Mapping[str, int]) -> bool:
    """Whether somebody else has more buffers than ``machine``."""
    return any(count > held.get(machine, 0) for count in held.values())


def to_break_off(
    incoming: Sequence[Incoming],
    held: Mapping[str, int],
    machine: str,
    now_s: float,
    longest_s: float,
    *,
    for_long: bool = False,
    too_much_is_long: bool = False,
) -> int | None:
    """Which body goes so that ``machine``, which has waited for ``PATIENCE_S``, gets room; None: none may.

    :param longest_s: as long as a body may take as a whole.
    :param for_long: the body that waits is long; only of long ones, then, has a machine too many, and ``held`` counts only these.
    :param too_much_is_long: long bodies have more than their part.
    """
    others = [index for index, body in enumerate(incoming) if body.machine != machine]
    in_vain = [index for index in others if incoming[index].is_in_vain(now_s, longest_s)]
    if in_vain:
        return min(in_vain, key=lambda index: incoming[index].received_bytes)
    if too_much_is_long and not for_long:
        long = [at for at in others if incoming[at].is_long and now_s - incoming[at].since_s >= PATIENCE_S]
        if long:
            had = Counter(body.machine for body in incoming if body.is_long)
            return min(
                long, key=lambda at: (-had[incoming[at].machine], incoming[at].is_in_turn, incoming[at].received_bytes)
            )
    fair = held.get(machine, 0) + 1
    too_many = [
        index
        for index in others
        if (incoming[index].is_long or not for_long)
        and held[incoming[index].machine] > fair
        and now_s - incoming[index].since_s >= PATIENCE_S
    ]
    # Of the machine that has most, the one of which the least has come: it is sent again as a whole.
    return min(
        too_many,
        key=lambda index: (-held[incoming[index].machine], incoming[index].received_bytes),
        default=None,
    )


def to_send_away(waiting: Sequence[str], newcomer: str) -> int | None:
    """Whose place in a full queue ``newcomer`` gets: the last one of the machine that has most, if it has two more; or None."""
    places = Counter(waiting)
    machine = max(places, key=lambda each: places[each])
    if places[machine] <= places[newcomer] + 1:
        return None
    return max(index for index, each in enumerate(waiting) if each == machine)
