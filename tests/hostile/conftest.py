"""Hostile tests run on uvloop, as the daemons do. Called by pytest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from replication.service.event_loop import new_event_loop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": new_event_loop}
