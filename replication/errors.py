"""The one error tree. The class says what the caller can do; the instance says which disk, epoch and offset, and a remedy.

    BlockferryError
    ├── Retryable                 the same call may succeed later; honour ``retry_after_s``
    │   ├── PeerUnavailable       no answer within the deadline, connection refused or cut
    │   └── Overloaded            the peer asks for patience (spool full, too many requests)
    ├── Permanent                 the same call will fail again; a person or another decision is needed
    │   ├── InvalidInput          malformed request, document or argument
    │   │   └── SettingsError     a configuration file that cannot be used
    │   ├── Refused               the caller may not do this (identity, ownership, state)
    │   ├── NotFound              the named thing does not exist
    │   ├── Conflict              another writer or an earlier, different content decided first
    │   │   └── KeyConflict       same batch key, other digest (rule R4): never retried, never success
    │   └── Unsupported           this machine cannot do it (kernel, privilege, device type)
    ├── ResyncRequired            tracking or history is lost; compare and repair in a new generation
    └── PeerProtocolError         the peer broke the protocol
        └── IntegrityError        a checksum, tag or signature does not match

Messages start with "cannot" and end without a full stop; the remedy is in ``hint``.
Every class has a stable ``code`` that appears in problem documents, logs and metrics.
"""

from __future__ import annotations

from typing import ClassVar


class BlockferryError(Exception):
    """Base of every error this product raises on purpose."""

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        disk: str | None = None,
        epoch: int | None = None,
        offset_bytes: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.disk = disk
        self.epoch = epoch
        self.offset_bytes = offset_bytes
        self.hint = hint

    @property
    def located(self) -> str:
        """What happened and where, without the hint: for documents that carry the hint apart."""
        where = [
            f"{name} {value}"
            for name, value in (("disk", self.disk), ("epoch", self.epoch), ("offset", self.offset_bytes))
            if value is not None
        ]
        return self.message if not where else f"{self.message} ({', '.join(where)})"

    def __str__(self) -> str:
        return self.located if self.hint is None else f"{self.located}; {self.hint}"


class Retryable(BlockferryError):
    """The same call may succeed later."""

    code = "retryable"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        disk: str | None = None,
        epoch: int | None = None,
        offset_bytes: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, disk=disk, epoch=epoch, offset_bytes=offset_bytes, hint=hint)
        self.retry_after_s = retry_after_s


class PeerUnavailable(Retryable):
    """No answer within the deadline, or no connection."""

    code = "peer-unavailable"


class Overloaded(Retryable):
    """The peer asks for patience; nothing was accepted."""

    code = "overloaded"


class Permanent(BlockferryError):
    """The same call will fail again."""

    code = "permanent"


class InvalidInput(Permanent):
    """A request, document or argument that cannot be understood."""

    code = "invalid-input"


class SettingsError(InvalidInput):
    """A configuration file that cannot be used; the message names the path inside the file."""

    code = "settings"


class Refused(Permanent):
    """The caller may not do this."""

    code = "refused"


class NotFound(Permanent):
    """The named thing does not exist."""

    code = "not-found"


class Conflict(Permanent):
    """Another writer, or earlier and different content, decided first."""

    code = "conflict"


class KeyConflict(Conflict):
    """Same key, other digest (R4): an error that is never retried and never taken for success."""

    code = "key-conflict"


class Unsupported(Permanent):
    """This machine cannot do it."""

    code = "unsupported"


class ResyncRequired(BlockferryError):
    """Tracking or history is lost: only a resync makes the replica trustworthy again."""

    code = "resync-required"


class PeerProtocolError(BlockferryError):
    """The peer broke the protocol; the connection's content is worthless."""

    code = "protocol"


class IntegrityError(PeerProtocolError):
    """A checksum, authentication tag or signature does not match."""

    code = "integrity"
