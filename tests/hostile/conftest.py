"""Hostile tests run on uvloop, as the daemons do, and those of the configuration server on both its databases. Called by pytest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from replication.service.event_loop import new_event_loop
from tests.harness.both_databases import database_kind, pytest_generate_tests

__all__ = ["database_kind", "pytest_asyncio_loop_factories", "pytest_generate_tests"]


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": new_event_loop}
