"""Both databases of the configuration server, so that the same tests run on each: SQLite, and a PostgreSQL of the test run's own.

Called by the ``conftest.py`` of the test directories that make configuration servers, and by ``config_site.py``. ``in_use`` is what the
running test shall have; outside of such a test it is SQLite. The cluster is started by the first test that needs it, once a process.
"""

from __future__ import annotations

import atexit
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from config_server.database import DATABASE_FILE, sqlite_url
from tests.harness.cleaned_database import MOST_USES, Content, clean, content_of
from tests.harness.postgresql_cluster import PostgresqlCluster

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"
KINDS: Final = (SQLITE, POSTGRESQL)

_running = contextlib.ExitStack()
_clusters: list[PostgresqlCluster] = []


def shared_cluster() -> PostgresqlCluster:
    """This process's; ended at its end."""
    if not _clusters:
        _clusters.append(_running.enter_context(PostgresqlCluster()))
        atexit.register(_running.close)
    return _clusters[0]


@dataclass(slots=True)
class DatabaseInUse:
    """Where the running test's databases are: one for each directory that would hold the file of SQLite."""

    kind: str = SQLITE
    names: dict[Path, str] = field(default_factory=dict)
    templates: dict[Path, str] = field(default_factory=dict)
    """Those that outlive the test that made them."""
    done_with: list[str] = field(default_factory=list)
    """To be dropped when the next one is made."""
    used: dict[str, list[str]] = field(default_factory=dict)
    """By template: those that a test is over with, to be cleaned for the next one."""
    origins: dict[str, str] = field(default_factory=dict)
    """Name → the template that it is like, while it may be used again."""
    uses: dict[str, int] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)

    async def url(self, directory: Path, template: str | None = None) -> str:
        """The same one for the same directory. ``template``: of PostgreSQL, what a new one is like."""
        if self.kind == SQLITE:
            return sqlite_url(directory / DATABASE_FILE)
        if directory not in self.names:
            self.names[directory] = await self._cleaned(template) or await self._made(template)
        return shared_cluster().url(self.names[directory])

    async def _made(self, template: str | None) -> str:
        done_with, self.done_with = self.done_with, []
        name = await shared_cluster().create_database(template, drop=done_with)
        if template is not None:
            self.origins[name] = template
        return name

    async def _cleaned(self, template: str | None) -> str | None:
        """One that an earlier test had, like ``template`` again."""
        if template is None or not self.used.get(template):
            return None
        if template not in self.contents:
            self.contents[template] = await content_of(shared_cluster(), template)
        name = self.used[template].pop()
        self.uses[name] = self.uses.get(name, 0) + 1
        if self.uses[name] >= MOST_USES or not await clean(shared_cluster(), name, self.contents[template]):
            self.done_with.append(name)
            return None
        self.origins[name] = template
        return name

    def keep(self, directory: Path) -> None:
        """Make the database of ``directory`` a template."""
        if directory in self.names:
            self.templates[directory] = self.names.pop(directory)

    def end(self) -> None:
        """The test is over: what it had is cleaned for the next one, or goes when a new database is made."""
        for name in self.names.values():
            template = self.origins.pop(name, None)
            if template is None:
                self.done_with.append(name)
            else:
                self.used.setdefault(template, []).append(name)
        self.names.clear()
        self.kind = SQLITE


in_use = DatabaseInUse()
