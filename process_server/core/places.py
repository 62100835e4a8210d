"""Where a record lies in the spool: the value that ties the backlog's entries to the log.

Called by the spool (which makes places), the backlog (which keeps them) and the uploader (which reads at them).
"""

from __future__ import annotations

from typing import NamedTuple


class RecordPlace(NamedTuple):
    """A durable record. ``number`` is unique in the spool; ``payload_bytes`` excludes header and padding."""

    file: int
    offset: int
    payload_bytes: int
    number: int


NOWHERE = RecordPlace(0, 0, 0, 0)
"""Of what is in the store and no longer, or never was, in this spool. Files and records count from 1."""
