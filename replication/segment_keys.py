"""Keys of a generation: what is derived from its data key, and how the data key is wrapped for site and writer.

The config server makes and wraps data keys; the process server seals with them; the replica writer unwraps and opens.
Derivation is HKDF-SHA256 (RFC 5869). Wrapping for the site is AES-256-GCM under the site key-encryption key; wrapping for the
writer is X25519 with an ephemeral key, HKDF-SHA256, AES-256-GCM, so that nobody has to dial in to the Azure side with a key.
The record's other fields are the associated data of both, so a wrapped key cannot be moved to another disk or generation.
"""

from __future__ import annotations

import os
import uuid
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from replication.errors import IntegrityError, InvalidInput
from replication.identifiers import GenerationKey

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_X25519_BYTES: Final = 32


def _derive(secret: bytes, *, salt: bytes | None, info: bytes, length: int = KEY_BYTES) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def new_data_key() -> bytes:
    """32 random bytes from the operating system."""
    return os.urandom(KEY_BYTES)


def manifest_key(data_key: bytes, generation: GenerationKey) -> bytes:
    """The key that authenticates a generation's manifests; the agent holds it, and not the data key."""
    return _derive(
        data_key,
        salt=None,
        info=b"blockferry manifest v1" + uuid.UUID(generation.disk).bytes + generation.generation.to_bytes(4, "little"),
    )


def segment_key_and_nonce(data_key: bytes, salt: bytes, header: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of one segment: never used for another, since the salt is 32 random bytes."""
    derived = _derive(data_key, salt=salt, info=b"blockferry segment v1" + header, length=KEY_BYTES + _NONCE_BYTES)
    return derived[:KEY_BYTES], derived[KEY_BYTES:]


def wrap_for_site(key_encryption_key: bytes, data_key: bytes, associated: bytes) -> bytes:
    """nonce ‖ ciphertext ‖ tag."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key_encryption_key).encrypt(nonce, data_key, associated)


def unwrap_for_site(key_encryption_key: bytes, wrapped: bytes, associated: bytes) -> bytes:
    """:raises IntegrityError: if key, record or ciphertext do not belong together."""
    return _open(key_encryption_key, wrapped, associated, "the site key-encryption key")


def unwrap_text_for_site(key_encryption_key: bytes, wrapped: bytes, associated: bytes) -> bytes:
    """As ``unwrap_for_site``, of whatever length. :raises IntegrityError: if key, context or ciphertext do not belong together."""
    if len(wrapped) < _NONCE_BYTES + _TAG_BYTES:
        raise IntegrityError(f"cannot unwrap a secret: {len(wrapped)} bytes are not a wrapped one")
    try:
        return AESGCM(key_encryption_key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], associated)
    except InvalidTag as error:
        raise IntegrityError(
            "cannot unwrap a secret with the site key-encryption key",
            hint="the key or the record is another's or damaged",
        ) from error


def wrap_for_writer(writer_key: X25519PublicKey, data_key: bytes, associated: bytes) -> bytes:
    """ephemeral public key ‖ nonce ‖ ciphertext ‖ tag."""
    ephemeral = X25519PrivateKey.generate()
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    wrapping_key = _writer_wrapping_key(ephemeral.exchange(writer_key), ephemeral_public, writer_key)
    nonce = os.urandom(_NONCE_BYTES)
    return ephemeral_public + nonce + AESGCM(wrapping_key).encrypt(nonce, data_key, associated)


def unwrap_for_writer(writer_key: X25519PrivateKey, wrapped: bytes, associated: bytes) -> bytes:
    """:raises IntegrityError: if key, record or ciphertext do not belong together."""
    if len(wrapped) <= _X25519_BYTES:
        raise IntegrityError("cannot unwrap a data key: the wrapped key is truncated")
    ephemeral_public = wrapped[:_X25519_BYTES]
    try:
        shared = writer_key.exchange(X25519PublicKey.from_public_bytes(ephemeral_public))
    except ValueError as error:
        raise IntegrityError("cannot unwrap a data key: its ephemeral key is invalid") from error
    wrapping_key = _writer_wrapping_key(shared, ephemeral_public, writer_key.public_key())
    return _open(wrapping_key, wrapped[_X25519_BYTES:], associated, "the writer's key")


def _writer_wrapping_key(shared: bytes, ephemeral_public: bytes, writer_key: X25519PublicKey) -> bytes:
    return _derive(
        shared, salt=None, info=b"blockferry key for writer v1" + ephemeral_public + writer_key.public_bytes_raw()
    )


def _open(wrapping_key: bytes, wrapped: bytes, associated: bytes, whose: str) -> bytes:
    if len(wrapped) != _NONCE_BYTES + KEY_BYTES + _TAG_BYTES:
        raise IntegrityError(f"cannot unwrap a data key: {len(wrapped)} bytes are not a wrapped key")
    try:
        return AESGCM(wrapping_key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], associated)
    except InvalidTag as error:
        raise IntegrityError(
            f"cannot unwrap a data key with {whose}", hint="the key or the generation record is another's or damaged"
        ) from error


def require_key(key: bytes, what: str) -> bytes:
    """:raises InvalidInput: unless ``key`` is 32 bytes."""
    if len(key) != KEY_BYTES:
        raise InvalidInput(f"cannot use {len(key)} bytes as {what}", hint=f"{KEY_BYTES} bytes are expected")
    return key
