"""Each command of the operators' pages and of the README is run by a test, or its page says why not.

Held here against the pages, in a second and without root; ``tests/packages`` runs what is planned. A mark ``run by`` is believed if the
file that it names takes the commands from the page, or has the command, and every option, of each.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.harness.documentation import program_commands
from tests.harness.documented_commands import COMMANDS, PAGES, PROGRAMS, Block, blocks, blocks_of, lacks, name_of
from tests.harness.source_tree import REPOSITORY
from tests.harness.walk_plan import PLANS
from tests.harness.walked_pages import Stop

STOPS: Final = [stop for plan in PLANS.values() for stop in plan]
BY_TESTS: Final = ("tests/", "deploy/demo/", "deploy/setup/prove-fresh-debian.sh")


def _unproved(block: Block, planned: set[tuple[str, str, int]]) -> str | None:
    """Why nobody can say that a block's commands are run; None if a test runs them or it is said why not."""
    mark = block.mark
    if mark is None:
        return (
            None if (block.page, block.heading, block.number) in planned else "no test runs it, and it does not say why"
        )
    if mark.kind == "not run":
        return None if len(mark.text) > 20 else "no reason is given"
    path = REPOSITORY / mark.text
    if not mark.text.startswith(BY_TESTS) or not path.is_file():
        return f"{mark.text} is no test"
    source = path.read_text()
    if "documented(" in source and f'"{block.page}"' in source and f'"{block.heading}"' in source:
        return None
    missing = {word for command in block.commands() for word in lacks(command, source)}
    return f"{mark.text} does not run it: it has no {', '.join(sorted(missing))}" if missing else None


def _planned(stops: list[Stop]) -> set[tuple[str, str, int]]:
    return {(block.page, block.heading, block.number) for stop in stops for block in stop.blocks()}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_is_run_or_says_why_not(page: Path) -> None:
    planned = _planned(STOPS)
    found = [block for block in blocks_of(page) if block.language == COMMANDS]
    problems = [f"{block.place}: {problem}" for block in found if (problem := _unproved(block, planned)) is not None]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_plan_has_only_what_the_page_says(stop: Stop) -> None:
    assert stop.stale() == []


def test_no_plan_is_left_unwalked() -> None:
    """Each plan has one test that walks it, by its name."""
    tests = Counter(
        name
        for path in (REPOSITORY / "tests" / "packages").glob("test_*.py")
        for name in re.findall(r"walk_plan\.([A-Z_]+)", path.read_text())
    )
    assert set(PLANS) <= set(tests)


def _offered() -> dict[tuple[str, ...], frozenset[str]]:
    """Every command that can be typed, with its options, also the hidden ones and the short."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    return {
        command.words: frozenset(command.options) | {"--help", "--version"}
        for program in PROGRAMS
        for command in program_commands(program, scripts[program])
    }


OFFERED: Final = _offered()


def _not_offered(text: str) -> str | None:
    """What of a command's words no program knows; prose that only names a program is right."""
    given = text.split()
    at = 1
    while tuple(given[: at + 1]) in OFFERED and at < len(given):
        at += 1
    command = tuple(given[:at])
    if (
        at < len(given)
        and re.fullmatch(r"[a-z][a-z-]+", given[at])
        and any(words[:at] == command and len(words) > at for words in OFFERED)
    ):
        return f"{text!r}: {' '.join(command)} has no command {given[at]}"
    outer = [OFFERED[command[:length]] for length in range(1, at + 1)]
    options = {word.partition("=")[0] for word in given if re.match(r"--[a-z]", word)}
    unknown = options - frozenset().union(*outer)
    return f"{text!r}: no option {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", page.read_text())
    commands = [command for block in blocks_of(page) if block.language == COMMANDS for command in block.commands()]
    blocks_text = [command for command in commands if not command.startswith("deploy/")]
    found = [
        match[0]
        for text in (*spans, *blocks_text)
        for match in re.finditer(rf"(?<![\w./-])({'|'.join(PROGRAMS)})( [^|;&()<>#]+)?", text.replace("\\\n", " "))
        if text in blocks_text or match.start() == 0
    ]
    assert not [problem for text in found if (problem := _not_offered(text)) is not None]


