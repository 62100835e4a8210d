"""Every value that an option of ``migratectl`` takes as text or number, out of range or senseless: a message, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click
import pytest

from config_server.migratectl.cli import main
from tests.harness.migratectl_server import Ctl

SENSELESS: Final = (
    "",
    "0",
    "-1",
    "0s",
    "31d",
    "99999999999d",
    "2 Gbps",
    "512 bps",
    "8-18",
    "18:00-18:00",
    "1e999",
    "nan",
    "x\n",
)
OF_THE_SITE: Final = {"set-upload-limits": "ps-1", "set-agent-limits": "web-1", "set-policy": "tried"}
"""What a command asks the server about before it looks at its options; the others are given what is not there, and change nothing."""


def _commands(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*before, name))


def _takes_text_or_number(option: click.Option) -> bool:
    return not option.is_flag and not isinstance(option.type, click.Choice | click.Path)


def _cases() -> Iterator[tuple[tuple[str, ...], str]]:
    for words, command in _commands(main):
        arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
        named = (OF_THE_SITE.get(words[-1], "nowhere"),) * len([each for each in arguments if each.required])
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        for option in filter(_takes_text_or_number, options):
            rest = [
                word for other in options if other.required and other is not option for word in (other.opts[0], "1")
            ]
            yield (*words, *named, *rest), option.opts[0]


@pytest.mark.parametrize(
    ("command", "option"), list(_cases()), ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_no_value_of_an_option_shows_a_traceback(ctl: Ctl, command: tuple[str, ...], option: str) -> None:
    for value in SENSELESS:
        done = ctl(*command, option, value)
        assert done.exception is None or isinstance(done.exception, SystemExit), (value, done.exception)
        assert done.exit_code in (0, 1, 2, 6), (value, done.output)


@pytest.mark.parametrize("valid_for", ["0s", "31d", "99999999999d"])
def test_a_passphrase_is_for_a_time_up_to_thirty_days(ctl: Ctl, valid_for: str) -> None:
    refused = ctl("create-enrolment-passphrase", "--valid-for", valid_for)
    assert (refused.exit_code, refused.output) == (2, "error: cannot use --valid-for: a time up to 30 d is expected\n")
