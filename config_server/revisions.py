"""Revisions of documents that are changed whole: who read one and changes it does not undo what another changed meanwhile. Called by
the API's limits of agents and process servers, and its policies.

A revision is the document's digest, so it needs no memory; a document that was changed and changed back is the one that was read.
"""

from __future__ import annotations

import hashlib
from typing import Final

from replication.documents import Document
from replication.errors import Conflict

_DIGITS: Final = 16


def revision_of(document: Document) -> str:
    return hashlib.sha256(document.model_dump_json().encode()).hexdigest()[:_DIGITS]


def check_revision(present: Document, wanted: str | None, what: str) -> None:
    """Within the transaction that changes ``present``. ``wanted``: the revision that was read; None: whatever it is.

    :raises Conflict: if it is another one by now.
    """
    if wanted is not None and wanted != revision_of(present):
        raise Conflict(
            f"cannot change {what}: somebody changed this meanwhile; nothing was changed",
            hint="look at it as it is now, and try again",
        )
