"""The audit log's records, which of a server's answers become one, and the chain that makes a change of them visible.

Called by ``audit.py`` and ``api/routes.py``.

Each record carries the digest of the one before it and its own over everything in it. Who takes one out of the middle, puts one in or
changes one has to make every later one anew, and a copy of a single later digest (each export has it) shows that. The oldest records are
dropped when they are old; the chain then begins with the oldest that is left. The chain alone does not show that the newest were taken
out, nor that all of it was made anew: a digest that was noted down outside of the database does, being there no more. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

BEGINNING: Final = "0" * 64
MAX_DETAIL: Final = 500
MAX_TARGET: Final = 500
_READING: Final = ("GET", "HEAD")
_REFUSED: Final = (401, 403)
_PATIENCE: Final = 503
_FIRST_FAILURE: Final = 400
NOBODY: Final = "nobody"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who (``actor``, by which ``credential``), from where, did what to what, with which HTTP status and, if it failed, why.

    ``repeats``: how often the same refusal came since the record of it before this, without one of its own.
    """

    time_ns: int
    actor: str
    credential: str | None
    remote: str
    action: str
    target: str
    status: int
    detail: str
    repeats: int = 0


def digest_of(record: AuditRecord, previous: str) -> str:
    content = json.dumps([previous, asdict(record)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def first_broken(chain: Iterable[tuple[AuditRecord, str, str]]) -> int | None:
    """The index of the first of ``(record, previous, digest)``, oldest first, that does not follow from the one before; None: all do."""
    expected: str | None = None
    for index, (record, previous, digest) in enumerate(chain):
        if (expected is not None and previous != expected) or digest_of(record, previous) != digest:
            return index
        expected = digest
    return None


def is_recorded(method: str, *, for_operators: bool, for_anybody: bool, status: int) -> bool:
    """Every refusal; every attempt of an operator to change something; every attempt to get an identity. Nobody's reading, and not what
    agents and process servers report every few seconds.
    """
    return status in _REFUSED or ((for_operators or for_anybody) and method not in _READING)


def may_be_summed_up(record: AuditRecord) -> bool:
    """Whether many like it may become one with their number: refusals, and what fails for one who is not known. Not so what a known
    operator tried and did not achieve.
    """
    refused = record.status in (*_REFUSED, _PATIENCE)
    return refused or (record.actor == NOBODY and record.status >= _FIRST_FAILURE)
