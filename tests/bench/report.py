"""What is to be reached, as ratios within one run, and the table that says so.

Called by ``__main__``. The targets come from the project's own promises (docs/performance.md); a target without its figures is shown as
not measured, never as met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.bench.images import MIB
from tests.bench.measure import Figures

DAEMONS: Final = ("azure-sink", "config-server", "process-server", "mobility-agent")


@dataclass(frozen=True, slots=True)
class Target:
    """``value`` of the medians must be at most (``is_floor``: at least) ``limit``."""

    text: str
    limit: float
    value: Callable[[Figures], float]
    is_floor: bool = False

    def verdict(self, figures: Figures) -> tuple[str, str]:
        """What was measured, and ``met``, ``MISSED`` or ``not measured``."""
        try:
            measured = self.value(figures)
        except KeyError:
            return "-", "not measured"
        if math.isnan(measured):
            return "-", "not measured"
        met = measured >= self.limit if self.is_floor else measured <= self.limit
        return f"{measured:.3g}", "met" if met else "MISSED"


def _peak(name: str) -> Callable[[Figures], float]:
    return lambda f: f[f"realistic peak_bytes {name}"] / MIB


TARGETS: Final = (
    Target("share of the cores busy, realistic image", 0.85, lambda f: f["realistic ir_busy"], is_floor=True),
    Target(
        "CPU seconds ÷ those of zstd | openssl", 2.0, lambda f: f["realistic ir_cpu_s"] / f["realistic floor_cpu_s"]
    ),
    Target(
        "1.2 times the wall time ÷ restic's",
        1.0,
        lambda f: f["realistic ir_wall_s"] * 1.2 / f["realistic restic_wall_s"],
    ),
    Target("1 % delta ÷ restic's", 0.2, lambda f: f["realistic delta_wall_s"] / f["realistic restic_delta_wall_s"]),
    Target("64 MiB delta, 64 GiB disk ÷ 1 GiB disk", 1.2, lambda f: f["delta_64_gib_wall_s"] / f["delta_1_gib_wall_s"]),
    Target("fio IOPS with ÷ without the tracker", 0.95, lambda f: f["iops_ratio"], is_floor=True),
    Target(
        "image with 80 % holes ÷ realistic one, wall time over data",
        2.0,
        lambda f: (
            (f["holes ir_wall_s"] / f["holes ir_sent_bytes"])
            / (f["realistic ir_wall_s"] / f["realistic ir_sent_bytes"])
        ),
    ),
    Target("freeze under two fsyncing writers, median, ms", 100.0, lambda f: f["freeze_median_ms"]),
    Target("replication lag at 1 MiB/s of 4 KiB writes, median, s", 3.0, lambda f: f["lag_1_mib_per_s_median_s"]),
    *(
        Target(f"peak RssAnon of {name}, MiB", 192.0 if name == "process-server" else 160.0, _peak(name))
        for name in DAEMONS
    ),
)


def show(figures: Figures, console: Console) -> bool:
    """Print every figure and every target; True if no target was missed."""
    everything = Table("figure", "median", box=None, header_style="bold")
    for name, value in figures.items():
        everything.add_row(name, f"{value / MIB:.1f} MiB" if "bytes" in name else f"{value:.3f}")
    console.print(everything)
    targets = Table("target", "limit", "measured", "", box=None, header_style="bold")
    verdicts = []
    for target in TARGETS:
        measured, verdict = target.verdict(figures)
        verdicts.append(verdict)
        targets.add_row(target.text, f"{'≥' if target.is_floor else '≤'} {target.limit:g}", measured, verdict)
    console.print(targets)
    return "MISSED" not in verdicts
