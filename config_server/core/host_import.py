"""Lists of hosts in files: plain text, CSV or YAML in, hosts out; what is wrong is named with its line and column. Pure.

Called by ``migratectl discover --file``. Keys are ``address`` (a host, a network or a range), ``port``, ``user`` and ``host_key``.

    CSV                                  YAML                                  text
    address,user,host_key                - address: web1.example               # a comment
    web1.example,admin,SHA256:…            host_key: SHA256:…                   web1.example
    10.1.2.0/24,root,                    - 10.1.2.0/24                         admin@10.1.2.7:2222
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NoReturn

import yaml

from config_server.core.host_list import Host, parse_hosts
from replication.errors import InvalidInput
from replication.remote_access import MAX_HOSTS

MAX_FILE_CHARACTERS: Final = 1024 * 1024
KEYS: Final = ("address", "port", "user", "host_key")
HOST_KEY: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_HINT: Final = f"keys: {', '.join(KEYS)}; address is a host, a network or a range"


@dataclass(frozen=True, slots=True)
class _Place:
    """Lines and columns count from 1."""

    file: str
    line: int
    column: int

    def complain(self, why: str, hint: str | None = None) -> NoReturn:
        raise InvalidInput(f"cannot use {self.file}: line {self.line}, column {self.column}: {why}", hint=hint or _HINT)


@dataclass(frozen=True, slots=True)
class _Value:
    text: str
    place: _Place


def read_host_file(name: str, text: str) -> list[Host]:
    """The hosts of a file; its name's end says what it is: ``.csv``, ``.yaml``, ``.yml``, else text.

    :raises InvalidInput: for what cannot be used; the message has file, line and column.
    """
    start = _Place(name, 1, 1)
    if len(text) > MAX_FILE_CHARACTERS:
        start.complain(f"it has more than {MAX_FILE_CHARACTERS} characters")
    lowered = name.lower()
    if lowered.endswith(".csv"):
        entries = _csv_entries(name, text)
    elif lowered.endswith((".yaml", ".yml")):
        entries = _yaml_entries(name, text)
    else:
        entries = _text_entries(name, text)
    found: list[Host] = []
    for entry in entries:
        found += _hosts(entry)
        if len(found) > MAX_HOSTS:
            entry["address"].place.complain(
                f"more than {MAX_HOSTS} hosts", "a /22 at most; begin one discovery for each"
            )
    if not found:
        start.complain("it names no host")
    return found


def _hosts(entry: Mapping[str, _Value]) -> list[Host]:
    address = entry["address"]
    try:
        hosts = parse_hosts(address.text, allow_loopback=True)  # whether the site does, it says itself
    except InvalidInput as error:
        address.place.complain(error.message.removeprefix("cannot use "), error.hint)
    port, user, key = (entry.get(name) for name in KEYS[1:])
    if port is not None:
        if not (port.text.isascii() and port.text.isdigit() and len(port.text) <= 5 and 0 < int(port.text) <= 65535):
            port.place.complain(f"{port.text[:100]!r} is no port", "1 to 65535")
        hosts = [replace(host, port=int(port.text)) for host in hosts]
    if user is not None:
        try:
            parsed = parse_hosts(f"{user.text}@host")[0].user
        except InvalidInput:
            user.place.complain(f"{user.text[:100]!r} is no user name")
        hosts = [replace(host, user=parsed) for host in hosts]
    if key is not None:
        if not HOST_KEY.fullmatch(key.text):
            key.place.complain(
                f"{key.text[:100]!r} is no fingerprint of a host key", "as `ssh-keygen -l` prints it: SHA256:…"
            )
        if len(hosts) > 1:
            key.place.complain("a network or range cannot have one host key", "name the hosts one by one")
        hosts = [replace(host, host_key=key.text) for host in hosts]
    return hosts


def _text_entries(name: str, text: str) -> Iterator[dict[str, _Value]]:
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0]
        if content.strip():
            place = _Place(name, number, len(content) - len(content.lstrip()) + 1)
            yield {"address": _Value(content.strip(), place)}


def _csv_entries(name: str, text: str) -> Iterator[dict[str, _Value]]:
    """Columns are counted in fields."""
    reader = csv.reader(text.removeprefix("\ufeff").splitlines(), strict=True)
    header: list[str] | None = None
    line = 0
    try:
        for row in reader:
            line, began = reader.line_num, line + 1
            if not any(field.strip() for field in row):
                continue
            if header is None:
                header = [field.strip().lower() for field in row]
                _check_header(name, began, header)
                continue
            if len(row) > len(header):
                _Place(name, began, len(header) + 1).complain(
                    f"there are {len(row)} fields under {len(header)} headings"
                )
            entry = {
                key: _Value(field.strip(), _Place(name, began, column))
                for column, (key, field) in enumerate(zip(header, row, strict=False), 1)
                if field.strip()
            }
            if "address" not in entry:
                _Place(name, began, header.index("address") + 1).complain("the address is missing")
            yield entry
    except csv.Error as error:
        _Place(name, line + 1, 1).complain(str(error))


def _check_header(name: str, line: int, header: list[str]) -> None:
    for column, key in enumerate(header, 1):
        if key not in KEYS:
            _Place(name, line, column).complain(f"{key[:100]!r} is no heading")
        if key in header[: column - 1]:
            _Place(name, line, column).complain(f"{key} a second time")
    if "address" not in header:
        _Place(name, line, 1).complain("there is no heading address")


def _yaml_entries(name: str, text: str) -> Iterator[dict[str, _Value]]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = _Place(name, 1, 1) if mark is None else _Place(name, mark.line + 1, mark.column + 1)
        place.complain(error.problem or "it is no YAML")
    except yaml.YAMLError as error:
        _Place(name, 1, 1).complain(str(error).splitlines()[0])
    except RecursionError:
        _Place(name, 1, 1).complain("it is nested too deeply")
    if root is None:
        return
    if not isinstance(root, yaml.SequenceNode):
        _place(name, root).complain("it is no list of hosts")
    for node in root.value:
        yield _yaml_entry(name, node)


def _yaml_entry(name: str, node: yaml.Node) -> dict[str, _Value]:
    if isinstance(node, yaml.ScalarNode):
        return {"address": _Value(str(node.value), _place(name, node))}
    if not isinstance(node, yaml.MappingNode):
        _place(name, node).complain("a host is a text, or keys and values")
    entry: dict[str, _Value] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in KEYS:
            _place(name, key).complain(f"{str(key.value)[:100]!r} is no key")
        if key.value in entry:
            _place(name, key).complain(f"{key.value} a second time")
        if not isinstance(value, yaml.ScalarNode):
            _place(name, value).complain(f"{key.value} is no text")
        entry[key.value] = _Value(str(value.value), _place(name, value))
    if "address" not in entry:
        _place(name, node).complain("the address is missing")
    return entry


def _place(name: str, node: yaml.Node) -> _Place:
    return _Place(name, node.start_mark.line + 1, node.start_mark.column + 1)
