"""Measures churn by the tracker without replicating: harvests at an interval, counts, forgets. Nothing is read from the disk or sent.

Built by ``daemon``; ``follow`` with each desired state, ``run`` in a task, ``observe`` for the heartbeat. Its trackers are not pinned: the
kernel drops them with the process, so an agent that dies leaves nothing behind, and one that is started anew begins the order anew. They
are its own, beside those of replication; a disk that comes under protection is let go of. A disk's I/O statistics that had to be switched
on for it stay on, as a replication that began meanwhile may rely on them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from mobility_agent.change_tracker.interface import ChangeTracker, DoubtKind
from mobility_agent.core.churn_windows import ChurnWindows
from replication.churn_profile import MULTIPLES, ProfiledDisk, ProfiledWindow, ProfileObservation, ProfileOrder
from replication.clock import Clock
from replication.dirty_bitmap import DirtyBitmap
from replication.errors import BlockferryError
from replication.identifiers import DiskId

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Disk:
    disk: DiskId
    state: Literal["watching", "done", "replicated", "failed"] = "watching"
    tracker: ChangeTracker | None = None
    changed: DirtyBitmap | None = None
    windows: ChurnWindows | None = None
    began_s: float = 0.0
    ended_s: float | None = None
    doubted: int = 0
    problem: str | None = None


@dataclass(slots=True)
class _Profile:
    order: ProfileOrder
    began_s: float
    disks: list[_Disk] = field(default_factory=list)
    done: bool = False


class ChurnProfiler:
    """``attach`` begins tracking a disk without pins; it blocks, as everything does that touches a tracker: one thread, in turn."""

    def __init__(self, attach: Callable[[DiskId], ChangeTracker], clock: Clock) -> None:
        self._attach = attach
        self._clock = clock
        self._order: ProfileOrder | None = None
        self._protected: frozenset[str] = frozenset()
        self._news = asyncio.Event()
        self._profile: _Profile | None = None
        self._thread = ThreadPoolExecutor(1, "churn-profile")

    def follow(self, order: ProfileOrder | None, protected: Collection[str]) -> None:
        """What is asked for now, and which disks replication has."""
        self._order, self._protected = order, frozenset(protected)
        self._news.set()

    def observe(self) -> ProfileObservation | None:
        """None: nothing is asked for, or not begun yet."""
        profile = self._profile
        if profile is None or self._order is None or profile.order.request != self._order.request:
            return None
        now_s = self._clock.monotonic_s()
        interval_s = profile.order.interval_s
        return ProfileObservation(
            request=profile.order.request,
            elapsed_s=min(now_s - profile.began_s, profile.order.duration_s),
            done=profile.done,
            disks=[
                ProfiledDisk(
                    disk=disk.disk,
                    state=disk.state,
                    watched_s=max(0.0, (now_s if disk.ended_s is None else disk.ended_s) - disk.began_s),
                    windows=[
                        ProfiledWindow(
                            interval_s=window.multiple * interval_s,
                            windows=window.windows,
                            mean_bytes=window.mean_bytes,
                            most_bytes=window.most_bytes,
                        )
                        for window in (() if disk.windows is None else disk.windows.seen())
                    ],
                    doubted_windows=disk.doubted,
                    problem=disk.problem,
                )
                for disk in profile.disks
            ],
        )

    async def run(self) -> None:
        """Carry orders out until cancelled. On return no tracker is attached, or it is being let go of."""
        try:
            while True:
                self._news.clear()
                order = self._order
                if order is None or (self._profile is not None and self._profile.order.request == order.request):
                    await self._news.wait()
                else:
                    await self._carry_out(order)
        finally:
            self._thread.shutdown(wait=False)

    async def _carry_out(self, order: ProfileOrder) -> None:
        now_s = self._clock.monotonic_s()
        profile = self._profile = _Profile(order, now_s, [_Disk(DiskId(disk), began_s=now_s) for disk in order.disks])
        _logger.info("churn is measured", extra={"fields": {"disks": len(order.disks), "seconds": order.duration_s}})
        try:
            for disk in profile.disks:
                await self._in_thread(disk, self._open)
            next_s = profile.began_s
            while not profile.done:
                next_s += order.interval_s
                if not await self._still_asked_for(order, next_s):
                    return
                for disk in profile.disks:
                    if disk.state == "watching":
                        await self._in_thread(disk, self._collect)
                over = self._clock.monotonic_s() >= profile.began_s + order.duration_s
                profile.done = over or all(disk.state != "watching" for disk in profile.disks)
        finally:
            # Behind a harvest that may be under way still, should this task have been cancelled.
            await asyncio.gather(*[self._on_thread(self._close, disk, "done") for disk in profile.disks])

    async def _still_asked_for(self, order: ProfileOrder, until_s: float) -> bool:
        """Wait for the next interval's end; False as soon as the order is withdrawn."""
        while True:
            if self._order is None or self._order.request != order.request:
                return False
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0:
                return True
            self._news.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _in_thread(self, disk: _Disk, act: Callable[[_Disk], None]) -> None:
        if disk.disk in self._protected:
            await self._on_thread(self._close, disk, "replicated")
            return
        try:
            await self._on_thread(act, disk)
        except (BlockferryError, OSError) as error:
            disk.problem = str(error)
            _logger.warning(
                "churn of a disk cannot be measured", extra={"fields": {"disk": disk.disk, "error": str(error)}}
            )
            await self._on_thread(self._close, disk, "failed")

    def _on_thread(self, act: Callable[..., None], *arguments: object) -> asyncio.Future[None]:
        return asyncio.get_running_loop().run_in_executor(self._thread, functools.partial(act, *arguments))

    # -- on the thread ------------------------------------------------------------------------------------------

    def _open(self, disk: _Disk) -> None:
        tracker = disk.tracker = self._attach(disk.disk)
        disk.changed = DirtyBitmap(tracker.geometry.granules)
        disk.windows = ChurnWindows(tracker.geometry, MULTIPLES)
        tracker.begin_harvest(disk.changed)  # what was before is unknown, which is no churn
        tracker.commit_harvest()
        disk.began_s = self._clock.monotonic_s()

    def _collect(self, disk: _Disk) -> None:
        if disk.tracker is None or disk.windows is None:
            raise AssertionError("a disk that is watched was opened")
        harvest = disk.tracker.begin_harvest(disk.changed)
        disk.doubted += harvest.doubt.kind is DoubtKind.RESYNC
        disk.windows.add(harvest.bitmap)
        disk.tracker.commit_harvest()

    def _close(self, disk: _Disk, state: Literal["done", "replicated", "failed"]) -> None:
        """Not ``discard``: it would switch off statistics that a replication may rely on by now."""
        if disk.state == "watching":
            disk.state, disk.ended_s = state, self._clock.monotonic_s()
        tracker, disk.tracker = disk.tracker, None
        if tracker is not None:
            tracker.close()
