"""The units under ``deploy/systemd/`` as sections of (name, value) lines, without a running systemd.

Called by the tests of units and by ``tests/e2e/test_agent_privileges.py``. A directive may be given several times; an empty value starts
its list anew, as systemd.syntax(7) says.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.harness.source_tree import REPOSITORY

SYSTEMD: Final = REPOSITORY / "deploy" / "systemd"
PROGRAMS: Final = "/usr/lib/blockferry/bin"
"""Where units find the programs: a virtual environment today, packages later."""


@dataclass
class Unit:
    """``directives`` of every section together: no name occurs in two of them."""

    name: str
    directives: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Unit:
        unit = cls(path.name)
        for line in path.read_text().splitlines():
            if not line.strip() or line.startswith(("#", ";", "[")):
                continue
            name, separator, value = line.partition("=")
            assert separator, f"{path.name}: {line}"
            values = unit.directives.setdefault(name, [])
            if value:
                values.append(value)
            else:
                values.clear()
        return unit

    def one(self, name: str) -> str:
        """The only value of ``name``."""
        (value,) = self.directives[name]
        return value

    def words(self, name: str) -> list[str]:
        """All words of all values of ``name``."""
        return [word for value in self.directives.get(name, []) for word in shlex.split(value)]

    def seconds(self, name: str) -> float:
        value = self.one(name)
        if value == "infinity":
            return float("inf")
        number = value.rstrip("mins")
        return float(number) * {"s": 1, "min": 60}[value.removeprefix(number)]


SERVICES: Final = {path.name: Unit.read(path) for path in sorted(SYSTEMD.glob("*.service"))}
AGENT: Final = SERVICES["blockferry-agent.service"]
