"""The proof that the tests can fail: plants each defect of ``mutant_list`` in a copy of the tree and runs seeds until one is broken, or
the unit test that it names, where the simulation comes by too seldom. The control: that seed or test must be whole in the sound tree.

Called by ``make mutants``. A defect that nothing catches fails the run; so does one whose place in the code is not found any more. The
checkout is never touched. ``--only TEXT`` takes those whose rule, file, description or test contains it; ``tests/unit``, all that name a
test.
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
_SETTINGS_OF_PYTEST: Final = "pyproject.toml"
_UNDER: Final = {"mobility_agent": "agent", "replication": "agent", "process_server": "spools", "azure_sink": "sink"}
_TIMEOUT_S: Final = 1800
_MALFORMED: Final = re.compile(
    r"(NameError|AttributeError|TypeError|SyntaxError|ImportError|IndentationError|UnboundLocalError)\b"
)
_BROKEN_SEED: Final = re.compile(r"seed (\d+): ")
_ALSO_HEAVY: Final = {"BLOCKFERRY_HEAVY": "1"}
"""See ``tests/conftest.py``: a test that is skipped catches nothing."""
_WIDE: Final = "1000"
"""Columns of the terminal that pytest believes to have: in fewer it leaves out why a test failed."""
_TEST_FAILED: Final = 1
"""Pytest's exit status; any other than 0 means that it could not run the test."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``seed``: the first that broke, None if none did or none was run; ``what``: how it was caught, or why not."""

    mutant: Mutant
    is_caught: bool
    seed: int | None
    what: str
    elapsed_s: float

    @property
    def line(self) -> str:
        after = "a unit test" if self.mutant.test else f"{'-' if self.seed is None else self.seed + 1:>5} seeds"
        word = "caught" if self.is_caught else "MISSED"
        return f"{word} {after} {self.elapsed_s:6.0f} s  {self.mutant.rule:5} {self.mutant.what}"


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
    return _run(tree, "tests.simulation.soak", "--theme", theme, "--tracker", tracker, *chosen)


def tested(tree: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return _run(tree, "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", *tests)


def _run(tree: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree), "COLUMNS": _WIDE, **_ALSO_HEAVY},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )


def judge(mutant: Mutant, tree: Path, seeds: int) -> Verdict:
    """Run its test in ``tree``, or seeds until one is broken."""
    began_s = time.perf_counter()
    try:
        problem = planted(mutant, tree)
        if problem is not None:
            is_caught, seed, what = False, None, problem
        elif mutant.test:
            is_caught, what = judged_by_test(tested(tree, [mutant.test]))
            seed = None
        else:
            seed, what = judged_by_seeds(soaked(tree, *theme_of(mutant), ("--count", str(seeds))), seeds)
            is_caught = seed is not None
    except subprocess.TimeoutExpired:
        is_caught, seed, what = False, None, f"takes longer than {_TIMEOUT_S} s"
    finally:
        restored(mutant, tree)
    return Verdict(mutant, is_caught, seed, what, time.perf_counter() - began_s)


def judged_by_test(process: subprocess.CompletedProcess[str]) -> tuple[bool, str]:
    """Whether the test failed, and how."""
    summary = [line for line in process.stdout.splitlines() if line.startswith("FAILED ")][-1:]
    told = summary[0] if summary else (process.stdout + process.stderr)[-300:]
    if process.returncode == 0:
        return False, "its test passes all the same"
    if process.returncode != _TEST_FAILED or not summary:
        return False, f"its test could not be run: {told}"
    if _MALFORMED.search(told):
        return False, f"is no defect of the product but of its planting: {told}"
    return True, told.removeprefix("FAILED ")[:300]


def judged_by_seeds(process: subprocess.CompletedProcess[str], seeds: int) -> tuple[int | None, str]:
    """The seed that is broken, and how."""
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
    shutil.copy2(REPOSITORY / _SETTINGS_OF_PYTEST, directory / _SETTINGS_OF_PYTEST)
    compileall.compile_dir(directory, quiet=2)
    return directory


def control(verdicts: Sequence[Verdict], tree: Path) -> str | None:
    """Every seed and test that caught something must be whole without the defect; returns what is not."""
    seeds: dict[tuple[str, str], set[int]] = {}
    tests = sorted({verdict.mutant.test for verdict in verdicts if verdict.mutant.test})
    if tests:
        process = tested(tree, tests)
        if process.returncode:
            return f"a test fails without any planted defect:\n{process.stdout[-2000:]}{process.stderr[-2000:]}"
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
    parser.add_argument("--only", default="", help="those whose rule, file, description or test contains this")
    parser.add_argument("--jobs", type=int, default=DEFAULT_JOBS, help="so many at a time")
    options = parser.parse_args()
    chosen = [each for each in MUTANTS if options.only in f"{each.rule} {each.file} {each.what} {each.test}"]
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="blockferry-mutants-") as directory:
        verdicts = all_judged(chosen, Path(directory), options.seeds, options.jobs)
        problem = control(verdicts, Path(directory) / "0")
    print("\n" + "\n".join(verdict.line for verdict in verdicts))
    caught = sum(verdict.is_caught for verdict in verdicts)
    by_tests = sum(verdict.is_caught and verdict.mutant.test != "" for verdict in verdicts)
    elapsed_s = time.perf_counter() - began_s
    print(
        f"{caught} of {len(chosen)} planted defects were caught, {by_tests} of them by unit tests, in {elapsed_s:.0f} s"
    )
    if problem is not None:
        print(problem)
    return 0 if caught == len(chosen) and problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
