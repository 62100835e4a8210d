"""The upload limit, from outside: a real process server under load, its bytes to the store counted on the line, ten-second windows judged.

Called by ``__main__``. Batches that do not compress are shipped faster than the limit lets them out. Limits are changed while it runs: by
the configuration server's word, and by the hour. Ratios: bytes in the worst ten seconds ÷ what the limit allows in them, the mean over
the whole, and what the process server says of itself ÷ what the line carried.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Final

from replication.control_plane import ProcessServerDesired
from replication.identifiers import MachineId
from replication.tls_identity import Role
from replication.upload_limits import UploadLimits, WorkHours, rate_text
from replication.work_hours import WEEKDAYS
from tests.bench.measure import Figures
from tests.harness.blob_process import BlobProcess
from tests.harness.epochs import new_uuid
from tests.harness.limit_windows import WINDOW_S, Limits, Passed, allowed_bytes, worst_window
from tests.harness.metered_relay import Meter, metered_process
from tests.harness.process_server_process import (
    KillableProcessServer,
    config_server_listener,
    killable_process_server,
)
from tests.harness.process_site import LabAgent, LabConfigServer, ShippedDisk
from tests.harness.tls import LabAuthority

LIMITS: Final = (512_000, 8_000_000, 100_000_000)
_EACH_S: Final = 25.0
_TOLD_WITHIN_S: Final = 1.0
"""Heartbeats are 200 ms apart here."""
_BEGUN_WITHIN_S: Final = 5.0
_WORK, _ELSE = 8_000_000, 40_000_000
_BATCH_BYTES: Final = 4 * 2**20
_AT_ONCE: Final = 4


@dataclasses.dataclass(slots=True)
class _Rig:
    """What is running."""

    config: LabConfigServer
    meter: Meter
    process_server: KillableProcessServer

    def tell(self, limits: UploadLimits) -> None:
        self.config.desired = ProcessServerDesired(upload=limits)

    def limit_in_force(self) -> int | None:
        upload = self.config.observations[-1].upload
        return None if upload is None else upload.limit_bits_per_s

    def says_bits_per_s(self) -> float:
        upload = self.config.observations[-1].upload
        return 0.0 if upload is None else upload.sent_bits_per_s


@contextlib.asynccontextmanager
async def _running(directory: Path) -> AsyncIterator[_Rig]:
    """Store, relay, configuration server and process server, and an agent that ships without end."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything runs
    authority, config = LabAuthority(), LabConfigServer()
    config.desired = ProcessServerDesired(upload=UploadLimits(limit_bits_per_s=LIMITS[0]))
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(BlobProcess(directory))
        await store.start()
        meter = stack.enter_context(metered_process(store.endpoint(), directory / "line"))
        endpoint = meter.endpoint(store.endpoint())
        listener = await stack.enter_async_context(config_server_listener(config, authority, directory / "config"))
        server = await stack.enter_async_context(
            killable_process_server(directory / "process-server", endpoint, listener, authority)
        )
        await server.start()
        machine = MachineId(new_uuid(Random(3)))
        disk = ShippedDisk(Random(4), machine)
        config.grants[disk.key] = disk.grant
        tls = authority.issue(Role.AGENT, machine, directory / "agent").client_context(Role.PROCESS_SERVER)
        agent = LabAgent(server.url, tls)
        stack.push_async_callback(agent.close)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        for lane in range(_AT_ONCE):
            stack.callback(tasks.create_task(_ship(disk, agent, lane)).cancel)
        yield _Rig(config, meter, server)


async def _ship(disk: ShippedDisk, agent: LabAgent, lane: int) -> None:
    number = lane
    while True:
        frame = disk.frame(1, number, size=_BATCH_BYTES)
        await agent.put_batch_persistently(frame)
        del disk.frames[frame.key]
        number += _AT_ONCE


def keeps_to_limits(directory: Path) -> Figures:
    """Every figure of this part."""
    return asyncio.run(_measure(directory))


async def _measure(directory: Path) -> Figures:
    figures: Figures = {}
    async with _running(directory) as rig:
        await asyncio.sleep(_BEGUN_WITHIN_S)
        for limit in LIMITS:
            figures |= await _steady(rig, limit)
        figures |= await _lowered(rig)
        figures |= await _by_the_hour(rig)
    return figures


def _judged(rig: _Rig, name: str, limits: Limits, end_s: float) -> Figures:
    """Of what passed from the first limit's beginning on."""
    rig.meter.load()
    begin_s = limits[0][0]
    passed: Passed = [each for each in rig.meter.passed if begin_s <= each[0] < end_s]
    whole, _ = allowed_bytes(limits, begin_s, end_s)
    return {
        f"throttle_{name}_worst_10_s_ratio": worst_window(passed, limits, end_s),
        f"throttle_{name}_mean_ratio": sum(amount for _, amount in passed) / whole,
    }


async def _steady(rig: _Rig, limit: int) -> Figures:
    rig.tell(UploadLimits(limit_bits_per_s=limit))
    await asyncio.sleep(_TOLD_WITHIN_S)
    begin_s = time.monotonic()
    await asyncio.sleep(_EACH_S)
    end_s = time.monotonic()
    name = rate_text(limit).replace(" ", "_").lower()
    figures = _judged(rig, name, [(begin_s, limit)], end_s)
    carried = rig.meter.between(end_s - WINDOW_S, end_s) * 8 / WINDOW_S
    return figures | {f"throttle_{name}_said_ratio": rig.says_bits_per_s() / carried}


async def _lowered(rig: _Rig) -> Figures:
    """From the highest limit to the lowest: from a second after the process server says so, no window has more than the low one allows."""
    low = LIMITS[0]
    rig.tell(UploadLimits(limit_bits_per_s=low))
    while rig.limit_in_force() != low:
        await asyncio.sleep(0.05)
    await asyncio.sleep(_TOLD_WITHIN_S)
    begin_s = time.monotonic()
    await asyncio.sleep(WINDOW_S * 1.5)
    return _judged(rig, "lowered", [(begin_s, low)], time.monotonic())


async def _by_the_hour(rig: _Rig) -> Figures:
    """Work hours begin at the next minute that is far enough away."""
    now = dt.datetime.now(dt.UTC)
    change = (now + dt.timedelta(seconds=15 + 60)).replace(second=0, microsecond=0)
    change_s = time.monotonic() + (change - now).total_seconds()
    hours = WorkHours(
        days=list(WEEKDAYS),
        start=f"{change:%H:%M}",
        end=f"{change + dt.timedelta(hours=1):%H:%M}",
        time_zone="UTC",
        limit_bits_per_s=_WORK,
    )
    rig.tell(UploadLimits(limit_bits_per_s=_ELSE, work_hours=hours))
    await asyncio.sleep(max(_TOLD_WITHIN_S, change_s - time.monotonic() - WINDOW_S))
    begin_s, end_s = time.monotonic(), change_s + 1.5 * WINDOW_S
    await asyncio.sleep(end_s - begin_s)
    return _judged(rig, "hours", [(begin_s, _ELSE), (change_s, _WORK)], end_s)
