"""The repository's sources as syntax trees, and which module imports which.

Called by ``architecture_rules.py`` and ``tests/test_documentation.py``. A tree is made from the repository or from snippets, so that
every rule can be shown to fail. Reads files; imports and runs nothing of them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DAEMONS: Final = ("azure_sink", "config_server", "mobility_agent", "process_server")
SHARED: Final = "replication"
PRODUCT: Final = (*DAEMONS, SHARED)

_ROOTS: Final = (*PRODUCT, "deploy", "tests", "docs", ".ci")
_ROOT_FILES: Final = ("Makefile", "README.md", "pyproject.toml", "requirements.lock")
_TEXT_SUFFIXES: Final = (
    *(".py", ".sh", ".md", ".txt", ".toml", ".yaml", ".yml", ".ini", ".mako", ".sql", ".json"),
    *(".service", ".target", ".socket", ".html", ".css", ".js", ".conf", ".lock", ".cfg", ""),
)
_GENERATED_DIRECTORIES: Final = ("__pycache__", "node_modules")


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement's target: a module of ours if ``target`` is in the tree, else of somebody else."""

    target: str
    line: int


@dataclass(frozen=True)
class Module:
    """One Python file. ``name`` is dotted and without ``.__init__``."""

    name: str
    path: str
    source: str

    @functools.cached_property
    def syntax(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")

    @property
    def package(self) -> str:
        """The first part of the name: ``process_server`` of ``process_server.core.spool``."""
        return self.name.partition(".")[0]

    @property
    def room(self) -> str | None:
        """The sub-package that the module lives in: ``core`` of ``process_server.core.spool``; None at the package's root."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 or (self.is_package and len(parts) == 2) else None


class SourceTree:
    """Text files by path relative to the repository, and the Python modules among them."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(sorted(files.items()))
        self.modules = {
            module.name: module
            for module in (
                Module(_dotted(path), path, text) for path, text in self.files.items() if path.endswith(".py")
            )
        }
        self.imports = {name: tuple(self._imports(module)) for name, module in self.modules.items()}

    @classmethod
    @functools.cache
    def of_repository(cls) -> SourceTree:
        """Everything in the checkout that a person wrote, committed or not."""
        paths = [REPOSITORY / name for name in _ROOT_FILES]
        paths += [path for root in _ROOTS for path in (REPOSITORY / root).rglob("*") if path.suffix in _TEXT_SUFFIXES]
        files = {}
        for path in paths:
            if not path.is_file() or any(part in _GENERATED_DIRECTORIES for part in path.parts):
                continue
            content = path.read_bytes()
            if b"\0" not in content:
                files[str(path.relative_to(REPOSITORY))] = content.decode(errors="replace")
        return cls(files)

    def product_modules(self) -> Iterator[Module]:
        return (module for module in self.modules.values() if module.package in PRODUCT)

    def own_targets(self, name: str) -> set[str]:
        """The modules of this tree that module ``name`` imports, itself excepted."""
        return {found.target for found in self.imports[name] if found.target in self.modules} - {name}

    def reachable(self, name: str) -> dict[str, tuple[str, ...]]:
        """Every module of this tree that ``name`` imports, however far: module → the chain from ``name`` to it."""
        chains: dict[str, tuple[str, ...]] = {name: (name,)}
        waiting = [name]
        while waiting:
            current = waiting.pop(0)
            for target in sorted(self.own_targets(current) - chains.keys()):
                chains[target] = (*chains[current], target)
                waiting.append(target)
        return chains

    def _imports(self, module: Module) -> Iterator[Import]:
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = _base(module, node)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield Import(inner if inner in self.modules else base, node.lineno)


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _base(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of what ``from ... import`` imports from."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parent = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parent, *([node.module] if node.module else [])])
