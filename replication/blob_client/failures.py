"""What a Blob call can fail with: the error tree's classes, plus the service's own code and HTTP status.

Raised by every ``BlobClient``. Callers catch the tree's class (``NotFound``, ``Conflict``, ``Refused``, ``Retryable``, ...) or the
one here where they look at ``storage_code``. Pure values; the mapping from an HTTP answer is ``failure_from_answer``.

    NotFound      ← BlobNotFound          404
    Conflict      ← BlobConflict          409, 412: exists already, condition not met, lease held by another
    Refused       ← BlobRefused           401, 403
    InvalidInput  ← BlobInputRefused      400, 405, 411, 413, 416: the request cannot be right
    Unsupported   ← BlobUnsupported       501: the endpoint has no such operation
    Overloaded    ← BlobOverloaded        429, 503: ServerBusy
    Retryable     ← BlobServiceFailed     other 5xx; the operation may or may not have happened
    PeerUnavailable, PeerProtocolError as they stand: no answer in time; an answer that breaks the protocol
"""

from __future__ import annotations

from replication.errors import (
    BlockferryError,
    Conflict,
    InvalidInput,
    NotFound,
    Overloaded,
    PeerProtocolError,
    Refused,
    Retryable,
    Unsupported,
)


class BlobNotFound(NotFound):
    """No such container, blob or snapshot."""

    storage_code: str = "BlobNotFound"
    status: int = 404


class BlobConflict(Conflict):
    """The blob's present state forbids it: existence, a condition header, a lease, a sequence number."""

    storage_code: str = "ConditionNotMet"
    status: int = 412


class BlobRefused(Refused):
    """The account key or the clock is wrong, or the account may not do this."""

    storage_code: str = "AuthenticationFailed"
    status: int = 403


class BlobInputRefused(InvalidInput):
    """The service says that the request itself is wrong."""

    storage_code: str = "InvalidInput"
    status: int = 400


class BlobUnsupported(Unsupported):
    """The endpoint does not have this operation; it will not have it later either."""

    storage_code: str = "NotImplemented"
    status: int = 501


class BlobOverloaded(Overloaded):
    """The service asks for patience (or its file system is full); nothing was accepted."""

    storage_code: str = "ServerBusy"
    status: int = 503


class BlobServiceFailed(Retryable):
    """The service failed inside; whether the operation happened is unknown."""

    storage_code: str = "InternalError"
    status: int = 500


BlobFailure = (
    BlobNotFound | BlobConflict | BlobRefused | BlobInputRefused | BlobUnsupported | BlobOverloaded | BlobServiceFailed
)


def _class_of(status: int) -> type[BlobFailure] | None:
    match status:
        case 404:
            return BlobNotFound
        case 409 | 412:
            return BlobConflict
        case 401 | 403:
            return BlobRefused
        case 400 | 405 | 411 | 413 | 416 | 431:
            return BlobInputRefused
        case 429 | 503:
            return BlobOverloaded
        case 501:
            return BlobUnsupported
        case _ if status >= 500:
            return BlobServiceFailed
        case _:
            return None


def failure_from_answer(
    status: int, storage_code: str, what: str, retry_after_s: float | None = None
) -> BlockferryError:
    """The error for an HTTP ``status`` outside 2xx and 304; ``what`` completes "cannot ..." and names the blob."""
    kind = _class_of(status)
    if kind is None:
        return PeerProtocolError(f"cannot {what}: unexpected HTTP status {status}")
    failure = kind(f"cannot {what}: {storage_code or 'no error code'} (HTTP status {status})")
    failure.storage_code = storage_code
    failure.status = status
    if isinstance(failure, Retryable):
        failure.retry_after_s = retry_after_s
    if isinstance(failure, BlobRefused):
        failure.hint = "check the account's name and key, and that the clocks agree within 15 minutes"
    return failure
