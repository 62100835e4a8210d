"""A fixture for tests of hostile input: none of it may become an internal error, which services log as such.

Imported by the modules of ``tests/hostile``, where it holds for every test; ``tests/unit/harness`` proves that it can fail.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, Literal

import pytest

_PHASES: Final[tuple[Literal["setup", "call", "teardown"], ...]] = ("setup", "call", "teardown")


@pytest.fixture(autouse=True)
def no_internal_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test that logged an error, in whichever phase: ``caplog.records`` would be those of the present one, the teardown."""
    yield
    logged = [record for phase in _PHASES for record in caplog.get_records(phase)]
    errors = [f"{each.name}: {each.getMessage()}" for each in logged if each.levelno >= logging.ERROR]
    assert not errors, errors
