"""The command blocks of the operators' pages, as a reader meets them: under which heading, in which order, marked how.

Called by ``tests/test_documented_commands.py`` (every block is run or says why not), ``walked_pages.py`` (which runs them) and the tests
that a page names. Commands are blocks indented by four columns, or fenced as ``sh`` or without a language; any other fence holds data.

A block that ``walked_pages`` does not run has a comment on the line before it (a blank line may be between)::

    <!-- run by: tests/test_compose_site.py -->
    <!-- not run: fetches packages from the index -->

The first is believed only if that file has the commands' words, or takes the block from the page itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.source_tree import REPOSITORY

PAGES: Final = (*sorted((REPOSITORY / "docs" / "operations").glob("*.md")), REPOSITORY / "README.md")
PROGRAMS: Final = ("azure-sink", "config-server", "migratectl", "mobility-agent", "process-server")
COMMANDS: Final = "sh"
_MARK: Final = re.compile(r"<!-- (run by|not run): (.+?) -->")
_HEADING: Final = re.compile(r"#{1,6}\s+(.*)")


@dataclass(frozen=True, slots=True)
class Mark:
    """``kind``: ``run by`` (``text`` is a file of the repository) or ``not run`` (the reason)."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """``number`` counts the command blocks of its heading from 0; data has the number of the command block that follows.

    ``before``: the line of text before it, where it is said what a file of data is called.
    """

    page: str
    heading: str
    number: int
    line: int
    language: str
    text: str
    before: str
    mark: Mark | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Each with what it needs of the following lines (pipes, backslashes, open quotes and braces); comments are left out."""
        commands: list[str] = []
        pending = ""
        for line in self.text.splitlines():
            if not pending and (not line.strip() or line.lstrip().startswith("#")):
                continue
            pending += ("\n" if pending else "") + line
            if _is_whole(pending):
                commands.append(pending)
                pending = ""
        if pending:
            raise ValueError(f"{self.place}: cannot find the end of {pending!r}")
        return commands


def _is_whole(command: str) -> bool:
    if re.search(r"[|\\]\s*$", command):
        return False
    try:
        words(command)
    except ValueError:
        return False
    return True


def words(command: str) -> list[str]:
    """As a shell splits it, without comments and with operators as words of their own. :raises ValueError: if a quotation is open."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    return list(lexer)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks_of(page: Path) -> list[Block]:
    return list(blocks(name_of(page), page.read_text()))


def blocks(page: str, markdown: str) -> Iterator[Block]:
    """Every block of code of a page, data included."""
    heading, number, before, mark = "", 0, "", None
    lines = markdown.splitlines()
    at = 0
    blank = True
    while at < len(lines):
        line = lines[at]
        fence = re.match(r"(\s*)```(\S*)", line)
        if fence is None and not (blank and line.startswith("    ")):
            found = _HEADING.match(line)
            if found is not None:
                heading, number = found[1], 0
            marked = _MARK.search(line)
            if line.strip():
                mark = None if marked is None else Mark(marked[1], marked[2])
                before = line if marked is None else before
            blank = not line.strip()
            at += 1
            continue
        begin = at
        if fence is not None:
            language = fence[2] or COMMANDS
            at += 1
            inner = []
            while not lines[at].lstrip().startswith("```"):
                inner.append(lines[at].removeprefix(fence[1]))
                at += 1
            at += 1
        else:
            language = COMMANDS
            margin = len(line) - len(line.lstrip())
            inner = []
            while at < len(lines) and (lines[at].startswith(" " * margin)):
                inner.append(lines[at][margin:])
                at += 1
        yield Block(page, heading, number, begin + 1, language, "\n".join(inner), before, mark)
        number += language == COMMANDS
        blank, mark = False, None


def documented(page: str, heading: str) -> list[str]:
    """The commands of a heading's own blocks, for the test that the page names as the one that runs them."""
    found = [
        command
        for block in blocks(page, (REPOSITORY / page).read_text())
        if block.heading == heading and block.language == COMMANDS
        for command in block.commands()
    ]
    assert found, f"{page} has no commands under {heading!r}"
    return found


def words_to_find(command: str) -> set[str]:
    """What a file that runs ``command`` cannot do without: a command of our programs, every word of others', the names of all options."""
    wanted: set[str] = set()
    for part in " ".join(words(command)).split(" | "):
        given = part.split()
        if given[0] == "runuser" and "--" in given:
            given = given[given.index("--") + 1 :]
        plain = [word for word in given[1:] if re.fullmatch(r"[a-z][a-z0-9-]*", word)]
        program = Path(given[0]).name
        wanted.update(plain[:1] if program in PROGRAMS else [program, *plain])
        wanted.update(word.partition("=")[0] for word in given if re.match(r"--[a-z]", word))
    return wanted


def lacks(command: str, source: str) -> set[str]:
    """The words of ``command`` that ``source`` does not have."""
    return {word for word in words_to_find(command) if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", source)}
