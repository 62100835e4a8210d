"""The proof that the simulation can fail: plants each defect of ``mutant_list`` in a copy of the tree and runs seeds until one is broken.
The seed that breaks must be whole in the sound tree: that is the control.

Called by ``make mutants``. A defect that no seed catches fails the run; so does one whose place in the code is not found any more. The
checkout is never touched. ``--only TEXT`` takes those whose rule, file or description contains it.
"""

from __future__ import annotations

import argparse
import compileall
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.source_tree import REPOSITORY
from tests.simulation.mutant_list import MUTANTS, Mutant

DEFAULT_SEEDS: Final = 600
DEFAULT_JOBS: Final = 2
COPIED: Final = ("azure_sink", "config_server", "mobility_agent", "process_server", "replication", "tests")
_UNDER: Final = {"mobility_agent": "agent", "replication": "agent", "process_server": "spools", "azure_sink": "sink"}
_TIMEOUT_S: Final = 1800
_MALFORMED: Final = re.compile(
    r"(NameError|AttributeError|TypeError|SyntaxError|ImportError|IndentationError|UnboundLocalError)\b"
)
_BROKEN_SEED: Final = re.compile(r"seed (\d+): ")


@dataclass(frozen=True, slots=True)
class Verdict:
    """``seed``: the first that broke, None if none did; ``what``: how, or why not."""

    mutant: Mutant
    seed: int | None
    what: str
    elapsed_s: float

    @property
    def line(self) -> str:
        word, seeds = ("MISSED", "-") if self.seed is None else ("caught", str(self.seed + 1))
        return f"{word} {seeds:>5} seeds {self.elapsed_s:6.0f} s  {self.mutant.rule:5} {self.mutant.what}"


def planted(mutant: Mutant, tree: Path) -> str | None:
    """Plant it; returns why it could not be, or None."""
    for file, old, new in mutant.edits:
        path = tree / file
        source = path.read_text() if path.exists() else ""
        count = source.count(old)
        if count != 1:
            return f"its place was found {count} times in {file}: the code has changed, the list must follow"
        path.write_text(source.replace(old, new))
    return None


def restored(mutant: Mutant, tree: Path) -> None:
    for file, _, _ in mutant.edits:
        if (REPOSITORY / file).exists():
            shutil.copy2(REPOSITORY / file, tree / file)


def theme_of(mutant: Mutant) -> tuple[str, str]:
    """Faults and tracker under which it is looked for: where they are many, a defect shows after tens of seeds and not hundreds."""
    theme, _, tracker = (mutant.under or _UNDER.get(mutant.file.partition("/")[0], "")).partition(" ")
    return theme, tracker


def soaked(tree: Path, theme: str, tracker: str, chosen: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.simulation.soak"),
            *("--theme", theme, "--tracker", tracker, *chosen),
        ],
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )


def judge(mutant: Mutant, tree: Path, seeds: int) -> Verdict:
    """Run seeds in ``tree`` until one is broken."""
    began_s = time.perf_counter()
    seed, what = _judged(mutant, tree, seeds)
    return Verdict(mutant, seed, what, time.perf_counter() - began_s)


def _judged(mutant: Mutant, tree: Path, seeds: int) -> tuple[int | None, str]:
    try:
        problem = planted(mutant, tree)
        if problem is not None:
            return None, problem
        process = soaked(tree, *theme_of(mutant), ("--count", str(seeds)))
    except subprocess.TimeoutExpired:
        return None, f"takes longer than {_TIMEOUT_S} s"
    finally:
        restored(mutant, tree)
    last = [line for line in process.stdout.splitlines() if line.startswith("seed ")][-1:] or [process.stderr[-300:]]
    told = last[0][:160]
    broken = _BROKEN_SEED.match(told)
    if process.returncode == 0:
        return None, f"survives {seeds} seeds"
    if broken is None or _MALFORMED.search(told):
        return None, f"is no defect of the product but of its planting: {told}"
    return int(broken[1]), told


def copied_tree(directory: Path) -> Path:
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(directory, quiet=2)
    return directory


def control(verdicts: Sequence[Verdict], tree: Path) -> str | None:
    """Every seed that caught something must be whole without the defect; returns what is not."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for verdict in verdicts:
        if verdict.seed is not None:
            seeds.setdefault(theme_of(verdict.mutant), set()).add(verdict.seed)
    for (theme, tracker), chosen in sorted(seeds.items()):
        process = soaked(tree, theme, tracker, ("--seeds", *(str(seed) for seed in sorted(chosen))))
        if process.returncode:
            return f"the tree fails without any planted defect:\n{process.stdout[-2000:]}{process.stderr[-2000:]}"
    return None


def all_judged(chosen: Sequence[Mutant], directory: Path, seeds: int, jobs: int) -> list[Verdict]:
    """One tree for each of ``jobs`` at a time; tells each verdict as it comes."""
    trees: queue.Queue[Path] = queue.Queue()
    for number in range(jobs):
        trees.put(copied_tree(directory / str(number)))

    def work(mutant: Mutant) -> Verdict:
        tree = trees.get()
        try:
            return judge(mutant, tree, seeds)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(jobs) as executor:
        working = [executor.submit(work, mutant) for mutant in chosen]
        for number, done in enumerate(as_completed(working), 1):
            verdict = done.result()
            print(f"{number:3}/{len(chosen)} {verdict.line}: {verdict.what}", flush=True)
        return [each.result() for each in working]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="so many seeds at most for each")
    parser.add_argument("--only", default="", help="those whose rule, file or description contains this")
    parser.add_argument("--jobs", type=int, default=DEFAULT_JOBS, help="so many at a time")
    options = parser.parse_args()
    chosen = [each for each in MUTANTS if options.only in f"{each.rule} {each.file} {each.what}"]
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="blockferry-mutants-") as directory:
        verdicts = all_judged(chosen, Path(directory), options.seeds, options.jobs)
        problem = control(verdicts, Path(directory) / "0")
    print("\n" + "\n".join(verdict.line for verdict in verdicts))
    caught = sum(verdict.seed is not None for verdict in verdicts)
    print(f"{caught} of {len(chosen)} planted defects were caught, in {time.perf_counter() - began_s:.0f} s")
    if problem is not None:
        print(problem)
    return 0 if caught == len(chosen) and problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
