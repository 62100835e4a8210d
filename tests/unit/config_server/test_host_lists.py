"""Hosts as operators write them, one by one and in files: what they become, and where a mistake is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config_server.core.host_import import read_host_file
from config_server.core.host_list import Host, expand, parse_hosts
from replication.errors import InvalidInput
from replication.remote_access import MAX_HOSTS

KEY = "SHA256:" + "k" * 43


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web1.example", [Host("web1.example")]),
        ("admin@web1:2222", [Host("web1", 2222, "admin")]),
        ("10.1.2.3", [Host("10.1.2.3")]),
        ("2001:DB8::1", [Host("2001:db8::1")]),
        ("root@[2001:db8::1]:22", [Host("2001:db8::1", 22, "root")]),
        ("10.1.2.0/30", [Host("10.1.2.1", of_range=True), Host("10.1.2.2", of_range=True)]),
        (
            "u@10.1.2.9-10.1.2.10",
            [Host("10.1.2.9", user="u", of_range=True), Host("10.1.2.10", user="u", of_range=True)],
        ),
    ],
)
def test_host_is_read(text: str, expected: list[Host]) -> None:
    assert parse_hosts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a b", "web_1;rm", "-oProxyCommand=x", "web1:0", "web1:99999", "web1:ssh", "10.1.2.300", "[::1", "$(id)"),
        *(
            "10.0.0.0/8",
            "2001:db8::/64",
            "10.1.2.1/24",
            "10.1.2.9-10.1.2.1",
            "10.0.0.1-10.9.0.1",
            "a b@web1",
            "10.1.2.0/33",
            *("::1", "[::ffff:10.0.0.1]:22", "::/126", "fe80::1%eth0", "::"),
        ),
    ],
)
def test_what_is_no_host_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_hosts(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0", "0.0.0.0 stands for every address"),  # noqa: S104 - refused
        ("root@0.0.0.0:22", "stands for every address"),
        ("0.0.0.0-0.0.0.4", "stands for every address"),
        ("255.255.255.255", "is the broadcast address"),
        ("255.255.255.252-255.255.255.255", "is the broadcast address"),
        ("224.0.0.1", "is a multicast address"),
        ("239.1.2.0/30", "239.1.2.1 is a multicast address"),
        ("[ff02::1]:22", "ff02::1 is a multicast address"),
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        ("127.0.0.0/28", "127.0.0.1 is a loopback address"),
        ("126.255.255.254-127.0.0.1", "127.0.0.0 is a loopback address"),
        ("root@127.8.9.10:2222", "is a loopback address"),
        ("::1", "::1 is a loopback address"),
        ("::ffff:127.0.0.1", "is a loopback address"),
        ("localhost", "localhost is the process server itself"),
        ("db.LocalHost:22", "is the process server itself"),
        ("169.254.169.254", "169.254.169.254 is a link-local address"),
        ("169.254.0.0/24", "is a link-local address"),
        ("[::ffff:169.254.169.254]:22", "is a link-local address"),
        ("fe80::1", "fe80::1 is a link-local address"),
        ("0.0.0.0/22", "0.0.0.1 is an address of no network"),
        ("0.1.2.3", "is an address of no network"),
        ("[::ffff:224.0.0.1]:22", "is a multicast address"),
        ("168.63.129.16", "is a service of the cloud"),
        ("fd00:ec2::254", "is a service of the cloud"),
    ],
)
def test_what_is_no_machine_s_address_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        parse_hosts(text)


def test_a_laboratory_may_have_its_servers_at_loopback_addresses_and_nothing_else_of_the_kind() -> None:
    for text in ("127.0.0.1", "localhost:2222", "127.0.0.0/30"):
        assert parse_hosts(text, allow_loopback=True)
    for text in ("169.254.169.254", "0.1.2.3", "224.0.0.1", "fe80::1"):
        with pytest.raises(InvalidInput):
            parse_hosts(text, allow_loopback=True)


def test_each_host_comes_once_and_a_named_one_is_missed_when_silent() -> None:
    hosts = [*parse_hosts("10.1.2.0/30"), *parse_hosts("10.1.2.1"), *parse_hosts("10.1.2.2:23")]
    found = expand(hosts, user="root", port=22)
    assert found == [
        Host("10.1.2.1", 22, "root"),
        Host("10.1.2.2", 22, "root", of_range=True),
        Host("10.1.2.2", 23, "root"),
    ]


def test_at_most_a_slash_22_at_once() -> None:
    assert len(expand(parse_hosts("10.1.0.0/22"), user="root", port=22)) == MAX_HOSTS
    with pytest.raises(InvalidInput, match="more than"):
        expand([*parse_hosts("10.1.0.0/22"), Host("web1")], user="root", port=22)
    with pytest.raises(InvalidInput, match="no host"):
        expand([], user="root", port=22)


CSV = f"""\ufeffAddress,port,user,host_key
web1.example,2222,admin,{KEY}