NOT_RUN: Final = {
    "config-server copy-database": "takes an appliance on PostgreSQL; what it does is tested: tests/unit/config_server/test_postgresql.py",
}
"""Commands that no test gives, and why. One that a test gives fails: remove it."""


def _sources() -> list[str]:
    """What tests type: words in a row, or one after the other in a list."""
    here = {"test_documented_commands.py", "walk_plan.py"}
    files = [path for folder in ("tests", "deploy/demo") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    walked = [command for stop in STOPS for block in stop.blocks() for command in block.text.splitlines()]
    return [*(path.read_text() for path in files if path.name not in here), "\n".join(walked)]


def test_every_command_is_run_by_a_test_or_listed_with_the_reason() -> None:
    sources = _sources()
    missing = set()
    for given in OFFERED:
        program, *rest = given
        in_a_row = rf"(?<![\w-]){program}\s+{' '.join(map(re.escape, rest))}(?![\w-])"
        in_a_list = r"[\"']" + r"[\"'],\s*[\"']".join(map(re.escape, rest)) + r"[\"' ]"
        if rest and not any(re.search(in_a_row, text) or re.search(in_a_list, text) for text in sources):
            missing.add(" ".join(given))
    assert missing == set(NOT_RUN)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_data_is_no_hiding_place_for_commands(page: Path) -> None:
    for block in blocks_of(page):
        if block.language != COMMANDS:
            assert not re.search(rf"^\s*(as )?({'|'.join(PROGRAMS)}) [a-z-]+", block.text, re.MULTILINE), block.place


# -- the check is able to fail --------------------------------------------------------------------------------------

PAGE: Final = """
# Heading

    migratectl status web-1 --json   # a comment

{mark}

    as() {{ runuser -u "$1"; }}
    config-server create-enrolment-passphrase --role process-server |
        process-server enrol --fingerprint F \\
            --passphrase-file -

```yaml
migratectl: data
```
"""


def _page(mark: str = "") -> list[Block]:
    return list(blocks("docs/page.md", PAGE.format(mark=mark)))


def test_commands_are_found_whole() -> None:
    first, second, data = _page()
    assert [command.split("  ")[0] for command in first.commands()] == ["migratectl status web-1 --json"]
    assert [command.split()[0] for command in second.commands()] == ["as()", "config-server"]
    assert (data.language, data.number, second.number, second.heading) == ("yaml", 2, 1, "Heading")


@pytest.mark.parametrize(
    ("mark", "problem"),
    [
        ("", "no test runs it"),
        ("<!-- not run: no -->", "no reason is given"),
        ("<!-- not run: it would take another machine -->", None),
        ("<!-- run by: tests/test_nowhere.py -->", "is no test"),
        ("<!-- run by: docs/development.md -->", "is no test"),
        ("<!-- run by: tests/test_lock.py -->", "has no --fingerprint, --passphrase-file, --role, as"),
    ],
)
def test_block_that_nobody_runs_is_reported(mark: str, problem: str | None) -> None:
    found = _unproved(_page(mark)[1], set())
    assert found == problem if problem is None else found is not None and problem in found


def test_plan_that_outlived_its_page_is_reported() -> None:
    with pytest.raises(LookupError):
        Stop("install", "A heading that is not there").blocks()
    stop = Stop("install", "1. Programs", numbers=(0,), instead={"not there": ""}, exits={"apt-get": (0,), "yum": (0,)})
    assert stop.stale() == ["not there", "yum"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("migratectl servers allow-reenrolment SERVER", None),
        ("migratectl status SERVER --json", None),
        ("migratectl --url https://HOST status", None),
        ("process-server", None),
        ("migratectl stauts SERVER", "migratectl has no command stauts"),
        ("migratectl servers forgive SERVER", "migratectl servers has no command forgive"),
        ("migratectl status --jsno", "no option --jsno"),
    ],
)
def test_command_that_does_not_exist_is_reported(text: str, problem: str | None) -> None:
    found = _not_offered(text)
    assert found == problem if problem is None else found is not None and problem in found
