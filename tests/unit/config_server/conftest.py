"""The tests of the configuration server run on both its databases. Called by pytest."""

from __future__ import annotations

from tests.harness.both_databases import database_kind, pytest_generate_tests

__all__ = ["database_kind", "pytest_generate_tests"]
