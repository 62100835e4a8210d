"""Doorbells: the store of the same process says that something was put for which the replica writer waits, so that it need not wait for
its next look.

Built by ``daemon.py`` for ``azure-sink all``, rung by the blob store after a commit, waited for by ``replica_writer.py``. A writer on
another machine's store has none: it looks at its intervals. Ringing is never needed for anything to be done, it only hastens it; so
what rings in vain, or not at all, does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from replication.identifiers import DiskId, EpochKey
from replication.store_layout import KEYS_PREFIX, REPLICATION_CONTAINER, REQUESTS_PREFIX, parse_epoch_blob_name

RECORDS: Final = "generation records"
REQUESTS: Final = "requests"


class Doorbells:
    """One for each disk that is followed, one for generation records, one for requests. Used on one event loop."""

    def __init__(self) -> None:
        self._bells: dict[str, asyncio.Event] = {RECORDS: asyncio.Event(), REQUESTS: asyncio.Event()}

    def install(self, disk: DiskId) -> None:
        """From now on manifests of ``disk`` ring."""
        self._bells.setdefault(disk, asyncio.Event())

    def remove(self, disk: DiskId) -> None:
        self._bells.pop(disk, None)

    def note_put(self, container: str, name: str) -> None:
        """A blob was put, durably."""
        if container != REPLICATION_CONTAINER:
            return
        if name.startswith(REQUESTS_PREFIX):
            self._bells[REQUESTS].set()
        elif name.startswith(KEYS_PREFIX):
            self._bells[RECORDS].set()
        else:
            key = parse_epoch_blob_name(name)
            if isinstance(key, EpochKey) and key.disk in self._bells:
                self._bells[key.disk].set()

    async def wait(self, which: str, longest_s: float) -> None:
        """Until the bell rings, at most ``longest_s``; at once if it rang since the last call returned, so that no put falls between a look
        and the wait after it.
        """
        bell = self._bells.get(which)
        if bell is None:
            await asyncio.sleep(longest_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await bell.wait()
        bell.clear()
