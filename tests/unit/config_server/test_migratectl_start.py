"""How much ``migratectl`` imports before an order is sent: nothing that only reads its answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATE = ("pydantic", "rich", "config_server.operator_plane", "config_server.job_documents", "replication.documents")


def _imported_with(module: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(shown.stdout.split())


@pytest.mark.parametrize("module", ["config_server.migratectl.cli", "config_server.migratectl.item_orders"])
def test_an_order_is_sent_before_what_reads_its_answer_is_imported(module: str) -> None:
    assert _imported_with(module).isdisjoint(LATE)


def test_what_reads_an_answer_does_import_it() -> None:
    assert _imported_with("config_server.migratectl.ordered_job").issuperset(LATE)  # else the test above could not fail
