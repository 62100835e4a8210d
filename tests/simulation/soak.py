"""Runs seeds: one to replay it, a number of them, or as many as fit into a time. ``python -m tests.simulation.soak --help``.

Called by ``make soak`` and, in mutated copies of the tree, by ``mutants``. Exit status 1: a seed failed; its trace is printed.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.simulation import TROUBLED, SimulationFailed, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and tell all that happened")
    parser.add_argument("--first", type=int, default=0, help="begin with this seed")
    parser.add_argument("--count", type=int, help="so many seeds")
    parser.add_argument("--seeds", type=int, nargs="+", help="these, one after the other")
    parser.add_argument("--seconds", type=float, help="go on for so long")
    parser.add_argument(
        "--theme",
        default="",
        choices=("", "agent", "spools", "sink", "history", TROUBLED),
        help="these faults only; or any, with troubles for certain",
    )
    parser.add_argument("--tracker", default="", choices=("", "ebpf", "scan"), help="this tracker only")
    options = parser.parse_args()
    if options.seed is not None:
        return _replay(options.seed, options.theme, options.tracker)
    if options.seeds is not None:
        return _each(options.seeds, options.theme, options.tracker)
    began_s = time.perf_counter()
    seed, points, writes, virtual_s = options.first, 0, 0, 0.0
    while _goes_on(seed - options.first, time.perf_counter() - began_s, options.count, options.seconds):
        try:
            outcome = simulate(seed, theme=options.theme, tracker=options.tracker)
        except SimulationFailed as failure:
            print(failure)
            return 1
        points, writes, virtual_s = points + outcome.points, writes + outcome.writes, virtual_s + outcome.virtual_s
        seed += 1
    elapsed_s = time.perf_counter() - began_s
    print(
        f"seeds {options.first} to {seed - 1}: {points} recovery points judged, {writes} writes, {virtual_s / 3600:.1f} h simulated, "
        f"{(seed - options.first) / elapsed_s:.1f} seeds/s"
    )
    return 0


def _goes_on(done: int, elapsed_s: float, count: int | None, seconds: float | None) -> bool:
    if seconds is not None and elapsed_s >= seconds:
        return False
    return seconds is not None if count is None else done < count


def _each(seeds: list[int], theme: str, tracker: str) -> int:
    for seed in seeds:
        try:
            simulate(seed, theme=theme, tracker=tracker)
        except SimulationFailed as failure:
            print(failure)
            return 1
    print(f"seeds {' '.join(str(seed) for seed in seeds)}: no promise is broken")
    return 0


def _replay(seed: int, theme: str, tracker: str) -> int:
    try:
        print(simulate(seed, tells_logs=True, theme=theme, tracker=tracker))
    except SimulationFailed as failure:
        print("\n".join(failure.events))
        print(failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
