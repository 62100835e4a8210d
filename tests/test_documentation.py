"""The documentation keeps up with the programs: every command and option, every metric, every link.

``docs/operations/`` documents a command if one section there has all its words (in its text or the headings above it), and an option
if such a section names it. ``docs/operations/metrics.md`` has every metric by name and none that is gone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from typing import Final

import click
import pytest
from prometheus_client import CollectorRegistry, Metric

from config_server.ages import Ages
from config_server.reconciler.alert_figures import AlertFigures
from config_server.reconciler.figures import Figures
from mobility_agent.observations import DiskMetrics
from process_server.metrics import ProcessServerMetrics
from replication.blob_client.transport import API_VERSION
from replication.failpoint import FAILPOINTS
from tests.harness import documentation
from tests.harness.documentation import Command, Section, commands_of, program_commands, sections, undocumented
from tests.harness.source_tree import REPOSITORY, SourceTree

PROGRAMS: Final[dict[str, str]] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]

PENDING_PROGRAMS: Final[set[str]] = set()
"""Console scripts that do not exist yet. An entry that exists fails the test: remove it."""

PENDING_DOCUMENTATION: Final[set[str]] = set()
"""Programs (and the page of metrics) whose documentation is not complete yet. A complete one fails the test: remove it."""

PENDING_PAGES: Final[set[str]] = set()
"""Pages that are linked to and not written yet. A page that is there fails the test: remove it."""

METRICS_PAGE: Final = "docs/operations/metrics.md"


def _pages() -> list[Section]:
    files = SourceTree.of_repository().files
    return [
        section
        for path, text in files.items()
        if path.startswith("docs/operations/") and path.endswith(".md")
        for section in sections(path, text)
    ]


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_command_and_option_is_documented(program: str) -> None:
    try:
        commands = list(program_commands(program, PROGRAMS[program]))
    except ModuleNotFoundError:
        assert program in PENDING_PROGRAMS
        return
    assert program not in PENDING_PROGRAMS, "it exists: remove it from PENDING_PROGRAMS"
    missing = [text for command in commands for text in undocumented(command, _pages())]
    if program in PENDING_DOCUMENTATION:
        assert missing, "its documentation is complete: remove it from PENDING_DOCUMENTATION"
        return
    assert not missing, "docs/operations/ says nothing of " + ", ".join(missing)


def _metrics_built_at_run_time() -> dict[str, Iterable[Metric]]:
    """Modules whose metric names are no literals → the families that they make with nothing to show."""
    process_server = CollectorRegistry()
    ProcessServerMetrics(process_server)
    return {
        "config_server.reconciler.alert_figures": AlertFigures(None).collect(),
        "config_server.reconciler.figures": Figures(Ages(lambda: 0, lambda: 0.0)).collect(),
        "mobility_agent.observations": DiskMetrics().collect(),
        "process_server.metrics": process_server.collect(),
    }


def _declared_metrics() -> dict[str, str]:
    names, built = documentation.metric_names(SourceTree.of_repository())
    at_run_time = _metrics_built_at_run_time()
    for module, families in at_run_time.items():
        names |= {family.name: module for family in families}
    assert built == at_run_time.keys(), "list in _metrics_built_at_run_time what cannot be read from the source"
    return names


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    declared = _declared_metrics()
    assert all(name.startswith("blockferry_") for name in declared), declared
    page = SourceTree.of_repository().files.get(METRICS_PAGE, "")
    documented = {
        re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in re.findall(r"\bblockferry_\w+", page)
    }
    missing = {name for name in declared if re.sub(r"_(total|info)$", "", name) not in documented}
    gone = documented - {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in declared}
    if "metrics" in PENDING_DOCUMENTATION:
        assert missing or not declared, "the page is complete: remove it from PENDING_DOCUMENTATION"
        return
    assert not missing, f"{METRICS_PAGE} says nothing of {sorted(missing)}"
    assert not gone, f"{METRICS_PAGE} documents {sorted(gone)}, which no code declares"


MARKDOWN: Final = sorted(path for path in SourceTree.of_repository().files if path.endswith(".md"))


@pytest.mark.parametrize("path", MARKDOWN)
def test_relative_links_resolve(path: str) -> None:
    page = REPOSITORY / path
    for target in documentation.links(page.read_text()):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, fragment = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_relative_to(REPOSITORY), f"{target} leads out of the repository"
        if str(linked.relative_to(REPOSITORY)) in PENDING_PAGES:
            continue
        assert linked.exists(), f"{target} leads nowhere"
        if fragment and linked.suffix == ".md":
            headings = [section.headings[-1] for section in sections(path, linked.read_text()) if section.headings]
            assert fragment in {documentation.anchor(heading) for heading in headings}, f"{target}: no such heading"


def test_the_version_of_the_blob_interface_is_the_one_that_is_asked_for() -> None:
    assert f"`x-ms-version: {API_VERSION}`" in (REPOSITORY / "docs/operations/azure-storage.md").read_text()


def test_pending_pages_are_not_written_yet() -> None:
    assert not [path for path in PENDING_PAGES if (REPOSITORY / path).exists()], "remove it from PENDING_PAGES"


def test_readme_says_what_is_needed_and_the_two_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "apt-get install -y git make python3 python3-venv" in readme
    assert re.search(r"^ *make demo\b", readme, re.MULTILINE)
    assert re.search(r"^ *make test\b", readme, re.MULTILINE)


def test_every_make_target_says_what_it_does() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-z0-9]+):(?!=)(.*)$", makefile, re.MULTILINE)
    assert targets
    assert not [name for name, rest in targets if "## " not in rest]
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == {name for name, _ in targets}


# -- the checks are able to fail ------------------------------------------------------------------------------------


@click.group()
@click.option("--server")
def _tool(server: str) -> None: ...


@_tool.command("test-migrate")
@click.option("-p", "--recovery-point")
@click.option("--secret", hidden=True)
def _test_migrate(recovery_point: str, secret: str) -> None: ...


PAGE: Final = """
# tool

