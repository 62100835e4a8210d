"""Whether authority and key-encryption key are the ones that the site's database was made with.

Called by ``installation.py`` (init), ``daemon.py`` (each start) and ``database_image.py`` (backup and its proof). A server with an
authority of its own would hand out certificates that nobody else trusts; with another key-encryption key it could not open one disk's keys,
and a backup of that key would be worth nothing. Of the authority the database knows the fingerprint, of the key something that only it
unwraps. An SQLite database of before it knew them learns them at the first start, if that key opens the digest key of one of its disks, or
if no disk has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from config_server.authority import TrustStore
from config_server.database import Database
from config_server.key_encryption import WITH_CREDENTIAL, KeyEncryptionKey
from config_server.server_tables import ONLY, SiteKeysRow
from config_server.tables import DiskRow
from replication.errors import IntegrityError, SettingsError
from replication.tls_identity import fingerprint

_CONTENT: Final = bytes(32)
_OF_NO_DISK: Final = "the site's keys"
_HINT_OF_SEVERAL: Final = (
    "copy authority/ and the key-encryption key from the configuration server that is there already "
    "(docs/operations/postgresql.md#a-second-configuration-server)"
)
HINT: Final = (
    "put the site's own authority/ and key-encryption key back, from the backup if need be; a key that systemd hands to the daemon as a "
    f"credential is seen only by a command that is run with it: {WITH_CREDENTIAL}; "
    "if they are lost for good: `config-server init --replace-keys`"
)
"""What to do where the keys of a database are missing, or others are in their place."""


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What a database knows of its site's keys. ``digest_keys``: of each disk that has one, its identifier and the wrapped key."""

    authority_fingerprint: str | None
    key_check: str | None
    digest_keys: Iterable[tuple[str, str]]

    def fault(self, trust_store: TrustStore, key: KeyEncryptionKey) -> str | None:
        """Why these are not its keys; None if they are, or if it knows of none.

        Without ``key_check`` one disk's key that opens is enough: others may be of a key that was replaced.
        """
        if self.authority_fingerprint is not None and self.authority_fingerprint not in _trusted(trust_store):
            return f"its authority is {self.authority_fingerprint}, not {trust_store.load().fingerprint}"
        wrapped = self.digest_keys if self.key_check is None else [(_OF_NO_DISK, self.key_check)]
        found = False
        for disk, text in wrapped:
            found = True
            if _opens(key, text, disk):
                return None
        return "its key-encryption key is another" if found else None


def _trusted(trust_store: TrustStore) -> set[str]:
    return {fingerprint(known) for known in trust_store.trusted()}


def _opens(key: KeyEncryptionKey, wrapped: str, disk: str) -> bool:
    try:
        key.unwrap_digest_key(wrapped, disk)
    except (IntegrityError, ValueError):
        return False
    return True


async def must_have_keys_already(database: Database) -> bool:
    """Whether the site's keys were made already, here or by another server: then none are made."""
    async with database.read() as session:
        if await session.get(SiteKeysRow, ONLY) is not None:
            return True
        return await session.scalar(select(DiskRow.id).where(DiskRow.digest_key.is_not(None)).limit(1)) is not None


async def check_site_keys(
    database: Database, trust_store: TrustStore, key: KeyEncryptionKey, *, replace: bool = False
) -> None:
    """Compare, or write down what the database does not know yet. ``replace``: these are the site's from now on.

    :raises SettingsError: if they are another site's.
    """
    issuing = trust_store.load().fingerprint
    async with database.write() as session:
        row = await session.get(SiteKeysRow, ONLY)
        if not replace:
            if row is not None:
                known = KnownKeys(row.authority_fingerprint, row.key_check, ())
            else:
                wrapped = await session.execute(select(DiskRow.id, DiskRow.digest_key))
                known = KnownKeys(None, None, [(disk, text) for disk, text in wrapped if text is not None])
            fault = known.fault(trust_store, key)
            if fault is not None and database.postgresql is not None:
                raise SettingsError(f"cannot join this site: {fault}", hint=_HINT_OF_SEVERAL)
            if fault is not None:
                raise SettingsError(f"cannot use this site's database with the keys that are here: {fault}", hint=HINT)
        if row is None or replace:
            row = row or SiteKeysRow(id=ONLY)
            row.authority_fingerprint, row.key_check = issuing, key.wrap_digest_key(_CONTENT, _OF_NO_DISK)
            session.add(row)
            return
        row.authority_fingerprint = issuing  # an authority that was rotated: the one before is trusted still
