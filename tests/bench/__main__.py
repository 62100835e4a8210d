"""``python -m tests.bench``: how fast the product is, next to others, as medians of interleaved rounds on this machine.

Called by ``make bench``. Needs root, BPF, and the packages of deploy/setup/bench-packages.txt. JSON goes to ``--out``, a table to the
terminal. Exit code 1 if a target was missed. Nothing here is part of ``make test``: a shared machine proves no speed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from tests.bench import chain, lags, report, rivals, throttle, tracking
from tests.bench.images import DISK_BYTES, MIB, NAMES, make_images
from tests.bench.measure import PEAK, Figures, medians
from tests.harness.requirements import add_system_directories_to_path

GIB: Final = 2**30
Step = Callable[[int], Figures]
Steps = list[tuple[str, Step]]
SCENARIOS: Final = ("images", "deltas", "iops", "harvest", "lags", "freezes", "overload", "throttle")


def _prefixed(prefix: str, figures: Figures) -> Figures:
    return {f"{prefix} {name}": value for name, value in figures.items()}


def _image_steps(directory: Path, images: dict[str, Path]) -> Steps:
    """For each image: the chain, then the others, so that all see the same weather."""
    steps: Steps = []
    delta_bytes = int(DISK_BYTES * chain.DELTA_OF_IMAGE)

    def ours(name: str, image: Path, seed: int) -> Figures:
        return _in_own_directory(
            directory / "round", lambda work: chain.replicate(work, image, delta_bytes=delta_bytes, seed=seed), name
        )

    def theirs(name: str, image: Path, seed: int) -> Figures:
        backed_up = rivals.restic(directory / "restic", image, delta_bytes=delta_bytes, seed=seed)
        return _prefixed(name, rivals.compress_and_encrypt(image) | backed_up)

    for name, image in images.items():
        steps.append((f"{name} image: the chain", functools.partial(ours, name, image)))
        steps.append((f"{name} image: zstd | openssl, restic", functools.partial(theirs, name, image)))
    return steps


def _in_own_directory(work: Path, measure: Callable[[Path], Figures], prefix: str) -> Figures:
    try:
        return _prefixed(prefix, measure(work))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _delta_step(directory: Path, size_gib: int, seed: int) -> Figures:
    """64 MiB changed on a sparse disk of this size."""
    image = directory / f"sparse-{size_gib}.img"
    with image.open("wb") as file:
        file.truncate(size_gib * GIB)
    work = directory / "round"
    try:
        found = chain.replicate(work, image, delta_bytes=chain.DELTA_BYTES, seed=seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        image.unlink()
    return {
        f"delta_{size_gib}_gib_wall_s": found["delta_wall_s"],
        f"sparse_{size_gib}_gib_ir_wall_s": found["ir_wall_s"],
    } | {f"sparse_{size_gib}_gib {name}": value for name, value in found.items() if name.startswith(PEAK)}


def _steps(directory: Path, scenarios: tuple[str, ...], names: tuple[str, ...]) -> Steps:
    steps: Steps = []
    if "images" in scenarios:
        steps += _image_steps(directory, make_images(directory / "images", names))
    if "deltas" in scenarios:
        steps += [
            (f"64 MiB delta, {size} GiB disk", functools.partial(_delta_step, directory, size)) for size in (1, 64)
        ]
    if "iops" in scenarios:
        steps.append(("IOPS", functools.partial(tracking.random_write_iops, directory / "iops")))
    return steps


def _once(directory: Path, scenarios: tuple[str, ...]) -> list[tuple[str, Callable[[], Figures]]]:
    """What takes its own medians, over many samples in one go."""
    steps: list[tuple[str, Callable[[], Figures]]] = []
    if "harvest" in scenarios:
        steps += [(f"harvest, {size} TiB", functools.partial(tracking.harvest, size)) for size in (1, 64)]
    if "lags" in scenarios:
        steps += [
            (f"lag, {rate:g} MiB/s", functools.partial(lags.random_writes, directory / f"lag-{rate:g}", rate))
            for rate in (0.25, 1.0, 16.0)
        ]
    if "freezes" in scenarios:
        steps.append(("freezes", functools.partial(lags.freezes, directory / "freezes")))
    if "overload" in scenarios:
        steps.append(("churn beyond the line", functools.partial(lags.overload, directory / "overload")))
    if "throttle" in scenarios:
        steps.append(("upload limits", functools.partial(throttle.keeps_to_limits, directory / "throttle")))
    return steps


class _Progress:
    """Says what is being measured and how long it took."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._done = 0

    def run(self, what: str, measure: Callable[[], Figures]) -> Figures:
        started_s = time.monotonic()
        self._console.print(f"{self._done + 1} of {self._steps}: {what} ...", end=" ")
        figures = measure()
        self._done += 1
        self._console.print(f"{time.monotonic() - started_s:.0f} s")
        return figures


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--only", "scenarios", type=click.Choice(SCENARIOS), multiple=True, help="May be repeated.")
@click.option("--image", "names", type=click.Choice(NAMES), multiple=True, help="May be repeated.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench.json"), show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), help="Where to work; 16 GiB.  [default: a temporary one]")
def main(rounds: int, scenarios: tuple[str, ...], names: tuple[str, ...], out: Path, directory: Path | None) -> None:
    """Measure, print, and write JSON."""
    add_system_directories_to_path()
    console = Console(highlight=False)
    if os.geteuid() != 0:
        console.print("cannot measure without root: loop devices and the tracker need it")
        sys.exit(2)
    work = Path(tempfile.mkdtemp(prefix="blockferry-bench-", dir=directory or "/var/tmp"))
    try:
        steps, once = _steps(work, scenarios or SCENARIOS, names or NAMES), _once(work, scenarios or SCENARIOS)
        progress = _Progress(console, rounds * len(steps) + len(once))
        every_round: list[Figures] = []
        for number in range(rounds if steps else 0):
            every_round.append({})
            for what, step in steps:
                label = f"round {number + 1} of {rounds}, {what}"
                every_round[-1] |= progress.run(label, functools.partial(step, number))
        figures = medians(every_round)
        for what, measure in once:
            figures |= progress.run(what, measure)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    verdicts = report.judge(figures, every_round)
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    document = {
        "machine": machine,
        "rounds": rounds,
        "medians": report.finite(figures),
        "every_round": [report.finite(each) for each in every_round],
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    out.write_text(json.dumps(document, indent=1) + "\n")
    report.show(figures, verdicts, console)
    console.print(f"written to {out}; image of {DISK_BYTES // MIB} MiB, {rounds} rounds")
    sys.exit(1 if any(verdict.verdict == report.MISSED for verdict in verdicts) else 0)


if __name__ == "__main__":
    main()
