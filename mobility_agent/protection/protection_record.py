"""What the agent must remember of a protected disk besides its ledger: its generation with keys, and the duty to begin a new one.

Used by ``disk_supervisor``. One durable file per disk. A duty (``request``) is persisted before the configuration server is asked, so that
asking again after a crash gets the same generation.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final

from replication.control_plane import GenerationGrant
from replication.documents import Document, Uuid
from replication.durable_file import DurableFile, make_directory_durably

_FILE: Final = "protection.json"


class ProtectionState(Document):
    """``grant``: the present generation. ``request``: a new one is to be asked for, for ``reason``."""

    item: Uuid
    grant: GenerationGrant | None = None
    request: Uuid | None = None
    reason: str = ""
    obeyed_resync: Uuid | None = None
    """The newest resync order that was turned into a request."""


class ProtectionRecord:
    """One disk's record in ``directory``. Calls block; one caller at a time."""

    def __init__(self, directory: Path, item: str) -> None:
        make_directory_durably(directory)
        self._file = DurableFile(directory / _FILE)
        content = self._file.read()
        state = None if content is None else ProtectionState.decode(content)
        if state is None or state.item != item:
            state = ProtectionState(item=item)
        self.state = state

    def _save(self, state: ProtectionState) -> None:
        self._file.replace(state.encode())
        self.state = state

    def require_generation(self, reason: str, resync_order: str | None = None) -> str:
        """Persist the duty to begin a new generation and return its request; a duty that is there already stays."""
        changes: dict[str, object] = {}
        request = self.state.request
        if request is None:
            request = str(uuid.uuid4())
            changes |= {"request": request, "reason": reason}
        if resync_order is not None:
            changes["obeyed_resync"] = resync_order
        if changes:
            self._save(self.state.model_copy(update=changes))
        return request

    def fulfil(self, grant: GenerationGrant) -> None:
        """The new generation's ledger is durable: the duty is done."""
        self._save(self.state.model_copy(update={"grant": grant, "request": None, "reason": ""}))
