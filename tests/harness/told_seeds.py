"""The seeds that a run of the tests has used, told at its end: what a passing test prints is seen by nobody.

Called by ``conftest``: a test notes its seeds in its report (with ``tell_seeds``), which workers send to who started them; there one line
is made of all that belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

TellSeeds = Callable[..., None]
"""``tell_seeds(what, first, last=first)``: these seeds, of what. It says so at once too, for the output of a test that fails."""

PROPERTY: Final = "seeds"


class Report(Protocol):
    """What is used of pytest's ``TestReport``."""

    @property
    def when(self) -> str | None: ...

    @property
    def user_properties(self) -> Sequence[tuple[str, object]]: ...


def noted(what: str, first: int, last: int) -> tuple[str, object]:
    """The property of a report."""
    return PROPERTY, f"{first} {last} {what}"


def seed_lines(reports: Iterable[Report]) -> list[str]:
    """A line for each ``what``, its seeds in order, those that follow each other as one range."""
    found: dict[str, set[tuple[int, int]]] = {}
    for report in reports:
        if report.when != "call":
            continue
        for name, value in report.user_properties:
            if name == PROPERTY:
                first, last, what = str(value).split(" ", 2)
                found.setdefault(what, set()).add((int(first), int(last)))
    return [f"{what}: {_told(sorted(ranges))}" for what, ranges in sorted(found.items())]


def _told(ranges: Sequence[tuple[int, int]]) -> str:
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    count = sum(last - first + 1 for first, last in joined)
    told = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in joined)
    return f"seed {told}" if count == 1 else f"{count} seeds, {told}"
