"""Who owns a generation, and the key to seal with: asked of the configuration server once, kept in memory only.

Called by the batch, manifest and receipt handlers. Concurrent questions about one generation become one; refusals and failures are kept for
a short while, so that a confused agent does not become a storm at the configuration server. While that server is down, known generations
go on; who owns an unknown one is read from its record in the store, which is enough for manifests and receipts, not for batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from process_server.intake.keyed_locks import KeyedLocks
from replication.clock import Clock
from replication.control_plane import DataKeyGrant
from replication.errors import BlockferryError, NotFound, PeerProtocolError, Permanent, Refused, Retryable
from replication.identifiers import GenerationKey, MachineId
from replication.segment_keys import require_key
from replication.store_documents import GenerationRecord

MAX_GRANTS: Final = 4096
REFUSAL_KEPT_S: Final = 5.0
FAILURE_KEPT_S: Final = 1.0


class GrantSource(Protocol):
    """The configuration server, as far as grants go."""

    async def data_key(self, key: GenerationKey) -> DataKeyGrant: ...


class RecordSource(Protocol):
    """The store, as far as generation records go."""

    async def generation_record(self, key: GenerationKey) -> GenerationRecord | None: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """What is known of a generation. The key is never logged: this class has no representation of it."""

    machine: MachineId
    size_bytes: int
    data_key: bytes

    def __repr__(self) -> str:
        return f"Grant(machine={self.machine!r}, size_bytes={self.size_bytes})"


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BlockferryError
    until_s: float


class Grants:
    """The generations that may ship to this process server."""

    def __init__(
        self,
        source: GrantSource,
        records: RecordSource,
        clock: Clock,
        known_owner: Callable[[GenerationKey], MachineId | None] = lambda _key: None,
    ) -> None:
        """:param known_owner: of a generation that the spool holds something of."""
        self._source = source
        self._records = records
        self._clock = clock
        self._known_owner = known_owner
        self._granted: OrderedDict[GenerationKey, Grant] = OrderedDict()
        self._owners: OrderedDict[GenerationKey, MachineId] = OrderedDict()
        self._failed: OrderedDict[GenerationKey, _Failed] = OrderedDict()
        self._asking: KeyedLocks[GenerationKey] = KeyedLocks()

    async def for_batch(self, key: GenerationKey, machine: MachineId) -> Grant:
        """The grant of a generation of ``machine``'s.

        :raises Refused: if the disk is another machine's, or the configuration server refuses.
        :raises NotFound: if there is no such generation. :raises Retryable: if it is unknown here and nobody can be asked.
        """
        grant = self._granted.get(key) or await self._ask_once(key)
        if grant.machine != machine:
            raise _foreign(key)
        return grant

    async def check_owner(self, key: GenerationKey, machine: MachineId) -> None:
        """Return if the generation is ``machine``'s; raises as ``for_batch`` does."""
        grant = self._granted.get(key)
        owner = grant.machine if grant is not None else self._known_owner(key) or self._owners.get(key)
        if owner is None:
            owner = await self._owner_of(key)
        if owner != machine:
            raise _foreign(key)

    async def _owner_of(self, key: GenerationKey) -> MachineId:
        try:
            return (await self._ask_once(key)).machine
        except (Retryable, Refused):
            # Not answered, or assigned to another process server: what the store says of the owner holds all the same.
            record = await self._records.generation_record(key)
            if record is None:
                raise
            self._owners[key] = MachineId(record.machine)
            while len(self._owners) > MAX_GRANTS:
                self._owners.popitem(last=False)
            return self._owners[key]

    async def _ask_once(self, key: GenerationKey) -> Grant:
        async with self._asking.hold(key):
            found = self._granted.get(key)
            if found is not None:
                return found
            failed = self._failed.get(key)
            if failed is not None and self._clock.monotonic_s() < failed.until_s:
                raise failed.error.with_traceback(None)
            try:
                grant = _checked(key, await self._source.data_key(key))
            except BlockferryError as error:
                self._keep_failure(key, error)
                raise
            self._failed.pop(key, None)
            self._granted[key] = grant
            while len(self._granted) > MAX_GRANTS:
                self._granted.popitem(last=False)
            return grant

    def _keep_failure(self, key: GenerationKey, error: BlockferryError) -> None:
        kept_s = REFUSAL_KEPT_S if isinstance(error, Permanent) else FAILURE_KEPT_S
        self._failed[key] = _Failed(error, self._clock.monotonic_s() + kept_s)
        while len(self._failed) > MAX_GRANTS:
            self._failed.popitem(last=False)

    def forget(self, key: GenerationKey) -> None:
        """The generation is over: its key leaves the memory."""
        self._granted.pop(key, None)


def _foreign(key: GenerationKey) -> Refused:
    return Refused("cannot use this disk: it belongs to another machine", disk=key.disk)


def _checked(key: GenerationKey, grant: DataKeyGrant) -> Grant:
    if (grant.disk, grant.generation) != (key.disk, key.generation):
        raise PeerProtocolError("cannot use the grant of another generation", disk=key.disk)
    if grant.size_bytes <= 0:
        raise NotFound("cannot use the grant of an empty disk", disk=key.disk)
    return Grant(MachineId(grant.machine), grant.size_bytes, require_key(bytes.fromhex(grant.data_key), "a data key"))
