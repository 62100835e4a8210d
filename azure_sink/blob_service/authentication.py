"""Who calls: Shared Key in the Authorization header, checked in constant time, no older than 15 minutes.

Called by ``app.py`` before anything else is done with a request. Anonymous requests, Shared Key Lite, SAS and bearer tokens are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode
from replication.blob_client.foreign_text import parse_date
from replication.shared_key import SCHEME, is_signed_by

MAX_CLOCK_SKEW_S: Final = 15 * 60


def authenticate(
    *,
    account: str,
    keys: Sequence[bytes],
    method: str,
    raw_target: str,
    headers: Mapping[str, str],
    now: float,
) -> None:
    """Return if the request is signed by one of the account's ``keys`` and is fresh.

    :raises StorageFault: NoAuthenticationInformation, InvalidAuthenticationInfo, AuthenticationFailed.
    """
    shown = headers.get("Authorization")
    if shown is None:
        raise StorageFault(StorageCode.NO_AUTHENTICATION_INFORMATION)
    scheme, _, credentials = shown.partition(" ")
    name, colon, given = credentials.strip().partition(":")
    if scheme != SCHEME or not colon:
        raise StorageFault(StorageCode.INVALID_AUTHENTICATION_INFO, f"Only {SCHEME} is accepted.")
    if name != account:
        raise StorageFault(StorageCode.AUTHENTICATION_FAILED, "The account is another.")
    _check_fresh(headers.get("x-ms-date", headers.get("Date")), now)
    if not is_signed_by(keys, account, given, method, raw_target, headers):
        raise StorageFault(StorageCode.AUTHENTICATION_FAILED, "The signature does not match.")


def _check_fresh(date: str | None, now: float) -> None:
    if date is None:
        raise StorageFault(StorageCode.AUTHENTICATION_FAILED, "Neither x-ms-date nor Date is there.")
    try:
        skew = abs(parse_date(date).timestamp() - now)
    except ValueError:
        raise StorageFault(StorageCode.AUTHENTICATION_FAILED, "The date cannot be read.") from None
    if skew > MAX_CLOCK_SKEW_S:
        raise StorageFault(StorageCode.AUTHENTICATION_FAILED, "The date is more than 15 minutes off.")
