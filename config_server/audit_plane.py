"""The audit log as operators see it: documents of the API, read by ``migratectl``. Called by both."""

from __future__ import annotations

from replication.documents import Document


class AuditEntry(Document):
    """``status``: the HTTP status of the answer; ``detail``: why it failed. ``repeats``: how often the same refusal came before this one
    without a record of its own. ``digest``: of this record and of ``previous``, the one before, so of all before it.
    """

    id: int
    at: str
    time_ns: int
    actor: str
    credential: str | None
    remote: str
    action: str
    target: str
    status: int
    detail: str
    repeats: int
    previous: str
    digest: str


class AuditVerdict(Document):
    """``first_broken``: the number of the first record that is not as it was written or does not follow from the one before.

    ``records``: how many there are; ``last``, ``last_digest``: number and digest of the newest; None: there is none. Noted down outside of
    the database they show later on whether the newest were taken out, which the chain alone does not.
    """

    whole: bool
    first_broken: int | None
    records: int
    last: int | None
    last_digest: str | None
