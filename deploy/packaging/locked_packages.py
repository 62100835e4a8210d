"""Which third-party packages the programs need: the closure of ``pyproject.toml`` in ``requirements.lock``, with the hashes of the lock.

Called by ``program_tree``. What a package needs in turn is asked of the packages that are installed here, which ``make venv`` made from
the same lock.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from deploy.packaging.failure import PackagingFailure
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVERS_ONLY: Final = frozenset({"aiosqlite", "alembic", "sqlalchemy"})
"""Dependencies of ours that the agent has no use for. That it imports without them is checked when it is built."""


def direct_requirements(pyproject: Path) -> list[Requirement]:
    return [Requirement(line) for line in tomllib.loads(pyproject.read_text())["project"]["dependencies"]]


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """The canonical names of ``requirements`` and of all that these need, on a machine like this one."""
    found: dict[str, frozenset[str]] = {}
    waiting = [(requirement, frozenset(requirement.extras)) for requirement in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        if extras <= found.get(name, frozenset()) and name in found:
            continue
        found[name] = found.get(name, frozenset()) | extras
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise PackagingFailure(f"cannot tell what {name} needs: it is not installed", hint="make venv") from error
        for line in lines:
            inner = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *extras)]
            if inner.marker is None or any(inner.marker.evaluate(environment) for environment in wanted):
                waiting.append((inner, frozenset(inner.extras)))
    return set(found)


def locked(lock: str, names: set[str]) -> str:
    """The entries of the text of a lock for ``names``, hashes included.

    :raises PackagingFailure: if one of them has no entry.
    """
    entries: dict[str, list[str]] = {}
    for match in re.finditer(r"^([A-Za-z0-9._-]+)==.*\n(?:[ \t]+.*\n)*", lock, re.MULTILINE):
        entries.setdefault(canonicalize_name(match[1]), []).append(match[0])  # one for each version of Python, say
    missing = names - entries.keys()
    if missing:
        raise PackagingFailure(f"cannot find {', '.join(sorted(missing))} in requirements.lock", hint="make lock")
    return "".join(entry for name in sorted(names) for entry in entries[name])
