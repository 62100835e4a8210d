"""Every option of ``migratectl`` that takes text or a number, out of range or senseless: our sentence, never a traceback or a model's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from config_server.migratectl.cli import main
from config_server.migratectl.discovery_commands import _given_keys, _requests
from replication.errors import SettingsError
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
A_MODEL_S: Final = re.compile(
    r"Input should|String should|List should|Value error|should match|validation error|Field required"
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
def test_no_value_of_an_option_shows_a_traceback_or_a_model_s_sentence(
    ctl: Ctl, command: tuple[str, ...], option: str
) -> None:
    for value in SENSELESS:
        done = ctl(*command, option, value)
        assert done.exception is None or isinstance(done.exception, SystemExit), (value, done.exception)
        assert done.exit_code in (0, 1, 2, 6), (value, done.output)
        assert not A_MODEL_S.search(done.output), (value, done.output)
        assert done.exit_code == 0 or done.output.startswith(("error: cannot ", "Usage: ")), (value, done.output)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--recovery-point-interval", ("10 s", "24 h")),
        ("--epoch-interval", ("200 ms", "1 h")),
        ("--app-consistent-interval", ("1 h", "12 h", "off")),
        ("--rpo-threshold", ("10 s",)),
        ("--retention", ("0", "15 d")),
        ("--freeze-budget", ("30 s",)),
    ],
)
def test_a_policy_takes_what_the_refusal_says_that_it_takes(ctl: Ctl, option: str, values: tuple[str, ...]) -> None:
    refused = ctl("set-policy", "tried", option, "99999 d" if option != "--rpo-threshold" else "9 s")
    assert refused.exit_code == 2
    assert all(value in refused.output for value in values), refused.output
    for value in values:
        assert ctl("set-policy", "tried", option, value).exit_code == 0, value


@pytest.mark.parametrize("valid_for", ["0s", "31d", "99999999999d"])
def test_a_passphrase_is_for_a_time_up_to_thirty_days(ctl: Ctl, valid_for: str) -> None:
    refused = ctl("create-enrolment-passphrase", "--valid-for", valid_for)
    assert (refused.exit_code, refused.output) == (2, "error: cannot use --valid-for: a time up to 30 d is expected\n")


@pytest.mark.parametrize("value", ["x y", "-x", ""])
def test_a_login_that_no_server_has_is_refused_before_anything_is_asked(ctl: Ctl, tmp_path: Path, value: str) -> None:
    (tmp_path / "password").write_text("secret")
    refused = ctl("discover", "192.0.2.1", "--password-file", str(tmp_path / "password"), "--user", value)
    assert (refused.exit_code, refused.output) == (2, "error: cannot use --user: a user's name is expected\n")


KEY, OTHER_KEY = "SHA256:" + "k" * 43, "SHA256:" + "o" * 43


@pytest.mark.parametrize(
    ("host", "given", "taken"),
    [
        ("127.0.0.1:2299", [f"127.0.0.1:2299={KEY}"], KEY),
        ("127.0.0.1:2299", [f"127.0.0.1={KEY}"], KEY),
        ("127.0.0.1:2299", [f"127.0.0.1={OTHER_KEY}", f"127.0.0.1:2299={KEY}"], None),
        ("admin@Web1", [f"web1:22={KEY}"], KEY),
        ("[2001:DB8::1]:2222", [f"[2001:db8::1]:2222={KEY}"], KEY),
        ("web1:2299", [f"web1:22={KEY}"], None),
        ("web1", [f"10.1.2.0/30={KEY}"], None),
    ],
)
def test_a_host_key_is_given_for_a_host_or_for_one_of_its_ports(host: str, given: list[str], taken: str | None) -> None:
    if taken is None:
        with pytest.raises(SettingsError, match="--host-key"):
            _requests([host], [], 22, _given_keys(given))
        return
    [request] = _requests([host], [], 22, _given_keys(given))
    assert request.host_key == taken


def test_a_host_named_in_a_file_takes_its_key_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "hosts.csv").write_text("address,port\nweb1,2299\nweb2,\n")
    given = _given_keys([f"web1:2299={KEY}", f"web2:22={OTHER_KEY}"])
    found = _requests([], [tmp_path / "hosts.csv"], 22, given)
    assert [request.host_key for request in found] == [KEY, OTHER_KEY]
