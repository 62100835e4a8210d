"""``python -m tests.bench``: how fast the product is, next to others, as medians of interleaved rounds on this machine.

Called by ``make bench``. Needs root, BPF, and the packages of deploy/setup/bench-packages.txt. JSON goes to ``--out``, a table to the
terminal. Exit code 1 if a target was missed. Nothing here is part of ``make test``: a shared machine proves no speed.
"""

from __future__ import annotations

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

from tests.bench import chain, lags, report, rivals, tracking
from tests.bench.images import DISK_BYTES, MIB, NAMES, make_images
from tests.bench.measure import Figures, medians
from tests.harness.requirements import add_system_directories_to_path

GIB: Final = 2**30
Step = Callable[[int], Figures]
SCENARIOS: Final = ("images", "deltas", "iops", "harvest", "lags", "freezes")


def _prefixed(prefix: str, figures: Figures) -> Figures:
    return {f"{prefix} {name}": value for name, value in figures.items()}


def _image_steps(directory: Path, images: dict[str, Path]) -> list[Step]:
    """For each image: the chain, then the others, so that all see the same weather."""
    steps: list[Step] = []
    delta_bytes = int(DISK_BYTES * chain.DELTA_OF_IMAGE)

    def ours(name: str, image: Path, seed: int) -> Figures:
        return _in_own_directory(
            directory / "round", lambda work: chain.replicate(work, image, delta_bytes=delta_bytes, seed=seed), name
        )

    def theirs(name: str, image: Path, seed: int) -> Figures:
        backed_up = rivals.restic(directory / "restic", image, delta_bytes=delta_bytes, seed=seed)
        return _prefixed(name, rivals.compress_and_encrypt(image) | backed_up)

    for name, image in images.items():
        steps += [functools.partial(ours, name, image), functools.partial(theirs, name, image)]
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
    }


def _steps(directory: Path, scenarios: tuple[str, ...], names: tuple[str, ...]) -> list[Step]:
    steps: list[Step] = []
    if "images" in scenarios:
        steps += _image_steps(directory, make_images(directory / "images", names))
    if "deltas" in scenarios:
        steps += [functools.partial(_delta_step, directory, size) for size in (1, 64)]
    if "iops" in scenarios:
        steps.append(functools.partial(tracking.random_write_iops, directory / "iops"))
    return steps


def _once(directory: Path, scenarios: tuple[str, ...]) -> list[Callable[[], Figures]]:
    """What takes its own medians, over many samples in one go."""
    steps: list[Callable[[], Figures]] = []
    if "harvest" in scenarios:
        steps += [functools.partial(tracking.harvest, size) for size in (1, 64)]
    if "lags" in scenarios:
        steps += [functools.partial(lags.random_writes, directory / f"lag-{rate}", rate) for rate in (0.25, 1.0, 16.0)]
    if "freezes" in scenarios:
        steps.append(functools.partial(lags.freezes, directory / "freezes"))
    return steps


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
        steps = _steps(work, scenarios or SCENARIOS, names or NAMES)
        found: list[list[Figures]] = [[] for _ in steps]
        for number in range(rounds):
            for index, step in enumerate(steps):
                started_s = time.monotonic()
                found[index].append(step(number))
                console.print(
                    f"round {number + 1} of {rounds}, step {index + 1} of {len(steps)}: {time.monotonic() - started_s:.0f} s"
                )
        figures: Figures = {}
        for figures_of_rounds in found:
            figures |= medians(figures_of_rounds)
        for measure in _once(work, scenarios or SCENARIOS):
            figures |= measure()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    document = {"machine": machine, "rounds": rounds, "medians": figures, "every_round": found}
    out.write_text(json.dumps(document, indent=1) + "\n")
    met = report.show(figures, console)
    console.print(f"written to {out}; image of {DISK_BYTES // MIB} MiB")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
