"""The fixture that fails a test of hostile input for an internal error is able to: it does so for a logged error in any phase.

Called by pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.harness.source_tree import REPOSITORY

SUITE = """
import logging
import pytest
from tests.harness.internal_errors import no_internal_error

@pytest.fixture
def service():
    logging.getLogger("service").warning("begins")
    yield
    logging.getLogger("service").error("failed at its end")

def test_nothing_logged():
    pass

def test_warning():
    logging.getLogger("service").warning("told")

def test_error_while_it_runs():
    logging.getLogger("aiohttp.server").error("Error handling request")

def test_error_when_its_service_ends(service):
    pass
"""


def test_an_error_that_was_logged_fails_the_test_whenever_it_was(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failed = {
        line.split("::")[1].split()[0] for line in done.stdout.splitlines() if line.startswith("ERROR test_suite.py::")
    }
    assert failed == {"test_error_while_it_runs", "test_error_when_its_service_ends"}, done.stdout
    assert "4 passed, 2 errors" in done.stdout
