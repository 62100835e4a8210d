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

    async def url(self, directory: Path, template: str | None = None) -> str:
        """The same one for the same directory. ``template``: of PostgreSQL, what a new one is like."""
        if self.kind == SQLITE:
            return sqlite_url(directory / DATABASE_FILE)
        if directory not in self.names:
            self.names[directory] = await shared_cluster().create_database(template, drop=self.done_with)
            self.done_with = []
        return shared_cluster().url(self.names[directory])

    def keep(self, directory: Path) -> None:
        """Make the database of ``directory`` a template."""
        if directory in self.names:
            self.templates[directory] = self.names.pop(directory)

    def end(self) -> None:
        """The test is over: what it had goes when the next database is made."""
        self.done_with += self.names.values()
        self.names.clear()
        self.kind = SQLITE


in_use = DatabaseInUse()
