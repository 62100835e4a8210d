"""The tests of the configuration server run on both its databases; those of ``migratectl`` have a server to speak to. Called by pytest."""

from __future__ import annotations

from tests.harness.both_databases import cluster, database_kind, pytest_generate_tests, servers
from tests.harness.migratectl_server import ctl, server

__all__ = ["cluster", "ctl", "database_kind", "pytest_generate_tests", "server", "servers"]
