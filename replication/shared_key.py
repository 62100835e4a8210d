"""Shared Key: what is signed of a Blob request, the signature, and its verification. Pure functions, no clock.

Called by the Blob client (sign) and the Blob service (verify), so that both read the rules here once.
Source: Azure Storage REST, "Authorize with Shared Key", the form of version 2015-02-21 and later:

    StringToSign = VERB \\n Content-Encoding \\n Content-Language \\n Content-Length (empty if 0) \\n Content-MD5 \\n Content-Type \\n
                   Date \\n If-Modified-Since \\n If-Match \\n If-None-Match \\n If-Unmodified-Since \\n Range \\n
                   CanonicalizedHeaders CanonicalizedResource
    Authorization: SharedKey ACCOUNT:base64(HMAC-SHA256(key, StringToSign))

The canonicalized resource is ``/ACCOUNT`` and the path as sent (so a path-style address has the account twice), then each query
parameter, decoded, as ``\\nname:value``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote_plus

SCHEME: Final = "SharedKey"

_SIGNED_HEADERS: Final = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
_WEIGHTS: Final = {
    character: weight for weight, character in enumerate("!#$%&*.^_`|~+0123456789abcdefghijklmnopqrstuvwxyz")
}
_IGNORED_AT_FIRST: Final = "-'"


SortKey = tuple[list[int], list[bool]]


def _service_order(name: str) -> SortKey:
    """Sort key of header names as the service sorts them: as a dictionary would, hyphens deciding only between equals."""
    return (
        [_WEIGHTS.get(character, len(_WEIGHTS)) for character in name if character not in _IGNORED_AT_FIRST],
        [character in _IGNORED_AT_FIRST for character in name],
    )


def _code_point_order(name: str) -> SortKey:
    return ([ord(character) for character in name], [])


def string_to_sign(
    account: str,
    method: str,
    raw_target: str,
    headers: Mapping[str, str],
    *,
    order: Callable[[str], SortKey] = _service_order,
) -> str:
    """The text that is signed.

    :param raw_target: the request target exactly as on the wire, still percent-encoded: ``/path?query``.
    :param headers: any case-insensitive mapping, or one with lower-case names; values as on the wire.
    """
    lower = {
        name.lower(): " ".join(value.split()) if "\n" in value else value.strip() for name, value in headers.items()
    }
    if lower.get("content-length") == "0":
        lower["content-length"] = ""
    if "x-ms-date" in lower:
        lower["date"] = ""
    lines = [method.upper(), *(lower.get(name, "") for name in _SIGNED_HEADERS)]
    lines += [f"{name}:{lower[name]}" for name in sorted((n for n in lower if n.startswith("x-ms-")), key=order)]
    path, _, query = raw_target.partition("?")
    lines.append(f"/{account}{path}")
    lines += [f"{name}:{','.join(sorted(values))}" for name, values in sorted(_query_values(query).items())]
    return "\n".join(lines)


def _query_values(query: str) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for pair in query.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            values.setdefault(unquote_plus(name).lower(), []).append(unquote_plus(value))
    return values


def signature(key: bytes, text: str) -> str:
    """base64(HMAC-SHA256(key, text)) with ``text`` in UTF-8."""
    return base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode("ascii")


def authorization(account: str, key: bytes, method: str, raw_target: str, headers: Mapping[str, str]) -> str:
    """The value of ``Authorization`` for a request; every signed header, ``x-ms-date`` among them, must be in ``headers``."""
    return f"{SCHEME} {account}:{signature(key, string_to_sign(account, method, raw_target, headers))}"


def is_signed_by(
    keys: Sequence[bytes], account: str, shown: str, method: str, raw_target: str, headers: Mapping[str, str]
) -> bool:
    """Whether ``shown`` (the base64 after ``ACCOUNT:``) is the signature of the request by one of ``keys``.

    Header names may have been sorted as the service does or by code point: clients differ. Compared in constant time.
    """
    try:
        given = base64.b64decode(shown, validate=True)
    except (binascii.Error, ValueError):
        return False
    for order in (_service_order, _code_point_order):
        text = string_to_sign(account, method, raw_target, headers, order=order).encode()
        if any(hmac.compare_digest(given, hmac.digest(key, text, hashlib.sha256)) for key in keys):
            return True
    return False
