"""The tests of the configuration server run on both its databases. Called by pytest."""

from __future__ import annotations

from tests.harness.both_databases import cluster, database_kind, pytest_generate_tests, servers

__all__ = ["cluster", "database_kind", "pytest_generate_tests", "servers"]
