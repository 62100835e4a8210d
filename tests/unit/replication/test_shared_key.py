"""Shared Key: the documented examples, and that signer and verifier agree while tampering is noticed."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.shared_key import authorization, is_signed_by, string_to_sign

KEY = b"k" * 32


def test_the_documented_example_of_get_container_metadata() -> None:
    """From "Authorize with Shared Key", section "Signature string"."""
    headers = {
        "x-ms-date": "Fri, 26 Jun 2015 23:39:12 GMT",
        "x-ms-version": "2015-02-21",
    }
    expected = (
        "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n"
        "/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    )
    target = "/mycontainer?restype=container&comp=metadata&timeout=20"
    assert string_to_sign("myaccount", "GET", target, headers) == expected


def test_query_values_are_decoded_sorted_and_joined() -> None:
    text = string_to_sign("a", "GET", "/c?include=snapshots&Include=metadata&prefix=x%2Fy+z&comp=list", {})
    assert text.endswith("\n/a/c\ncomp:list\ninclude:metadata,snapshots\nprefix:x/y z")


def test_the_path_is_signed_as_it_was_sent() -> None:
    assert string_to_sign("a", "PUT", "/a/c/b%20l%C3%BCb", {}).endswith("\n/a/a/c/b%20l%C3%BCb")


def test_a_length_of_zero_and_a_date_beside_x_ms_date_are_empty() -> None:
    headers = {"Content-Length": "0", "Date": "today", "x-ms-date": "now"}
    assert string_to_sign("a", "PUT", "/", headers) == "PUT" + "\n" * 12 + "x-ms-date:now\n/a/"


def test_header_names_are_sorted_as_the_service_does() -> None:
    headers = {"x-ms-meta-ab": "1", "x-ms-meta-a_b": "2", "X-Ms-Meta-A1": "3"}
    lines = string_to_sign("a", "GET", "/", headers).splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("x-ms-")] == [
        "x-ms-meta-a_b",
        "x-ms-meta-a1",
        "x-ms-meta-ab",
    ]


def test_a_client_that_sorts_by_code_point_is_accepted() -> None:
    headers = {"x-ms-meta-a_b": "2", "x-ms-meta-a1": "3", "x-ms-date": "now"}
    text = "GET" + "\n" * 12 + "x-ms-date:now\nx-ms-meta-a1:3\nx-ms-meta-a_b:2\n/a/c"
    shown = base64.b64encode(hmac.digest(KEY, text.encode(), hashlib.sha256)).decode()
    assert is_signed_by([KEY], "a", shown, "GET", "/c", headers)


@given(
    st.dictionaries(st.from_regex(r"x-ms-[a-z_0-9-]{1,12}", fullmatch=True), st.text("abc 1", max_size=5), max_size=6),
    st.text("abc/%2F", max_size=12),
)
def test_what_is_signed_is_verified_and_any_change_is_noticed(headers: dict[str, str], path: str) -> None:
    target = f"/c/{path}?comp=list"
    shown = authorization("account", KEY, "PUT", target, headers).removeprefix("SharedKey account:")
    assert is_signed_by([b"other" * 8, KEY], "account", shown, "PUT", target, headers)
    assert not is_signed_by([b"other" * 8], "account", shown, "PUT", target, headers)
    assert not is_signed_by([KEY], "account", shown, "GET", target, headers)
    assert not is_signed_by([KEY], "account", shown, "PUT", target + "x", headers)
    assert not is_signed_by([KEY], "account", shown, "PUT", target, {**headers, "x-ms-more": "1"})


@pytest.mark.parametrize("shown", ["", "no base64", "AAAA", "é"])
def test_what_is_no_signature_is_refused(shown: str) -> None:
    assert not is_signed_by([KEY], "a", shown, "GET", "/", {})
