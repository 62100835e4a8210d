"""Which event loops the tests of the service runtime run on: those of connections also on uvloop, as daemons do. Called by pytest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from replication.service.event_loop import new_event_loop


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    both = item.path.name in ("test_service_connections.py", "test_service_reception.py")
    return {"asyncio": asyncio.new_event_loop} | ({"uvloop": new_event_loop} if both else {})
