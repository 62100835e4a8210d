"""What the agent must remember of a protected disk besides its ledger: its generation with keys, and the duty to begin a new one.

Used by ``disk_supervisor``. One durable file per disk. A duty (``request``) is persisted before the configuration server is asked, so that
asking again after a crash gets the same generation. Its reason tells the configuration server whether recovery points are in doubt
(R12): none are if it is an operator's order, so an order's reason never covers a loss that came after it.
"""

from __future__ import annotations

import logging
import threading
import uuid
from pathlib import Path
from typing import Final

from pydantic import Field

from replication.control_plane import GenerationGrant
from replication.documents import Document, Uuid
from replication.durable_file import DurableFile, make_directory_durably
from replication.errors import PeerProtocolError

_FILE: Final = "protection.json"
_REMEMBERED_ORDERS: Final = 64

_logger = logging.getLogger(__name__)


class ProtectionState(Document):
    """``grant``: the present generation. ``request``: a new one is to be asked for, for ``reason``."""

    item: Uuid
    grant: GenerationGrant | None = None
    request: Uuid | None = None
    reason: str = ""
    is_ordered: bool = False
    """``reason`` is an operator's order's: nothing was lost when it was given."""
    distrust_digests: bool = False
    """The replica is not what the digest table says (the sink's history is not this agent's, or an operator's order says so): the new
    generation must not rest on the table. What is asked for under ``request`` never changes in this."""
    obeyed_resyncs: list[Uuid] = Field(default_factory=list)
    """The newest resync orders that were turned into a request."""


class ProtectionRecord:
    """One disk's record in ``directory``. Calls block; callers in several threads wait for one another."""

    def __init__(self, directory: Path, item: str) -> None:
        make_directory_durably(directory)
        self._file = DurableFile(directory / _FILE)
        self._lock = threading.Lock()
        content = self._file.read()
        self.state = self._usable(content, item)

    def _usable(self, content: bytes | None, item: str) -> ProtectionState:
        try:
            state = None if content is None else ProtectionState.decode(content)
        except PeerProtocolError as error:
            # A new generation and a full comparison make up for it: better than a disk that never replicates again.
            _logger.warning(
                "the protection record is damaged",
                extra={"fields": {"file": str(self._file.path), "error": str(error)}},
            )
            return ProtectionState(item=item, distrust_digests=True)
        return state if state is not None and state.item == item else ProtectionState(item=item)

    def _save(self, **changes: object) -> None:
        state = self.state.model_copy(update=changes)
        self._file.replace(state.encode())
        self.state = state

    def has_obeyed(self, order: str) -> bool:
        return order in self.state.obeyed_resyncs

    def require_generation(self, reason: str, *, order: str | None = None, distrust_digests: bool = False) -> str:
        """Persist the duty to begin a new generation and return its request; a duty that is there already stays, unless it was an
        operator's order and this is none: then the loss is the reason. It gets a request of its own, since the order's may have been
        answered already, as one that harms no recovery point.

        But one that trusts the digest table becomes another one if it must not: under the request that it had, a generation may have been
        granted and opened on the table already.

        :param order: the operator's order that this obeys.
        """
        with self._lock:
            changes: dict[str, object] = {}
            request = self.state.request
            if request is None or (self.state.is_ordered and order is None):
                request = str(uuid.uuid4())
                changes |= {"request": request, "reason": reason, "is_ordered": order is not None}
            elif distrust_digests and not self.state.distrust_digests:
                request = str(uuid.uuid4())
                changes |= {"request": request, "reason": f"{self.state.reason}; {reason}"}
            if order is not None and not self.has_obeyed(order):
                changes["obeyed_resyncs"] = [*self.state.obeyed_resyncs, order][-_REMEMBERED_ORDERS:]
            if distrust_digests and not self.state.distrust_digests:
                changes["distrust_digests"] = True
            if changes:
                self._save(**changes)
            return request

    def renew_request(self) -> None:
        """The duty is asked for under another name: the configuration server refuses the present one for ever."""
        with self._lock:
            if self.state.request is not None:
                self._save(request=str(uuid.uuid4()))

    def fulfil(self, grant: GenerationGrant, request: str | None) -> None:
        """The ledger of the generation that was granted to ``request`` is durable: that duty is done. One that came meanwhile stays."""
        with self._lock:
            if self.state.request == request:
                self._save(grant=grant, request=None, reason="", is_ordered=False, distrust_digests=False)
            else:
                self._save(grant=grant)
