"""The heartbeat: every few seconds what this process server observes goes to the configuration server, what it shall do comes back.

Built by ``daemon``, ``run`` in a task. A heartbeat that fails changes nothing but the health: data goes on for as long as it takes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from replication.clock import Clock
from replication.control_plane import ProcessServerDesired, ProcessServerObservation
from replication.errors import BlockferryError
from replication.service.health import HealthBoard, HealthState

DEFAULT_INTERVAL_S: Final = 5.0
CHECK: Final = "config-server"

_logger = logging.getLogger(__name__)


class HeartbeatPeer(Protocol):
    """The configuration server, as far as heartbeats go."""

    async def heartbeat(self, observation: ProcessServerObservation) -> ProcessServerDesired: ...


class Heartbeat:
    """``observe`` makes the report, ``apply`` obeys the answer; ``on_answer`` is told whether the last one came."""

    def __init__(
        self,
        peer: HeartbeatPeer,
        clock: Clock,
        board: HealthBoard,
        interval_s: float,
        *,
        observe: Callable[[], Awaitable[ProcessServerObservation]],
        apply: Callable[[ProcessServerDesired], None],
        on_answer: Callable[[bool], None] = lambda _answered: None,
    ) -> None:
        self._peer = peer
        self._clock = clock
        self._board = board
        self._interval_s = interval_s
        self._observe = observe
        self._apply = apply
        self._on_answer = on_answer
        self._answered: bool | None = None

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await self.beat()
            await self._clock.sleep(self._interval_s)

    async def beat(self) -> None:
        """One heartbeat; a failure is reported, not raised."""
        try:
            desired = await self._peer.heartbeat(await self._observe())
            self._apply(desired)
        except BlockferryError as error:
            self._board.report(CHECK, HealthState.DEGRADED, str(error))
            if self._answered is not False:
                _logger.warning("no heartbeat: known generations go on", extra={"fields": {"error": str(error)}})
            self._answered = False
        else:
            self._board.report(CHECK, HealthState.OK)
            if self._answered is False:
                _logger.info("the configuration server answers again")
            self._answered = True
        self._on_answer(self._answered)
