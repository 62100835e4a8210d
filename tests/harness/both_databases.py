"""Running each test that makes a configuration server on SQLite and on PostgreSQL: hook and fixture of pytest.

Called by the ``conftest.py`` of the test directories that make configuration servers, which import both names. Which tests these are is
seen by what their module imports and that they have a directory, so that a new one is among them by itself.

All of them twice takes some minutes of CPU more than ``make test`` has. There, on PostgreSQL run those modules of which each kind of
statement is in one (``ON_BOTH``); ``make postgres``, by ``BLOCKFERRY_DATABASES``, runs every one on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.harness.each_database import KINDS, POSTGRESQL, SQLITE, in_use

MAKERS = ("running_lab", "driven_site")
"""Names of the harness by which a test's module makes configuration servers."""


ON_BOTH = (
    "test_database",  # migrations, transactions
    "test_drills",  # jobs, requests to the writer, made disks
    "test_granted_generations",
    "test_housekeeping",  # every deletion
    "test_incarnations",
    "test_known_recovery_points",  # points, losses of tracking
    "test_protection",  # states, policies, events
    "test_hostile_config_server",  # text, lengths and numbers that a peer chooses
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    makes_servers = any(hasattr(metafunc.module, name) for name in MAKERS) and "tmp_path" in metafunc.fixturenames
    has_its_own = "cluster" in metafunc.fixturenames
    if (makes_servers and not has_its_own) or "database" in metafunc.fixturenames:
        name = metafunc.module.__name__.rpartition(".")[2]
        usual = KINDS if name in ON_BOTH else (SQLITE,)
        kinds = os.environ.get("BLOCKFERRY_DATABASES", ",".join(usual)).split(",")
        metafunc.fixturenames.insert(0, "database_kind")
        metafunc.parametrize("database_kind", [_parameter(kind) for kind in kinds], indirect=True)


def _parameter(kind: str) -> object:
    return pytest.param(kind, marks=pytest.mark.requires(POSTGRESQL)) if kind == POSTGRESQL else kind


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of database that the test runs on."""
    in_use.kind = request.param
    try:
        yield request.param
    finally:
        in_use.end()
