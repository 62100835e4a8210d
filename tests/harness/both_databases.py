"""Running each test that makes a configuration server on SQLite and on PostgreSQL: hook and fixtures of pytest.

Called by the ``conftest.py`` of the test directories that make configuration servers, which import the names. Which tests these are is
seen by what their module imports and that they have a directory, so that a new one is among them by itself.

A test costs about the same on either (a used database is cleaned for the next test, ``cleaned_database.py``), but all of them twice are
minutes. So CI (``make test HEAVY=1``) runs them all on both, and ``make test`` on SQLite. What is about PostgreSQL itself runs in every
``make test``. ``BLOCKFERRY_DATABASES`` chooses (``make postgres``: all of them on PostgreSQL only).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from config_server.database import Database
from config_server.postgresql import PostgresqlSettings
from tests.harness.each_database import KINDS, POSTGRESQL, SQLITE, in_use, shared_cluster
from tests.harness.postgresql_cluster import PostgresqlCluster

MAKERS = ("running_lab", "driven_site")
"""Names of the harness by which a test's module makes configuration servers."""

HAVE_THEIR_OWN = ("test_backup", "test_site_keys")
"""Modules that are about SQLite's files; what corresponds on PostgreSQL is in ``test_backup_on_postgresql`` and ``test_leadership``."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    makes_servers = any(hasattr(metafunc.module, name) for name in MAKERS) and "tmp_path" in metafunc.fixturenames
    has_its_own = "cluster" in metafunc.fixturenames
    if (makes_servers and not has_its_own) or "database" in metafunc.fixturenames:
        name = metafunc.module.__name__.rpartition(".")[2]
        asked = os.environ.get("BLOCKFERRY_DATABASES")
        kinds = KINDS if asked is None else tuple(asked.split(","))
        if name in HAVE_THEIR_OWN:
            kinds = (SQLITE,)
        parameters = [_parameter(kind, is_asked_for=asked is not None) for kind in kinds]
        metafunc.parametrize("database_kind", parameters, indirect=True)


def _parameter(kind: str, *, is_asked_for: bool) -> object:
    if kind == SQLITE:
        return kind
    again = [] if is_asked_for else [pytest.mark.heavy("the tests of the configuration server again, on PostgreSQL")]
    return pytest.param(kind, marks=[pytest.mark.requires(POSTGRESQL), *again])


@pytest.fixture(autouse=True)
def database_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of database that the test runs on: set before any other fixture makes a server.

    Used by itself (autouse): pytest forgets a fixture that was only added to the names of a test that it parametrizes.
    """
    kind = getattr(request, "param", SQLITE)
    in_use.kind = kind
    try:
        yield kind
    finally:
        in_use.end()


@pytest.fixture
def cluster() -> Iterator[PostgresqlCluster]:
    """PostgreSQL, on which the test's configuration servers are, too."""
    in_use.kind = POSTGRESQL
    try:
        yield shared_cluster()
    finally:
        in_use.end()


@pytest.fixture
async def servers(cluster: PostgresqlCluster) -> AsyncIterator[tuple[Database, Database]]:
    """Two servers' views of one new database."""
    url = cluster.url(await cluster.create_database())
    settings = PostgresqlSettings(leader_timeout_s=2)
    first, second = Database(url, settings), Database(url, settings)
    try:
        await first.upgrade()
        yield first, second
    finally:
        await first.close()
        await second.close()
