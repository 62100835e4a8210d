"""What holds for every test: requirements of the machine, hypothesis profiles, and that nothing is left behind.

Called by pytest. Markers: ``requires("root", "loop", "fio", ...)`` (see ``tests/harness/requirements.py``), ``heavy`` and ``fresh``.
The seeds that tests tell (``tell_seeds``) are printed at the end.
A test that leaves a process, mount or loop device under its temporary directory fails the run (``tests/harness/leftovers.py``).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # xdist has no types

from tests.harness.leftovers import leftovers_under
from tests.harness.process_memory import map_large_buffers
from tests.harness.requirements import WITHHELD, add_system_directories_to_path, first_lacking
from tests.harness.told_seeds import TellSeeds, noted, seed_lines

add_system_directories_to_path()

# On a shared machine neither a slow example nor slow generation proves anything. The blob in a failure's output replays it.
_NO_CLOCK = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True)
hypothesis.settings.register_profile("normal", _NO_CLOCK)
hypothesis.settings.register_profile("thorough", _NO_CLOCK, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))


def pytest_configure(config: pytest.Config) -> None:
    map_large_buffers()
    config.addinivalue_line(
        "markers", "requires(*names): what the machine must have: root, loop, mount, ebpf, fuse, systemd or a program"
    )
    config.addinivalue_line("markers", f"heavy(what): takes minutes for {{what}}; runs only with {HEAVY}=1, as in CI")
    config.addinivalue_line("markers", "fresh: builds and tests the project on a bare Debian root (network, root)")


def pytest_collection_finish() -> None:
    """What exists by now (modules, thousands of test items) stays to the end: no later collection of garbage visits it again."""
    gc.collect()
    gc.freeze()


HEAVY = "BLOCKFERRY_HEAVY"
"""Environment variable of the Makefile's ``HEAVY=1`` and of ``.ci/run``."""

# What takes long begins first, so that no worker ends alone with it.
_IN_ORDER = ("tests/e2e/", "tests/fault/", "tests/packages/")
_FIRST = (*_IN_ORDER, "tests/test_fresh_debian.py", "tests/test_compose_site.py", "tests/simulation/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((place for place, start in enumerate(_FIRST) if item.nodeid.startswith(start)), len(_FIRST))

    items.sort(key=rank)


class _RealSitesInOrder(LoadScopeScheduling):  # type: ignore[misc]  # as above
    """End-to-end tests wait more than they work, and so do fault tests: a worker runs each kind in order, the others run the rest.

    Not by xdist's group marks: xdist 3.8 writes them into a part of the node id that pytest 9.2 reads no more.
    """

    def _split_scope(self, nodeid: str) -> str:
        for kind in _IN_ORDER:
            if nodeid.startswith(kind):
                return kind
        return nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _RealSitesInOrder:
    config.option.loadscopereorder = False  # the order of the collection counts, not the number of a file's tests
    return _RealSitesInOrder(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("heavy"):
        if os.environ.get(HEAVY) != "1":
            pytest.skip(f"heavy: {marker.args[0]}; `make test HEAVY=1` runs it, and so does CI")
    for marker in item.iter_markers("requires"):
        reason = first_lacking(marker.args)
        if reason is not None:
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With BLOCKFERRY_NO_SKIPS=1 a skip fails, wherever in the test it comes from."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("BLOCKFERRY_NO_SKIPS") == "1":
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if WITHHELD not in reason:
            report.outcome = "failed"
            report.longrepr = f"{reason}, and BLOCKFERRY_NO_SKIPS=1 says that this machine has it"
    return report


@pytest.fixture
def tell_seeds(record_property: Callable[[str, object], None]) -> TellSeeds:
    """See ``TellSeeds``."""

    def tell(what: str, first: int, last: int | None = None) -> None:
        record_property(*noted(what, first, first if last is None else last))
        print(f"{what}: seed {first}" if last is None else f"{what}: seeds {first} to {last}")

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [each for kind in terminalreporter.stats.values() for each in kind if isinstance(each, pytest.TestReport)]
    lines = seed_lines(reports)
    if lines:
        terminalreporter.section("seeds")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a test starts it stops: no process, mount or loop device outlives the session under its temporary directory."""
    yield
    found = leftovers_under(tmp_path_factory.getbasetemp())
    assert not found, "left behind by a test:\n" + "\n".join(found)
