"""First steps on a new appliance: authority, key-encryption key, database, own certificate, one-time secret. Called by ``cli.py``.

``initialize`` is idempotent: what is there stays, what is missing is made. No default password exists: a secret is shown once, is good
once and for a day, and only its hash is kept. It is exchanged for the first administrator's token (``administrators.py``).
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from config_server.administrators import Administrators
from config_server.authority import Authority, ServerNames, TrustStore
from config_server.config import Settings
from config_server.events import Clock
from config_server.first_access import SecretFile, make_first_access
from config_server.key_encryption import KeyEncryptionKey, key_file
from config_server.policies import ensure_default_policy
from config_server.server_identity import ensure_server_identity
from config_server.site_keys import HINT, check_site_keys, must_have_keys_already
from replication.credentials import CREDENTIALS_VARIABLE
from replication.errors import Conflict, NotFound, Refused, SettingsError
from replication.failpoint import reached
from replication.state_directory import make_state_directory, state_directory_usable
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, private_key_pem


@dataclass(frozen=True, slots=True)
class Installed:
    """``secret`` None: none was made; an administrator can come in already, and nothing is shown again."""

    fingerprint: str
    secret: str | None
    key_encryption_key_file: Path


def site_key_file(settings: Settings) -> Path:
    """Where the key-encryption key is, by configuration, systemd credential or default."""
    return key_file(settings.key_encryption_key_file, settings.state_dir, os.environ.get(CREDENTIALS_VARIABLE))


async def initialize(
    settings: Settings,
    clock: Clock,
    administrator: str | None = None,
    *,
    replace_keys: bool = False,
    secret_file: SecretFile | None = None,
) -> Installed:
    """Make what is missing; everything is durable on return. With ``administrator`` (a name) the secret is a token, not a one-time secret.

    ``replace_keys``: the database may know other keys, which are given up. ``secret_file`` and the rest: ``make_first_access``.

    :raises SettingsError: if something that is there cannot be used, a file or directory cannot be made, or a key is missing that the
        database was made with.
    :raises Conflict: as ``make_first_access``; all else is made.
    """
    make_state_directory(settings.state_dir)
    with state_directory_usable(settings.state_dir):
        return await _initialize(settings, clock, administrator, replace_keys=replace_keys, secret_file=secret_file)


async def _initialize(
    settings: Settings, clock: Clock, administrator: str | None, *, replace_keys: bool, secret_file: SecretFile | None
) -> Installed:
    trust_store = TrustStore(settings.authority_directory)
    path = site_key_file(settings)
    database = settings.open_database()
    try:
        await database.upgrade()
        reached("config.database.made")
        if not replace_keys and await must_have_keys_already(database):
            authority, key = _made_already(trust_store, path)
        else:
            authority, key = trust_store.load_or_create(clock()), KeyEncryptionKey.load_or_create(path)
        reached("config.site-keys.made")
        await check_site_keys(database, trust_store, key, replace=replace_keys)
        reached("config.site-keys.noted")
        ensure_server_identity(settings, authority, trust_store, clock())
        await ensure_default_policy(database)
        secret = await make_first_access(Administrators(database, clock), administrator, secret_file)
    finally:
        await database.close()
    return Installed(authority.fingerprint, secret, path)


def _made_already(trust_store: TrustStore, key_path: Path) -> tuple[Authority, KeyEncryptionKey]:
    """A new one in the place of one that is only not seen from here would be backed up instead of it, and open nothing."""
    try:
        return trust_store.load(), KeyEncryptionKey.load(key_path)
    except SettingsError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise SettingsError(
            f"{error.message}, and none is made: the database is of a site that has one", hint=HINT
        ) from error


def issue_certificate(settings: Settings, role: Role, names: ServerNames, directory: Path, clock: Clock) -> PeerName:
    """Issue an identity for a server that does not enrol (the sink) into ``directory``; durable on return.

    :raises Conflict: if ``directory`` holds an identity already.
    """
    identity = TlsIdentity(directory)
    if identity.exists():
        raise Conflict(
            f"cannot issue a certificate: {directory} holds {identity.name().urn} already",
            hint="choose another directory",
        )
    name = PeerName(role, str(uuid.uuid4()))
    _store_new(settings, identity, name, names, clock)
    return name


def reissue_certificate(settings: Settings, names: ServerNames, directory: Path, clock: Clock) -> PeerName:
    """A new key and certificate for the identity in ``directory``, with ``names``, or those that it has if none are given.

    :raises NotFound: if there is none. :raises Refused: if its holder renews it by itself.
    """
    identity = TlsIdentity(directory)
    if not identity.exists():
        raise NotFound(
            f"cannot renew the certificate in {directory}: there is none", hint="without --renew one is issued"
        )
    name = identity.name()
    if name.role is not Role.SINK:
        raise Refused(f"cannot renew the certificate of {name.urn} here: it does that by itself")
    if not names.texts():
        names = ServerNames.listed_in(identity.certificate())
    _store_new(settings, identity, name, names, clock)
    return name


def _store_new(settings: Settings, identity: TlsIdentity, name: PeerName, names: ServerNames, clock: Clock) -> None:
    trust_store, key = TrustStore(settings.authority_directory), new_private_key()
    issued = trust_store.load().issue(
        key.public_key(), name, now_ns=clock(), names=names, lifetime_s=settings.certificate_lifetime_s
    )
    identity.store(
        key_pem=private_key_pem(key),
        certificate_pem=issued.pem.encode(),
        authorities_pem=trust_store.trusted_pem().encode(),
    )


def load_authority(settings: Settings) -> Authority:
    """:raises SettingsError: before ``init``."""
    return TrustStore(settings.authority_directory).load()
