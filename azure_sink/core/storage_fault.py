"""Why the Blob service refuses an operation: one exception that carries the service's error code. Pure.

Raised by the pure rules (``conditions``, ``lease``, ``byte_ranges``), the blob store and the request parser; turned into an answer
by ``blob_service/error_table.py``, which alone knows statuses and standard texts.
"""

from __future__ import annotations

from replication.blob_client.codes import StorageCode
from replication.errors import Permanent


class StorageFault(Permanent):
    """The operation was refused and changed nothing. ``detail`` is said beside the code's standard text."""

    code = "storage"

    def __init__(self, storage_code: StorageCode, detail: str = "") -> None:
        super().__init__(f"cannot do the blob operation: {storage_code.value}" + (f": {detail}" if detail else ""))
        self.storage_code = storage_code
        self.detail = detail


class NotModified(StorageFault):
    """A conditional read whose condition says that the caller has the newest state (304)."""

    def __init__(self) -> None:
        super().__init__(StorageCode.CONDITION_NOT_MET)
