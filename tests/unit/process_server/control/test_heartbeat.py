"""Heartbeats: what is observed goes out, what is desired is obeyed, a failure changes nothing but the health."""

from __future__ import annotations

import asyncio

from process_server.control.heartbeat import CHECK, Heartbeat
from replication.control_plane import ProcessServerDesired, ProcessServerObservation
from replication.errors import BlockferryError, InvalidInput, PeerProtocolError, PeerUnavailable
from replication.service.health import HealthBoard, HealthState
from replication.upload_limits import UploadLimits
from tests.harness.process_time import in_virtual_time, virtual_clock

OBSERVATION = ProcessServerObservation(
    software_version="1", service_url="https://ps:9443", cpu_fraction=0.5, memory_fraction=0.5, spool_used_bytes=1,
    spool_limit_bytes=2, spool_free_fraction=0.5, upload_backlog_bytes=0, upload_backlog_age_s=0,
    upload_rate_bytes_per_s=0, machines=[], upload_problem=None,
)  # fmt: skip


class Rig:
    def __init__(self) -> None:
        self.board = HealthBoard()
        self.failure: BlockferryError | None = None
        self.refused: BlockferryError | None = None
        self.received: list[ProcessServerObservation] = []
        self.applied: list[ProcessServerDesired] = []
        self.answered: list[bool] = []
        self.heartbeat_object = Heartbeat(
            self, virtual_clock(), self.board, 5.0, observe=self.observe, apply=self.apply, on_answer=self.answered.append
        )  # fmt: skip

    async def observe(self) -> ProcessServerObservation:
        return OBSERVATION

    async def heartbeat(self, observation: ProcessServerObservation) -> ProcessServerDesired:
        if self.failure is not None:
            raise self.failure
        self.received.append(observation)
        return ProcessServerDesired(upload=UploadLimits(threads_per_machine=7))

    def apply(self, desired: ProcessServerDesired) -> None:
        if self.refused is not None:
            raise self.refused
        self.applied.append(desired)

    def health(self) -> HealthState:
        return next(check.state for check in self.board.checks if check.name == CHECK)


@in_virtual_time
async def test_each_heartbeat_reports_and_obeys() -> None:
    rig = Rig()
    task = asyncio.create_task(rig.heartbeat_object.run())
    await asyncio.sleep(21)
    task.cancel()
    assert rig.received == [OBSERVATION] * 5
    assert [desired.upload.threads_per_machine for desired in rig.applied] == [7] * 5
    assert rig.health() is HealthState.OK
    assert all(rig.answered)


@in_virtual_time
async def test_days_without_an_answer_degrade_the_health_and_the_first_answer_mends_it() -> None:
    rig = Rig()
    task = asyncio.create_task(rig.heartbeat_object.run())
    for failure in (PeerUnavailable("cannot reach it"), PeerProtocolError("cannot understand it")):
        rig.failure = failure
        await asyncio.sleep(86400)
        assert rig.health() is HealthState.DEGRADED
        assert not rig.answered[-1]
    applied = len(rig.applied)
    rig.failure = None
    await asyncio.sleep(5)
    assert rig.health() is HealthState.OK
    assert len(rig.applied) == applied + 1
    task.cancel()


@in_virtual_time
async def test_what_cannot_be_obeyed_is_said_and_the_next_one_is_tried() -> None:
    rig = Rig()
    rig.refused = InvalidInput("cannot upload with 99 threads per machine")
    await rig.heartbeat_object.beat()
    assert rig.health() is HealthState.DEGRADED
    rig.refused = None
    await rig.heartbeat_object.beat()
    assert rig.health() is HealthState.OK