"10.1.2.0/30",,,
"""
YAML = f"""# servers of the lab
- web1.example
- address: web2
  port: 2222
  user: admin
  host_key: {KEY}
"""


def test_csv_yaml_and_text_are_read() -> None:
    assert read_host_file("h.csv", CSV) == [Host("web1.example", 2222, "admin", KEY), *parse_hosts("10.1.2.0/30")]
    assert read_host_file("h.yml", YAML) == [Host("web1.example"), Host("web2", 2222, "admin", KEY)]
    assert read_host_file("hosts", "# all\n web1 # the first\n\nadmin@web2\n") == [
        Host("web1"),
        Host("web2", user="admin"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("h.csv", "address,port\nweb1,22\nweb2,x\n", "line 3, column 2: 'x' is no port"),
        ("h.csv", "address,colour\n", "line 1, column 2: 'colour' is no heading"),
        ("h.csv", "port\n22\n", "line 1, column 1: there is no heading address"),
        ("h.csv", "address\nweb1,22\n", "line 2, column 2: there are 2 fields"),
        ("h.csv", "port,address\n22,\n", "line 2, column 2: the address is missing"),
        ("h.csv", 'address\n"web1\n', "line 2, column 1"),
        ("h.csv", f"address,host_key\n10.1.2.0/30,{KEY}\n", "line 2, column 2: a network or range cannot"),
        ("h.yaml", "- web1\n- address: web2\n  port: x\n", "line 3, column 9: 'x' is no port"),
        ("h.yaml", "- web1\n- {adress: web2}\n", "line 2, column 4: 'adress' is no key"),
        ("h.yaml", "- web1\n- port: 3\n", "line 2, column 3: the address is missing"),
        ("h.yaml", "hosts: [web1]\n", "line 1, column 1: it is no list"),
        ("h.yaml", "- [web1]\n", "line 1, column 3: a host is a text"),
        ("h.yaml", "- web1\n- 'web2\n", "line 3, column 1"),
        ("h.yaml", "- address: web1\n  user: 'a b'\n", "line 2, column 9: 'a b' is no user name"),
        ("h.yaml", f"- address: web1\n  host_key: {KEY}x\n", "line 2, column 13"),
        ("hosts", "web1\n  web 2\n", "line 2, column 3: 'web 2' as a host"),
        ("hosts", "web1\n ::1\n", "line 2, column 2: '::1' as a host"),
        ("h.csv", "port,address\n22,fe80::1%eth0\n", "line 2, column 2: 'fe80::1%eth0' as a host"),
        ("hosts", "10.1.0.0/22\n10.2.0.0/22\n", "line 2, column 1: more than 1022 hosts"),
        ("hosts", "\n# nothing\n", "line 1, column 1: it names no host"),
    ],
)
def test_mistake_is_told_with_line_and_column(name: str, text: str, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_host_file(name, text)
    assert f"cannot use {name}: {place}" in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(("h.csv", "h.yaml", "h")), st.text(alphabet="-[]{}:,\"'#&*! \n\tawe1./@|>", max_size=60))
def test_any_file_is_read_or_refused(name: str, text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert read_host_file(name, text)
