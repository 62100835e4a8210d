"""The reconciler's loop. Called by ``daemon.py``.

Every step is idempotent and reads its facts anew, so that a restart at any point continues.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.registry import Collector

from config_server.config import HeartbeatSettings, ReconcilerSettings
from config_server.database import Database
from config_server.desired import DesiredFeed
from config_server.events import Clock
from config_server.store_status import StoreStatus
from replication.blob_client.api import BlobClient
from replication.documents import WriterPublicKey
from replication.service.health import HealthBoard


class _Figures(Collector):
    def collect(self) -> Iterable[Metric]:
        return []


class Reconciler:
    def __init__(
        self,
        *,
        database: Database,
        store: BlobClient,
        writer: WriterPublicKey,
        feed: DesiredFeed,
        status: StoreStatus,
        board: HealthBoard,
        settings: ReconcilerSettings,
        heartbeat: HeartbeatSettings,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._woken = asyncio.Event()
        self.figures = _Figures()

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self._settings.interval_s)
            self._woken.clear()
