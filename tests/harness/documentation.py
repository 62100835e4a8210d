"""What the programs offer (commands, options, metrics) and what the documentation says, in a form that can be compared.

Called by ``tests/test_documentation.py``. Commands come from click itself, metric names from the syntax trees of the product.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import click

from tests.harness.source_tree import SourceTree

_METRIC_MAKERS: Final = re.compile(r"(Counter|Gauge|Histogram|Summary|Info|Enum)(MetricFamily)?|StateSetMetricFamily")
_UNDOCUMENTED_OPTIONS: Final = ("--help", "--version")
"""What every command has; said once for all."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command that can be typed: its words (``migratectl``, ``status``) and its options' long names."""

    words: tuple[str, ...]
    options: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def program_commands(program: str, entry: str) -> Iterator[Command]:
    """The commands of a console script, from its entry point ``module:attribute``.

    :raises ModuleNotFoundError: if the module is not there (yet).
    :raises TypeError: if the attribute is no click command.
    """
    module, _, attribute = entry.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{entry} is no click command: its options cannot be compared with the documentation")
    yield from commands_of(command, (program,))


def commands_of(command: click.Command, words: tuple[str, ...]) -> Iterator[Command]:
    """``command`` and all its visible sub-commands, however deep."""
    options = [
        max(parameter.opts, key=len)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    yield Command(words, tuple(option for option in options if option not in _UNDOCUMENTED_OPTIONS))
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from commands_of(inner, (*words, name))


@dataclass(frozen=True, slots=True)
class Section:
    """A heading's own text, with the headings above it: what a reader of that place has in mind."""

    path: str
    headings: tuple[str, ...]
    text: str

    def mentions(self, word: str) -> bool:
        return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", "\n".join([*self.headings, self.text])) is not None


def sections(path: str, markdown: str) -> Iterator[Section]:
    """The sections of a page; lines inside a code fence are never headings."""
    headings: list[tuple[int, str]] = []
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        fenced ^= line.lstrip().startswith("```")
        found = None if fenced else re.match(r"(#{1,6})\s+(.*)", line)
        if found is None:
            lines.append(line)
            continue
        yield Section(path, tuple(text for _, text in headings), "\n".join(lines))
        level = len(found[1])
        headings = [*((depth, text) for depth, text in headings if depth < level), (level, found[2])]
        lines = []
    yield Section(path, tuple(text for _, text in headings), "\n".join(lines))


def undocumented(command: Command, pages: list[Section]) -> Iterator[str]:
    """What no section says of ``command``: a section counts if it has all the command's words, in its text or its headings."""
    about = [section for section in pages if all(section.mentions(word) for word in command.words)]
    if not about:
        yield f"`{command}`"
        return
    for option in command.options:
        if not any(section.mentions(option) for section in about):
            yield f"`{command} {option}`"


def metric_names(tree: SourceTree) -> tuple[dict[str, str], set[str]]:
    """(literal metric name → where it is declared, modules that build names at run time)."""
    literal: dict[str, str] = {}
    built: set[str] = set()
    for module in tree.product_modules():
        if not any(found.target.partition(".")[0] == "prometheus_client" for found in tree.imports[module.name]):
            continue
        for node in ast.walk(module.syntax):
            if not isinstance(node, ast.Call) or not _METRIC_MAKERS.fullmatch(_called(node)) or not node.args:
                continue
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                literal[name.value] = f"{module.path}:{node.lineno}"
            else:
                built.add(module.name)
    return literal, built


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def anchor(heading: str) -> str:
    """The fragment that forges make of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def links(markdown: str) -> Iterator[str]:
    """Targets of links and pictures outside of code."""
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    yield from re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose)
    yield from re.findall(r"^\[[^\]]+\]:\s+(\S+)", prose, flags=re.MULTILINE)