`--server` says where.

## Drills

Run `test-migrate` with `--recovery-point`.

```
# test-migrate-all is a comment, no heading
```

## Clean-up
"""


def test_commands_and_options_are_found_in_click() -> None:
    assert list(commands_of(_tool, ("tool",))) == [
        Command(("tool",), ("--server",)),
        Command(("tool", "test-migrate"), ("--recovery-point",)),
    ]


@pytest.mark.parametrize(
    ("page", "missing"),
    [
        (PAGE, []),
        (PAGE.replace("--server", "--servers"), ["`tool --server`"]),
        (PAGE.replace("--recovery-point", ""), ["`tool test-migrate --recovery-point`"]),
        (PAGE.replace("Run `test-migrate`", "Run"), ["`tool test-migrate`"]),
        (PAGE.replace("# tool", "# another"), ["`tool`", "`tool test-migrate`"]),
        ("", ["`tool`", "`tool test-migrate`"]),
    ],
)
def test_what_a_page_does_not_say_is_reported(page: str, missing: list[str]) -> None:
    pages = list(sections("docs/operations/tool.md", page))
    assert [text for command in commands_of(_tool, ("tool",)) for text in undocumented(command, pages)] == missing


def test_entry_point_that_is_no_click_command_is_reported() -> None:
    with pytest.raises(TypeError, match="no click command"):
        list(program_commands("tool", "tests.harness.documentation:anchor"))


def test_metric_names_are_found_in_the_source() -> None:
    tree = SourceTree(
        {
            "azure_sink/a.py": "from prometheus_client import Counter\nCounter('blockferry_a', 'x')",
            "azure_sink/b.py": "import prometheus_client as p\np.Gauge(f'blockferry_{x}', 'x')",
            "azure_sink/c.py": "import collections\ncollections.Counter('text')",
        }
    )
    assert documentation.metric_names(tree) == ({"blockferry_a": "azure_sink/a.py:2"}, {"azure_sink.b"})


def test_links_are_found_outside_of_code_only() -> None:
    text = '[a](x.md) ![b](y.png "t") `[c](no)`\n```\n[d](no)\n```\n[e]: z.md\n[f](<w.md#h>)'
    assert list(documentation.links(text)) == ["x.md", "y.png", "w.md#h", "z.md"]


@pytest.mark.parametrize(
    ("heading", "expected"), [("Set-up", "set-up"), ("`make test`, and more", "make-test-and-more"), ("A  b", "a--b")]
)
def test_anchor_is_what_forges_make_of_a_heading(heading: str, expected: str) -> None:
    assert documentation.anchor(heading) == expected


def test_the_failure_model_names_tests_and_failpoints_that_exist() -> None:
    text = (REPOSITORY / "docs" / "failure-model.md").read_text()
    tree = SourceTree.of_repository().files
    defined = {
        name for path, code in tree.items() if path.startswith("tests/") for name in re.findall(r"def (test_\w+)", code)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= defined, f"no such test: {sorted(named - defined)}"
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert files <= tree.keys(), f"no such file: {sorted(files - tree.keys())}"
    known = {name for points in FAILPOINTS.values() for name in points}
    wanted = set(re.findall(r"`((?:agent|process|config|sink)\.[\w-]+\.[\w-]+)`", text))
    assert wanted
    assert wanted <= known, f"no such failpoint: {sorted(wanted - known)}"
