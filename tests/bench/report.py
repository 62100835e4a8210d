"""What is to be reached, as ratios within one run, and the table that says so.

Called by ``__main__``. The targets come from the project's own promises (docs/performance.md); a target without its figures is shown as
not measured, never as met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.bench.images import MIB
from tests.bench.measure import PEAK, Figures, median

DAEMONS: Final = ("azure-sink", "config-server", "process-server", "mobility-agent")


@dataclass(frozen=True, slots=True)
class Target:
    """``value`` must be at most (``is_floor``: at least) ``limit``: the median of the rounds, or the highest (``is_peak``)."""

    text: str
    limit: float
    value: Callable[[Figures], float]
    is_floor: bool = False
    is_peak: bool = False

    def of(self, figures: Figures) -> float:
        """NaN if one of the figures is lacking."""
        try:
            return self.value(figures)
        except KeyError:
            return math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """``measured`` is None where a figure is lacking, or what was waited for never came."""

    text: str
    limit: str
    measured: float | None
    verdict: str


MET: Final = "met"
MISSED: Final = "MISSED"
NOT_MEASURED: Final = "not measured"


def _peak(name: str) -> Callable[[Figures], float]:
    """The highest of all images and disks. What is mapped shared (RssShmem: arenas of buffers) is a figure beside it, without a limit."""

    def highest(figures: Figures) -> float:
        found = [value for key, value in figures.items() if key.endswith(f"{PEAK}bytes {name}")]
        return max(found) / MIB if found else math.nan

    return highest


def _figure(name: str) -> Callable[[Figures], float]:
    return lambda f: f[name]


_THROTTLED: Final = {
    "512_kbps": "512 Kbps",
    "8_mbps": "8 Mbps",
    "100_mbps": "100 Mbps",
    "lowered": "100 Mbps lowered to 512 Kbps",
    "hours": "40 Mbps, 8 Mbps from the next minute on",
}


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
    Target(
        "seconds until churn beyond the line is called NOT_CONVERGING",
        420.0,
        lambda f: f["overload_not_converging_told_after_s"],
    ),
    Target(
        "its backlog grows in what is shown, MiB",
        64.0,
        lambda f: f["overload_backlog_growth_bytes"] / MIB,
        is_floor=True,
    ),
    Target("its backlog is shown with an ETA, share", 0.9, lambda f: f["overload_eta_shown_share"], is_floor=True),
    Target("replication lag at 1 MiB/s of 4 KiB writes, median, s", 3.0, lambda f: f["lag_1_mib_per_s_median_s"]),
    *(
        Target(f"worst 10 s ÷ limit, {name}", 1.03, _figure(f"throttle_{key}_worst_10_s_ratio"))
        for key, name in _THROTTLED.items()
    ),
    *(
        Target(f"mean ÷ limit, {name}", 0.9, _figure(f"throttle_{key}_mean_ratio"), is_floor=True)
        for key, name in _THROTTLED.items()
        if key != "lowered"
    ),
    *(
        Target(
            f"peak RssAnon of {name}, MiB",
            192.0 if name == "process-server" else 160.0,
            _peak(name),
            is_peak=True,
        )
        for name in DAEMONS
    ),
)


def finite(figures: Figures) -> dict[str, float | None]:
    """For JSON, which has no word for what never happened or was not measured."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def judge(figures: Figures, every_round: Sequence[Figures]) -> list[Verdict]:
    """Each target: the median over the rounds of its value *within* a round, so that a ratio's halves saw the same weather.

    Of peaks the highest.
    """
    return [_judged(target, figures, every_round) for target in TARGETS]


def _judged(target: Target, figures: Figures, every_round: Sequence[Figures]) -> Verdict:
    limit = f"{'≥' if target.is_floor else '≤'} {target.limit:g}"
    values = [value for value in map(target.of, every_round) if not math.isnan(value)]
    measured = (max if target.is_peak else median)(values) if values else target.of(figures)
    if math.isnan(measured):
        return Verdict(target.text, limit, None, NOT_MEASURED)
    met = measured >= target.limit if target.is_floor else measured <= target.limit
    return Verdict(target.text, limit, measured if math.isfinite(measured) else None, MET if met else MISSED)


def show(figures: Figures, verdicts: Sequence[Verdict], console: Console) -> None:
    """Print every figure and every target."""
    everything = Table("figure", "median, of peaks the highest", box=None, header_style="bold")
    for name, value in figures.items():
        everything.add_row(name, f"{value / MIB:.1f} MiB" if "bytes" in name else f"{value:.3f}")
    console.print(everything)
    targets = Table("target", "limit", "measured", "", box=None, header_style="bold")
    for each in verdicts:
        measured = "-" if each.measured is None else f"{each.measured:.3g}"
        targets.add_row(each.text, each.limit, measured, each.verdict)
    console.print(targets)
