"""The operators' pages, walked: their commands as they are written, on a Debian that boots, in an administrator's order.

Called by ``tests/packages``, which has the machine, and by ``tests/test_documented_commands.py``, which holds the plan against the pages: a
block that is neither planned nor marked fails, as does a plan for what a page does not say any more. The plan itself is ``walk_plan.py``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.harness.booted_debian import BootedDebian
from tests.harness.documented_commands import COMMANDS, Block, blocks
from tests.harness.source_tree import REPOSITORY

COMMAND_TIMEOUT_S: Final = 150.0
UNTIL_INTERRUPTED_S: Final = 3
_INTERRUPTED: Final = (0, 124, 130)
_SAME_MACHINE: Final = "/root/walk"


@dataclass(frozen=True, slots=True)
class Stop:
    """One heading of a page, or some of its blocks (``numbers``; all that have no mark if there are none).

    ``instead``: a text of the page → what stands in its place here. Placeholders, and what the test's one machine cannot be; nothing else.
    ``before``, ``after``: what a reader does around it that is no command of the page (bash). ``given``: the beginning of a command → what
    is typed into it. ``exits``: → its exit codes that are as the page says, where 0 is not the only one. ``endless``: commands that are
    interrupted, as a person would.
    """

    page: str
    heading: str
    numbers: tuple[int, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    given: Mapping[str, str] = field(default_factory=dict)
    exits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    endless: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"docs/operations/{self.page}.md"

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}" + "".join(f" ({number})" for number in self.numbers)

    def blocks(self) -> list[Block]:
        """In the page's order, with the data before each.

        :raises LookupError: if the page has no such thing.
        """
        page = blocks(self.file, (REPOSITORY / self.file).read_text())
        under = [block for block in page if block.heading == self.heading]
        if self.numbers:
            found = [block for block in under if block.number in self.numbers]
        else:
            found = [block for block in under if block.language != COMMANDS or block.mark is None]
        if len([block for block in found if block.language == COMMANDS]) < max(1, len(self.numbers)):
            raise LookupError(f"{self.file} has no such blocks under {self.heading!r}")
        return found

    def here(self, text: str) -> str:
        for said, meant in self.instead.items():
            text = text.replace(said, meant)
        return text

    def stale(self) -> list[str]:
        """What the plan says of this stop that the page does not (any more)."""
        found = self.blocks()
        text = "\n".join(block.text for block in found)
        commands = [command for block in found if block.language == COMMANDS for command in block.commands()]
        prefixes = (*self.given, *self.exits, *self.endless)
        return [
            *(said for said in self.instead if said not in text),
            *(begin for begin in prefixes if not any(command.startswith(begin) for command in commands)),
            *(f"{block.place} has a mark" for block in found if block.mark is not None),
        ]


def walk(machine: BootedDebian, stop: Stop) -> None:
    """Do what the page says. Each command must end as it should; functions that a block defines are there for all that follow."""
    _run(machine, stop, stop.before)
    for block in stop.blocks():
        if block.language != COMMANDS:
            _write(machine, stop, block)
            continue
        for command in block.commands():
            begins = [begin for begin in stop.given if command.startswith(begin)]
            exits = next((codes for begin, codes in stop.exits.items() if command.startswith(begin)), (0,))
            text = stop.here(command)
            if any(command.startswith(begin) for begin in stop.endless):
                bare = shlex.join(shlex.split(text, comments=True))
                text, exits = f"timeout --signal=INT {UNTIL_INTERRUPTED_S} {bare}", _INTERRUPTED
            _run(machine, stop, text, stop.given[begins[0]] if begins else "", exits, block.place)
    _run(machine, stop, stop.after)


def _write(machine: BootedDebian, stop: Stop, block: Block) -> None:
    """A configuration, where the sentence before it says what it is called."""
    named = re.search(r"`/(etc/[\w./-]+\.(?:yaml|conf))`", block.before)
    if named is not None and block.language in ("yaml", "ini"):
        path = machine.root / named[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(stop.here(block.text) + "\n")


def _run(
    machine: BootedDebian, stop: Stop, command: str, typed: str = "", exits: tuple[int, ...] = (0,), place: str = ""
) -> None:
    if not command:
        return
    directory = machine.root / _SAME_MACHINE.lstrip("/")
    directory.mkdir(exist_ok=True)
    (directory / "typed").write_text(typed)
    (directory / "command").write_text(
        f"cd /root\n[ ! -e {_SAME_MACHINE}/functions ] || . {_SAME_MACHINE}/functions\n"
        f"{command}\ndeclare -f > {_SAME_MACHINE}/functions\n"
    )
    done = machine.try_to(f"exec bash -euo pipefail {_SAME_MACHINE}/command < {_SAME_MACHINE}/typed", COMMAND_TIMEOUT_S)
    assert done.returncode in exits, (
        f"{place or stop}: `{command}` ends with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
