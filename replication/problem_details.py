"""Problem details (RFC 9457) as a caller receives them, back into the error tree. Called by every client of a daemon's HTTP surface.

Apart from ``service/problem.py``, which makes them, so that a command needs no HTTP server to start.
"""

from __future__ import annotations

import json
from typing import Final

from replication import errors

TYPE_PREFIX: Final = "urn:blockferry:error:"
_MAX_PROBLEM_BYTES: Final = 64 * 1024
_MAX_RETRY_AFTER_S: Final = 3600.0


def _kinds_by_code() -> dict[str, type[errors.BlockferryError]]:
    """Every class of the tree by its code, those declared beside a protocol (``data_plane``) included."""
    found: dict[str, type[errors.BlockferryError]] = {}
    pending: list[type[errors.BlockferryError]] = [errors.BlockferryError]
    while pending:
        kind = pending.pop()
        if "code" in vars(kind):  # not one that a subclass inherits
            found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found


def error_from_problem(status: int, body: bytes, peer: str) -> errors.BlockferryError:
    """Rebuild the error that ``peer`` answered with; an answer that is no problem document becomes the class its status suggests.

    Nothing in ``body`` makes this raise, and a ``retry_after_s`` beyond reason counts as none.
    """
    try:
        document = json.loads(body[:_MAX_PROBLEM_BYTES])
        code = str(document["type"]).removeprefix(TYPE_PREFIX)
        kind = _kinds_by_code()[code]
        message = str(document["detail"]).strip()
    except (ValueError, KeyError, TypeError, RecursionError):
        message = ""
    if not message:
        return _kind_for_status(status)(f"cannot use the answer of {peer}: HTTP status {status}")
    hint = document.get("hint")
    error = kind(
        message,
        disk=_text(document.get("disk")),
        epoch=_integer(document.get("epoch")),
        offset_bytes=_integer(document.get("offset_bytes")),
        hint=_text(hint),
    )
    if isinstance(error, errors.Retryable):
        retry_after = document.get("retry_after_s")
        if isinstance(retry_after, int | float) and 0 <= retry_after <= _MAX_RETRY_AFTER_S:
            error.retry_after_s = float(retry_after)
    return error


def _kind_for_status(status: int) -> type[errors.BlockferryError]:
    if status in (401, 403):
        return errors.Refused
    if status == 404:
        return errors.NotFound
    if status in (408, 429) or (status >= 500 and status not in (501, 505)):
        return errors.Retryable
    return errors.Permanent


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
