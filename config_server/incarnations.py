"""Which incarnation of a machine's agent counts: two that report in turn are two agents with one identity (R11).

Called by ``api/agent.py``. Each start of an agent draws a random identifier and sends it with every observation. A new one supersedes the
one before: that is a restart, which is never refused. One that was superseded and reports again was not ended by the restart: a second
agent runs, on a copy of the state, and one of the two must be stopped. The superseded one is refused; which of the two is the right one,
nobody can know here.

Remembered in memory only: after a restart of this server, and with a restored database, whoever reports first counts, and two that go on
reporting in turn are found at once. Only what came from the machine that enrolled may be asked about (``check_same_machine``).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from replication.errors import Refused

LATE_S: Final = 30.0
"""For so long after its successor's first report a superseded one's report may be one that was under way while it ended."""
_REMEMBERED: Final = 16


class SupersededIncarnation(Refused):
    """``is_late``: it may be a report that was on its way when its agent was restarted."""

    is_late = False


@dataclass(slots=True)
class _Machine:
    present: str
    superseded: OrderedDict[str, int] = field(default_factory=OrderedDict)
    """When each was superseded; the newest last."""


class Incarnations:
    """Of all machines' agents, as far as this process has heard them."""

    def __init__(self) -> None:
        self._machines: dict[str, _Machine] = {}

    def admit(self, machine_id: str, hostname: str, incarnation: str | None, now_ns: int) -> None:
        """Take note of who reports; an agent that says nothing of its incarnation is from before there were any.

        :raises SupersededIncarnation: if it was superseded.
        """
        if incarnation is None:
            return
        known = self._machines.get(machine_id)
        if known is None:
            self._machines[machine_id] = _Machine(incarnation)
        elif (superseded_ns := known.superseded.get(incarnation)) is not None:
            raise _refusal(hostname, is_late=0 <= now_ns - superseded_ns < int(LATE_S * 1e9))
        elif incarnation != known.present:
            known.superseded[known.present] = now_ns
            known.present = incarnation
            while len(known.superseded) > _REMEMBERED:
                known.superseded.popitem(last=False)


def _refusal(hostname: str, *, is_late: bool) -> SupersededIncarnation:
    refused = SupersededIncarnation(
        f"cannot accept this report: another agent reports as {hostname}, with the same identity, since after this one was started",
        hint="two agents run on copies of one state directory: stop one of them and remove its copy, then restart the other",
    )
    refused.is_late = is_late
    return refused
