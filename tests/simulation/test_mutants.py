"""The list of planted defects follows the code, and a defect counts as caught only if a test failed because of it.

Called by pytest; planting all of them takes ``make mutants``.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.harness.source_tree import REPOSITORY
from tests.simulation.mutant_list import MUTANTS, Mutant
from tests.simulation.mutants import judged_by_seeds, judged_by_test

_NAMES = [f"{mutant.rule} {mutant.what}" for mutant in MUTANTS]
_TESTED = [mutant for mutant in MUTANTS if mutant.test]


@pytest.mark.parametrize("mutant", MUTANTS, ids=_NAMES)
def test_the_place_of_every_defect_is_found_once(mutant: Mutant) -> None:
    for file, old, new in mutant.edits:
        assert (REPOSITORY / file).read_text().count(old) == 1, "the code has changed, the list must follow"
        assert old != new


@pytest.mark.parametrize("mutant", MUTANTS, ids=_NAMES)
def test_what_is_planted_is_python(mutant: Mutant) -> None:
    """A defect that cannot be imported is noticed by anything, and proves nothing."""
    sources = {file: (REPOSITORY / file).read_text() for file, _, _ in mutant.edits}
    for file, old, new in mutant.edits:
        sources[file] = sources[file].replace(old, new)
    for file, source in sources.items():
        if file.endswith(".py"):
            compile(source, file, "exec")


@pytest.mark.parametrize("mutant", _TESTED, ids=[mutant.test for mutant in _TESTED])
def test_the_test_that_a_defect_names_exists(mutant: Mutant) -> None:
    file, _, name = mutant.test.partition("::")
    assert file.startswith(("tests/unit/", "tests/contract/", "tests/fault/test_blob_store_"))
    assert f"def {name.partition('[')[0]}(" in (REPOSITORY / file).read_text()


def _finished(status: int, told: str) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], status, stdout=told, stderr="")


@pytest.mark.parametrize(
    ("status", "told", "is_caught"),
    [
        (1, "FAILED tests/unit/a.py::test_b - AssertionError: lost\n1 failed", True),
        (0, "1 passed", False),
        (0, "1 skipped", False),
        (1, "FAILED tests/unit/a.py::test_b - NameError: name 'x' is not defined\n1 failed", False),
        (1, "ERROR tests/unit/a.py::test_b - OSError\n1 error", False),
        (2, "ERROR tests/unit/a.py\nInterrupted: 1 error during collection", False),
        (4, "ERROR: not found: tests/unit/a.py::test_b", False),
    ],
)
def test_a_defect_is_caught_by_a_test_that_fails_and_not_by_one_that_cannot_run(
    status: int, told: str, is_caught: bool
) -> None:
    assert judged_by_test(_finished(status, told))[0] is is_caught


@pytest.mark.parametrize(
    ("status", "told", "seed"),
    [
        (1, "seed 17: Broken: a sector\n 1.0 agent\nseed 17: Broken: a sector\nreplay: make soak SEED=17", 17),
        (1, "seed 17: NameError: name 'x' is not defined", None),
        (1, "", None),
        (0, "seeds 0 to 199: 900 recovery points judged", None),
    ],
)
def test_a_defect_is_caught_by_a_seed_that_breaks_a_promise(status: int, told: str, seed: int | None) -> None:
    assert judged_by_seeds(_finished(status, told), 200)[0] == seed
