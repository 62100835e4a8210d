"""Which incarnation of a machine's agent counts: two that report in turn are two agents with one identity (R11).

Called by ``api/agent.py``. Each start of an agent draws a random identifier and sends it with every observation. A new one supersedes the
one before: that is a restart, which is never refused. One that was superseded and reports again was not ended by the restart: a second
agent runs, on a copy of the state, and one of the two must be stopped. The superseded one is refused; which of the two is the right one,
nobody can know here.

Remembered in the machine's row, so that it does not matter to which of the site's configuration servers each of the two reports. With a
database from before, or restored from an older backup, whoever reports first counts, and two that go on reporting in turn are found at
once. Only what came from the machine that enrolled may be asked about (``check_same_machine``).
"""

from __future__ import annotations

from typing import Final

from config_server.tables import MachineRow
from replication.documents import Document
from replication.errors import Refused

LATE_S: Final = 30.0
"""For so long after its successor's first report a superseded one's report may be one that was under way while it ended."""
_REMEMBERED: Final = 16


class SupersededIncarnation(Refused):
    """``is_late``: it may be a report that was on its way when its agent was restarted."""

    is_late = False


class _Known(Document):
    """Of one machine. ``superseded``: when each of the others was, in nanoseconds by this server's clock; the newest last."""

    present: str
    superseded: list[tuple[str, int]]


def admit(machine: MachineRow, incarnation: str | None, now_ns: int) -> None:
    """Take note of who reports; an agent that says nothing of its incarnation is from before there were any.

    :raises SupersededIncarnation: if it was superseded.
    """
    if incarnation is None:
        return
    if machine.incarnations is None:
        machine.incarnations = _Known(present=incarnation, superseded=[]).model_dump_json()
        return
    known = _Known.decode(machine.incarnations.encode())
    superseded_ns = dict(known.superseded).get(incarnation)
    if superseded_ns is not None:
        raise _refusal(machine.hostname, is_late=0 <= now_ns - superseded_ns < int(LATE_S * 1e9))
    if incarnation != known.present:
        superseded = [*known.superseded, (known.present, now_ns)][-_REMEMBERED:]
        machine.incarnations = _Known(present=incarnation, superseded=superseded).model_dump_json()


def _refusal(hostname: str, *, is_late: bool) -> SupersededIncarnation:
    refused = SupersededIncarnation(
        f"cannot accept this report: another agent reports as {hostname}, with the same identity, since after this one was started",
        hint="two agents run on copies of one state directory: stop one of them and remove its copy, then restart the other",
    )
    refused.is_late = is_late
    return refused
