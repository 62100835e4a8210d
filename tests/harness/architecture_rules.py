"""The rules that the source tree keeps, as functions: a tree in, a line for each breach out.

Called by ``tests/test_architecture.py``, which holds the repository against each and shows with a snippet that each can fail.
What the rules close: a decision that reads a clock, a daemon that reaches into another, an error that is swallowed.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Final

from tests.harness.source_tree import DAEMONS, PRODUCT, SHARED, Module, SourceTree

Rule = Callable[[SourceTree], Iterator[str]]

MAX_LINES: Final = 500

IMPURE: Final = frozenset(
    {
        *("asyncio", "os", "time", "random", "ssl", "aiohttp", "pathlib", "socket", "threading", "subprocess"),
        *("concurrent", "multiprocessing", "secrets", "select", "selectors", "shutil", "signal", "tempfile", "uvloop"),
        *("builtins", "ctypes", "fcntl", "glob", "http", "importlib", "io", "mmap", "numpy.random", "runpy", "sqlite3"),
    }
)
"""Modules through which I/O, the clock or randomness would enter a core, or by which any of these could be imported unseen."""

_IMPURE_NAMES: Final = frozenset(
    {"open", "input", "breakpoint", "__import__", "__builtins__", "exec", "eval", "compile"}
)
"""What needs no import: I/O, and the ways to any other module."""

_OF_CODECS: Final = frozenset({"os", "secrets"})
"""What a codec outside a core may import, though a core reads its types: it draws a salt."""

_CLOCK_AND_CHANCE: Final = frozenset({"now", "utcnow", "today", "uuid1", "uuid4", "urandom"})
_COMPOSERS: Final = ("cli", "__main__")
_VAGUE_NAMES: Final = re.compile(r"(?:.*_)?(?:utils?|helpers?|managers?|misc|common)")

_REASON: Final = re.compile(r"#\s*(?:noqa: BLE001\b[\s-]*)?\w+(?:\W+\w+){2,}")


def cores_are_pure(tree: SourceTree) -> Iterator[str]:
    """A core decides without I/O, clock or randomness; nor does any module of ours that it imports, however far, do I/O."""
    for module in tree.product_modules():
        if module.room != "core":
            continue
        for name, chain in tree.reachable(module.name).items():
            forbidden = IMPURE if tree.modules[name].room == "core" else IMPURE - _OF_CODECS
            for found in tree.imports[name]:
                if not forbidden.isdisjoint(_itself_and_parents(found.target)):
                    yield f"{module.path}: {' → '.join([*chain, found.target])}"
            for line, what in _impure_uses(tree.modules[name]):
                yield f"{module.path}: {' → '.join([*chain, what])} in line {line}"
        for node in ast.walk(module.syntax):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in _CLOCK_AND_CHANCE
            ):
                yield f"{module.path}:{node.lineno}: {ast.unparse(node.func)}() asks the clock or chance"


def _itself_and_parents(target: str) -> Iterator[str]:
    parts = target.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _impure_uses(module: Module) -> Iterator[tuple[int, str]]:
    """Where a module uses one of ``_IMPURE_NAMES``, called or not, or ``numpy.random`` through numpy: line and name."""
    numpy_names = {
        alias.asname or alias.name
        for node in ast.walk(module.syntax)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "numpy"
    }
    for node in ast.walk(module.syntax):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name in _IMPURE_NAMES:
                yield node.lineno, name
            case ast.ImportFrom(module="numpy", names=names) if any(alias.name == "random" for alias in names):
                yield node.lineno, "numpy.random"
            case ast.Attribute(value=ast.Name(id=name), attr="random") if name in numpy_names:
                yield node.lineno, "numpy.random"


def daemons_are_independent(tree: SourceTree) -> Iterator[str]:
    """No daemon imports another's package; what two need is in ``replication``, which imports none of them."""
    for module in tree.product_modules():
        for found in tree.imports[module.name]:
            package = found.target.partition(".")[0]
            if package != module.package and package in DAEMONS:
                yield f"{module.path}:{found.line}: {module.package} imports {found.target}"


def product_stands_alone(tree: SourceTree) -> Iterator[str]:
    """What is shipped imports neither tests nor deployment."""
    for module in tree.product_modules():
        for found in tree.imports[module.name]:
            if found.target.partition(".")[0] in ("tests", "deploy"):
                yield f"{module.path}:{found.line}: imports {found.target}"


def imports_are_acyclic(tree: SourceTree) -> Iterator[str]:
    """No circular imports between modules, those under TYPE_CHECKING and inside functions included. Names one cycle at a time."""
    try:
        graphlib.TopologicalSorter({name: tree.own_targets(name) for name in tree.modules}).prepare()
    except graphlib.CycleError as error:
        yield " ← ".join(error.args[1])


