"""Whether this server's authority and key-encryption key are the site's: servers on one database must have the same ones.

Called by ``installation.py`` (init) and ``daemon.py`` (each start), on PostgreSQL. A server with an authority of its own would hand out
certificates that nobody else trusts, and with another key-encryption key it could not open one disk's keys. Of the authority the database
knows the fingerprint, of the key something that only it unwraps.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

from config_server.authority import TrustStore
from config_server.database import Database
from config_server.key_encryption import KeyEncryptionKey
from config_server.server_tables import ONLY, SiteKeysRow
from replication.errors import IntegrityError, SettingsError
from replication.tls_identity import fingerprint

_CONTENT: Final = bytes(32)
_OF_NO_DISK: Final = "the site's keys"
_HINT: Final = (
    "copy authority/ and the key-encryption key from the configuration server that is there already "
    "(docs/operations/postgresql.md#a-second-configuration-server)"
)


async def must_have_keys_already(database: Database) -> bool:
    """Whether another server has made the site's keys: then none are made here."""
    async with database.read() as session:
        return await session.get(SiteKeysRow, ONLY) is not None


async def check_site_keys(
    database: Database, trust_store: TrustStore, key: KeyEncryptionKey, *, replace: bool = False
) -> None:
    """Compare, or write down what the database does not know yet. ``replace``: these are the site's from now on.

    :raises SettingsError: if they are another site's.
    """
    issuing = trust_store.load().fingerprint
    trusted = {fingerprint(known) for known in x509.load_pem_x509_certificates(trust_store.trusted_pem().encode())}
    async with database.write() as session:
        row = await session.get(SiteKeysRow, ONLY)
        if row is None or replace:
            row = row or SiteKeysRow(id=ONLY)
            row.authority_fingerprint, row.key_check = issuing, key.wrap_digest_key(_CONTENT, _OF_NO_DISK)
            session.add(row)
            return
        if row.authority_fingerprint not in trusted:
            raise SettingsError(
                f"cannot join this site: its authority is {row.authority_fingerprint}, not {issuing}", hint=_HINT
            )
        row.authority_fingerprint = issuing  # an authority that was rotated: the one before is trusted still
        try:
            key.unwrap_digest_key(row.key_check, _OF_NO_DISK)
        except IntegrityError as error:
            raise SettingsError("cannot join this site: its key-encryption key is another", hint=_HINT) from error
