"""``requirements.lock`` covers ``pyproject.toml``, with hashes, for both architectures, and says nothing of where it was made."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from dataclasses import dataclass, field
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.harness.source_tree import PRODUCT, REPOSITORY, SourceTree

_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass
class _Locked:
    requirement: Requirement
    hashes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def is_for_this_machine(self) -> bool:
        return self.requirement.marker is None or self.requirement.marker.evaluate()

    @property
    def version(self) -> Version:
        (pin,) = self.requirement.specifier
        assert pin.operator == "==", f"{self.requirement} is not pinned"
        return Version(pin.version)


def _parse(text: str) -> list[_Locked]:
    locked: list[_Locked] = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        locked.append(_Locked(Requirement(line.split("--hash")[0].strip()), _HASH.findall(line)))
    return locked


LOCK_TEXT: Final = (REPOSITORY / "requirements.lock").read_text()
LOCK: Final = _parse(LOCK_TEXT)
"""A release for each name and environment (one for Python 3.11, another for 3.12, ...)."""
LOCKED_HERE: Final = {locked.name: locked for locked in LOCK if locked.is_for_this_machine}
PROJECT: Final = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def _declared() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *extras["dev"], *PROJECT["build-system"]["requires"]]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", _declared(), ids=str)
def test_lock_satisfies_declared_dependency(requirement: Requirement) -> None:
    locked = LOCKED_HERE.get(canonicalize_name(requirement.name))
    assert locked is not None, f"run `make lock`: {requirement} is not in requirements.lock"
    assert requirement.specifier.contains(locked.version), f"run `make lock`: {locked.requirement} is not {requirement}"


def _needs_of(name: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> set[str]:
    """The names that the installed distribution ``name[extras]`` needs on Linux, however far."""
    needed: set[str] = set()
    for extra in extras or {""}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            for environment in ({"extra": extra}, {"extra": ""}):
                if requirement.marker is None or requirement.marker.evaluate(environment):
                    other = canonicalize_name(requirement.name)
                    needed |= {other} | _needs_of(other, frozenset(requirement.extras), seen)
    return needed


def test_lock_holds_everything_that_the_dependencies_need() -> None:
    seen: set[tuple[str, str]] = set()
    needed = {name for declared in _declared() for name in _needs_of(declared.name, frozenset(declared.extras), seen)}
    assert needed - LOCKED_HERE.keys() == set()


@pytest.mark.parametrize("name", sorted(LOCKED_HERE))
def test_locked_version_is_the_installed_one(name: str) -> None:
    assert Version(importlib.metadata.version(name)) == LOCKED_HERE[name].version, "run `make venv`"


@pytest.mark.parametrize("locked", LOCK, ids=lambda locked: str(locked.requirement))
def test_locked_release_has_distinct_hashes(locked: _Locked) -> None:
    assert locked.hashes
    assert len(set(locked.hashes)) == len(locked.hashes)


@pytest.mark.parametrize("name", sorted(LOCKED_HERE))
def test_compiled_release_is_locked_for_more_than_this_machine(name: str) -> None:
    """A hash does not say of which file it is. That x86_64 and aarch64 are both among a compiled release's files follows from
    ``make lock``, which takes the hashes of all; a lock made for one platform alone has one or two a release.
    """
    tags = importlib.metadata.distribution(name).read_text("WHEEL") or ""
    if re.search(r"^Tag: .*-(manylinux|musllinux|linux)", tags, re.MULTILINE):
        assert len(LOCKED_HERE[name].hashes) >= 4


def _undeclared(tree: SourceTree, packages: tuple[str, ...], declared: set[str]) -> dict[str, str]:
    """Distributions that modules of ``packages`` import and nobody declares → a module that does."""
    distributions = importlib.metadata.packages_distributions()
    found = {}
    for module in tree.modules.values():
        # Packages are built by developers, in their environment.
        builds = module.path.startswith("deploy/packaging/") and "tests" not in packages
        if module.package not in packages or builds:
            continue
        for target in {imported.target.partition(".")[0] for imported in tree.imports[module.name]}:
            names = {canonicalize_name(name) for name in distributions.get(target, [])} - {"blockferry"}
            if names and not names & declared:
                found[", ".join(sorted(names))] = module.path
    return found


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_everything_that_is_imported_is_declared() -> None:
    """Not merely there because another package needs it at present."""
    tree = SourceTree.of_repository()
    shipped = _names(PROJECT["project"]["dependencies"])
    developed = shipped | _names(PROJECT["project"]["optional-dependencies"]["dev"])
    assert _undeclared(tree, (*PRODUCT, "deploy"), shipped) == {}
    assert _undeclared(tree, ("tests", "deploy"), developed) == {}


def test_import_of_what_is_not_declared_is_seen() -> None:
    tree = SourceTree({"azure_sink/a.py": "import yarl", "azure_sink/b.py": "import aiohttp, os, azure_sink.a"})
    assert _undeclared(tree, ("azure_sink",), {"aiohttp"}) == {"yarl": "azure_sink/a.py"}


def test_lock_names_no_index_and_no_path() -> None:
    for line in LOCK_TEXT.splitlines():
        assert re.fullmatch(
            r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[0-9][^\s/]*( ;[^/\\]*)?( \\)?|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        ), line


def test_lock_parser_sees_an_unpinned_and_an_unhashed_release() -> None:
    first, second, third = _parse("a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2 ; sys_platform == 'win32'\nc>=3\n")
    assert (first.version, first.hashes) == (Version("1"), ["0" * 64])
    assert (second.is_for_this_machine, second.hashes) == (False, [])
    with pytest.raises(AssertionError, match="not pinned"):
        print(third.version)