def rooms_are_layered(tree: SourceTree) -> Iterator[str]:
    """A package's rooms (its sub-packages) stand in layers: no two know each other, directly or around a corner.

    ``core`` is the lowest: it knows no other. Nothing but ``cli.py`` and ``__main__.py`` imports ``daemon.py``, which puts them together.
    """
    layers: dict[str, dict[str, set[str]]] = {daemon: {} for daemon in DAEMONS}
    for module in tree.product_modules():
        for found in tree.imports[module.name]:
            target = tree.modules.get(found.target)
            if target is None or target.package != module.package or target.package == SHARED:
                continue
            if target.name == f"{module.package}.daemon" and _stem(module) not in _COMPOSERS:
                yield f"{module.path}:{found.line}: imports the composition root {target.name}"
            if module.room == "core" and target.room != "core":
                yield f"{module.path}:{found.line}: core imports {target.name}"
            if (above := _layer(module)) != (below := _layer(target)):
                layers[module.package].setdefault(above, set()).add(below)
    for layer in layers.values():
        try:
            graphlib.TopologicalSorter(layer).prepare()
        except graphlib.CycleError as error:
            yield " ← ".join(error.args[1])


def _layer(module: Module) -> str:
    """The room, or for a module at the package's root the module itself."""
    return module.name if module.room is None else f"{module.package}.{module.room}"


def _stem(module: Module) -> str:
    return PurePath(module.path).stem


_SAYS_WHO: Final = re.compile(
    r"\b(by|wherever|from)\b|\bagent|process server|config(uration)? server|writer\b|daemon|callers?\b", re.IGNORECASE
)


def modules_are_introduced(tree: SourceTree) -> Iterator[str]:
    """The first ten lines of a module say what it is for and who calls it; of a package or a test, what it is for."""
    for module in tree.modules.values():
        docstring = ast.get_docstring(module.syntax) or ""
        opening = " ".join(docstring.splitlines()[:10])
        if not opening:
            if module.source.strip():
                yield f"{module.path}: has no docstring"
        elif not module.is_package and module.package in PRODUCT and not _SAYS_WHO.search(opening):
            yield f"{module.path}: the docstring does not say who calls it"


def files_are_short(tree: SourceTree) -> Iterator[str]:
    """A Python file does one job in at most ``MAX_LINES`` lines."""
    for module in tree.modules.values():
        lines = len(module.source.splitlines())
        if lines > MAX_LINES:
            yield f"{module.path}: {lines} lines"


def names_say_something(tree: SourceTree) -> Iterator[str]:
    """No module called utils, helpers or manager, and no class called ...Manager."""
    for module in tree.modules.values():
        if any(_VAGUE_NAMES.fullmatch(part) for part in module.name.split(".")):
            yield f"{module.path}: a name that says nothing"
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Manager"):
                yield f"{module.path}:{node.lineno}: class {node.name}"


def errors_are_not_swallowed(tree: SourceTree) -> Iterator[str]:
    """``except Exception`` (or wider) ends by raising again, or says on its line in a few words why it may go on; so does ``suppress``."""
    for module in tree.product_modules():
        lines = module.source.splitlines()
        suppressing = {"suppress", *_names_of_suppress(module)}
        for node in ast.walk(module.syntax):
            match node:
                case ast.ExceptHandler() if _is_blind(node) and not isinstance(node.body[-1], ast.Raise):
                    pass
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in suppressing:
                    if not any(_is_everything(kind) for kind in node.args):
                        continue
                case _:
                    continue
            if not _REASON.search(lines[node.lineno - 1]):
                yield f"{module.path}:{node.lineno}: catches everything and goes on"


def _is_blind(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return _is_everything(handler.type)


def _is_everything(kind: ast.expr) -> bool:
    """Whether this class, or one of these, takes in every error."""
    match kind:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ("Exception", "BaseException")
        case ast.Tuple(elts=kinds):
            return any(_is_everything(each) for each in kinds)
        case ast.Starred(value=inner):
            return _is_everything(inner)
        case _:
            return False


def _names_of_suppress(module: Module) -> Iterator[str]:
    for node in ast.walk(module.syntax):
        if isinstance(node, ast.ImportFrom) and node.module == "contextlib":
            yield from (alias.asname for alias in node.names if alias.name == "suppress" and alias.asname)


# Written so that this file does not match itself.
_LEFT_UNDONE: Final = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b(?!\(#\d+\))")
_FOREIGN_PLACES: Final = re.compile(
    r"\b(?:[\w-]+\.)*(?:pypi|pythonhosted|npmjs|debian|ubuntu|anaconda)\.(?:org|com|net)\b"  # package indexes and mirrors
    r"|(?<![\w./-])/(?:home|Users|wo"
    r"rk)/[\w.]"  # a developer's directory
    r"|/\.pyenv/"
)


def nothing_is_left_undone(tree: SourceTree) -> Iterator[str]:
    """What is left to do is an issue, named with its number; a bare mark in the source is forgotten."""
    yield from _lines_matching(tree, _LEFT_UNDONE)


def no_machine_is_named(tree: SourceTree) -> Iterator[str]:
    """Nothing names a package index, a mirror or a directory of one developer's machine."""
    yield from _lines_matching(tree, _FOREIGN_PLACES)


def _lines_matching(tree: SourceTree, pattern: re.Pattern[str]) -> Iterator[str]:
    for path, text in tree.files.items():
        for number, line in enumerate(text.splitlines(), 1):
            if found := pattern.search(line):
                yield f"{path}:{number}: {found[0]}"


RULES: Final[tuple[Rule, ...]] = (
    cores_are_pure,
    daemons_are_independent,
    product_stands_alone,
    imports_are_acyclic,
    rooms_are_layered,
    modules_are_introduced,
    files_are_short,
    names_say_something,
    errors_are_not_swallowed,
    nothing_is_left_undone,
    no_machine_is_named,
)
