"""The proof that the simulation can fail: plants each defect of ``mutant_list`` in a copy of the tree and runs seeds until one is broken.
First the copy must stand all of the seeds without a defect.

Called by ``make mutants``. A defect that no seed catches fails the run; so does one whose place in the code is not found any more. The
checkout is never touched. ``--only TEXT`` takes those whose rule, file or description contains it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.source_tree import REPOSITORY
from tests.simulation.mutant_list import MUTANTS, Mutant

DEFAULT_SEEDS: Final = 1500
COPIED: Final = ("azure_sink", "config_server", "mobility_agent", "process_server", "replication", "tests")
_UNDER: Final = {"mobility_agent": "agent", "replication": "agent", "process_server": "spools", "azure_sink": "sink"}
_TIMEOUT_S: Final = 1800
_MALFORMED: Final = re.compile(
    r"(NameError|AttributeError|TypeError|SyntaxError|ImportError|IndentationError|UnboundLocalError)\b"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    is_caught: bool
    what: str


def planted(mutant: Mutant, tree: Path) -> str | None:
    """Plant it; returns why it could not be, or None."""
    path = tree / mutant.file
    source = path.read_text() if path.exists() else ""
    count = source.count(mutant.old)
    if count != 1:
        return f"its place was found {count} times in {mutant.file}: the code has changed, the list must follow"
    path.write_text(source.replace(mutant.old, mutant.new))
    return None


def theme_of(mutant: Mutant) -> tuple[str, str]:
    """Faults and tracker under which it is looked for: where they are many, a defect shows after tens of seeds and not hundreds."""
    theme, _, tracker = (mutant.under or _UNDER.get(mutant.file.partition("/")[0], "")).partition(" ")
    return theme, tracker


def soaked(tree: Path, seeds: int, theme: str, tracker: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.simulation.soak"),
            *("--count", str(seeds), "--theme", theme, "--tracker", tracker),
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
    original = (tree / mutant.file).read_text() if (tree / mutant.file).exists() else ""
    problem = planted(mutant, tree)
    if problem is not None:
        return Verdict(False, problem)
    try:
        process = soaked(tree, seeds, *theme_of(mutant))
    except subprocess.TimeoutExpired:
        return Verdict(True, "never ends")
    finally:
        (tree / mutant.file).write_text(original)
    last = [line for line in process.stdout.splitlines() if line.startswith("seed ")][-1:] or [process.stderr[-300:]]
    told = last[0][:160]
    if process.returncode == 1 and process.stdout and not _MALFORMED.search(told):
        return Verdict(True, told)
    if process.returncode == 0:
        return Verdict(False, f"survives {seeds} seeds")
    return Verdict(False, f"is no defect of the product but of its planting: {told}")


def copied_tree(directory: Path) -> Path:
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="so many seeds at most for each")
    parser.add_argument("--only", default="", help="those whose rule, file or description contains this")
    options = parser.parse_args()
    chosen = [each for each in MUTANTS if options.only in f"{each.rule} {each.file} {each.what}"]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="blockferry-mutants-") as directory:
        tree = copied_tree(Path(directory))
        for theme, tracker in sorted({theme_of(mutant) for mutant in chosen}):
            sound = soaked(tree, options.seeds, theme, tracker)
            if sound.returncode:
                print(f"the tree fails without any planted defect:\n{sound.stdout[-2000:]}{sound.stderr[-2000:]}")
                return 1
        for number, mutant in enumerate(chosen, 1):
            began_s = time.perf_counter()
            verdict = judge(mutant, tree, options.seeds)
            survivors += not verdict.is_caught
            word = "caught " if verdict.is_caught else "MISSED "
            elapsed_s = time.perf_counter() - began_s
            print(
                f"{number:3}/{len(chosen)} {word} {elapsed_s:5.0f} s  {mutant.rule:5} {mutant.what}: {verdict.what}",
                flush=True,
            )
    print(f"{len(chosen) - survivors} of {len(chosen)} planted defects were caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
