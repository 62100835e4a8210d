"""What the demo sees while it runs: samples of the item's status, drawn as progress bars and live lines, kept for the summary.

Called by ``road``. Reads over REST only.
"""

from __future__ import annotations

import statistics
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deploy.demo.operator import DemoError, Json, Operator

_POLL_S: Final = 0.5


@dataclass(slots=True)
class Lags:
    """Lags in seconds, as seen again and again over a part of the road."""

    replication_s: list[float] = field(default_factory=list)
    rpo_s: list[float] = field(default_factory=list)

    def take(self, disk: Json) -> None:
        if disk["replication_lag_s"] is not None:
            self.replication_s.append(disk["replication_lag_s"])
        if disk["rpo_lag_s"] is not None:
            self.rpo_s.append(disk["rpo_lag_s"])


@dataclass(slots=True)
class Samples:
    """Everything that was observed; bytes as the agent counts them."""

    undisturbed: Lags = field(default_factory=Lags)
    disturbed: Lags = field(default_factory=Lags)
    """While daemons were killed and while the test migration went on."""
    freezes_s: list[float] = field(default_factory=list)
    read_bytes: int = 0
    sent_bytes: int = 0
    changed_bytes: int = 0
    seeding_s: float = 0.0
    _before: tuple[int, int, int] = (0, 0, 0)
    _base: tuple[int, int, int] = (0, 0, 0)

    def take(self, item: Json, lags: Lags | None) -> None:
        """Note one status, its lags in ``lags``; counters that fell back to zero (a restarted agent) go on from where they were."""
        for disk in item["disks"]:
            observation = disk["observation"]
            if observation is None:
                continue
            now = (observation["read_bytes"], observation["sent_bytes"], observation["changed_bytes"])
            if any(new < old for new, old in zip(now, self._before, strict=True)):
                self._base = (self.read_bytes, self.sent_bytes, self.changed_bytes)
            self._before = now
            self.read_bytes, self.sent_bytes, self.changed_bytes = (
                base + value for base, value in zip(self._base, now, strict=True)
            )
            if lags is not None:
                lags.take(disk)
            freeze = observation["last_freeze_s"]
            if freeze is not None and (not self.freezes_s or self.freezes_s[-1] != freeze):
                self.freezes_s.append(freeze)


def median_and_worst(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} s median, {max(values):.1f} s worst" if values else "none seen"


class Watch:
    """Looks at the item again and again."""

    def __init__(self, operator: Operator, console: Console) -> None:
        self._operator = operator
        self._console = console
        self.samples = Samples()

    def look(self, lags: Lags | None = None) -> Json | None:
        """One look; lags are noted in ``lags``; None while the configuration server does not answer."""
        try:
            item = self._operator.item()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None
        if item is not None:
            self.samples.take(item, lags)
        return item

    def initial_replication(self, deadline_s: float) -> Json:
        """Draw the progress bar until the item replicates."""
        columns = (
            TextColumn("  initial replication"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        started_s = time.monotonic()
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task("")
            while time.monotonic() - started_s < deadline_s:
                item = self.look()
                if item is not None:
                    progress.update(bar, total=item["total_bytes"] or None, completed=item["done_bytes"])
                    if item["state"].endswith("failed"):
                        raise DemoError(f"initial replication failed: {item['reason']}")
                    if item["state"] == "replicating":
                        self.samples.seeding_s = time.monotonic() - started_s
                        return item
                time.sleep(_POLL_S)
        raise DemoError(f"initial replication did not end within {deadline_s:.0f} s")

    def replicate_for(self, seconds: float, note: str) -> None:
        """Show lags live for a while."""
        until_s = time.monotonic() + seconds
        with Live(console=self._console, refresh_per_second=4) as live:
            while time.monotonic() < until_s:
                item = self.look(self.samples.undisturbed)
                live.update(f"  {note}: {describe(item)}")
                time.sleep(_POLL_S)
        if not self._console.is_terminal:
            self._console.print()  # there, nothing ends the live line

    def until(self, what: str, condition: Callable[[Json], bool], deadline_s: float, lags: Lags) -> Json:
        """Look until ``condition`` holds for the item; lags are noted in ``lags``."""
        until_s = time.monotonic() + deadline_s
        while time.monotonic() < until_s:
            item = self.look(lags)
            if item is not None and condition(item):
                return item
            time.sleep(_POLL_S)
        raise DemoError(f"{what} did not happen within {deadline_s:.0f} s; last seen: {describe(self.look())}")


def describe(item: Json | None) -> str:
    """One line on the state of an item."""
    if item is None:
        return "the configuration server does not answer"

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    disk = item["disks"][0]["observation"] or {}
    return (
        f"{item['state']}, {item['health']} ({item['going']}), replication lag {seconds(item['replication_lag_s'])}, "
        f"RPO lag {seconds(item['rpo_lag_s'])}, epoch {disk.get('applied_epoch', '-')}, "
        f"backlog {disk.get('backlog_bytes', 0) / 2**20:.1f} MiB"
    )
