"""JSON documents that daemons exchange: strict models, and the envelope in which the replica writer signs what it states.

Called wherever a document enters or leaves: parse at the edge, trust inside. Unknown fields are refused. The signed envelope is
``{"context", "key", "payload", "signature"}``: ``payload`` is the document as text, ``signature`` Ed25519 (RFC 8032, base64) over
``context ‖ 0x00 ‖ payload``, ``context`` names the kind of document, so that one kind is never taken for another.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from replication.errors import IntegrityError, InvalidInput, PeerProtocolError

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_NUMBER: Final = 2**63 - 1
MAX_BYTE_COUNT: Final = 2**56
_MAX_SHOWN: Final = 100
_PUBLIC_KEY_LABEL: Final = "blockferry-writer-v1"

Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
ByteCount = Annotated[int, Field(ge=-MAX_BYTE_COUNT, le=MAX_BYTE_COUNT)]
"""A number of bytes that a peer reports: so bounded that sums over every disk of a site fit into 64 bits."""
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def own_words(error: ValidationError) -> str | None:
    """What a check of ours says was wrong, if one of them found it first; None: the model did, in words that are nobody's."""
    first = error.errors(include_url=False, include_input=False)[0]
    return str(first["ctx"]["error"]) if first["type"] == "value_error" else None


def unusable_number(value: object, name: str) -> str | None:
    """The name of the first number in a document that is not finite or does not fit into 63 bits and a sign: no database takes it."""
    if isinstance(value, int | float):
        return None if -MAX_NUMBER <= value <= MAX_NUMBER else name
    members: Iterable[tuple[str, object]] = ()
    if isinstance(value, BaseModel):
        members = value
    elif isinstance(value, list):
        members = ((f"{name}.{index}", member) for index, member in enumerate(value))
    return next(
        (found for member_name, member in members if (found := unusable_number(member, member_name)) is not None), None
    )


class Document(BaseModel):
    """Base of every JSON document: immutable, strict, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def encode(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """:raises PeerProtocolError: if ``content`` is no such document; the message names the field."""
        if len(content) > MAX_DOCUMENT_BYTES:
            raise PeerProtocolError(f"cannot parse a {cls.__name__} of {len(content)} bytes")
        try:
            document = cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part)[:_MAX_SHOWN] for part in first["loc"]) or "the document"
            raise PeerProtocolError(f"cannot parse a {cls.__name__}: {place}: {first['msg']}") from error
        unusable = unusable_number(document, "the document")
        if unusable is not None:
            raise PeerProtocolError(f"cannot parse a {cls.__name__}: {unusable}: a number beyond 64 bits")
        return document


DocumentT = TypeVar("DocumentT", bound=Document)


class _Envelope(Document):
    context: str
    key: str
    payload: str
    signature: str


def _signed_bytes(context: str, payload: str) -> bytes:
    return context.encode() + b"\0" + payload.encode()


@dataclass(frozen=True)
class WriterPublicKey:
    """The public half of a replica writer's identity: what verifies its statements and what data keys are wrapped to."""

    verifying: Ed25519PublicKey
    wrapping: X25519PublicKey

    @functools.cached_property
    def key_id(self) -> str:
        """First 16 hex digits of the SHA-256 of both public keys."""
        both = self.verifying.public_bytes_raw() + self.wrapping.public_bytes_raw()
        return hashlib.sha256(both).hexdigest()[:16]

    def encode(self) -> str:
        """One line: ``blockferry-writer-v1 ED25519 X25519`` (base64)."""
        parts = (self.verifying.public_bytes_raw(), self.wrapping.public_bytes_raw())
        return " ".join((_PUBLIC_KEY_LABEL, *(base64.b64encode(part).decode() for part in parts)))

    @classmethod
    def decode(cls, line: str) -> WriterPublicKey:
        """:raises InvalidInput: if ``line`` is no writer's public key."""
        label, _, keys = line.strip().partition(" ")
        try:
            verifying, wrapping = (base64.b64decode(word, validate=True) for word in keys.split())
            if label == _PUBLIC_KEY_LABEL:
                return cls(Ed25519PublicKey.from_public_bytes(verifying), X25519PublicKey.from_public_bytes(wrapping))
        except (ValueError, binascii.Error) as error:
            raise cls._unusable() from error
        raise cls._unusable()

    @staticmethod
    def _unusable() -> InvalidInput:
        return InvalidInput(
            "cannot use the replica writer's public key",
            hint=f"one line '{_PUBLIC_KEY_LABEL} …' as printed by `azure-sink show-writer-key`",
        )

    def open_signed(self, kind: type[DocumentT], content: bytes) -> DocumentT:
        """Verify and parse what ``WriterIdentity.sign`` made.

        :raises IntegrityError: if the signature, key or kind of document is another.
        :raises PeerProtocolError: if it is malformed.
        """
        envelope = _Envelope.decode(content)
        context = document_context(kind)
        if envelope.context != context or envelope.key != self.key_id:
            raise IntegrityError(
                f"cannot accept a {kind.__name__}: it is signed as {envelope.context[:_MAX_SHOWN]!r} by {envelope.key[:_MAX_SHOWN]!r}",
                hint="check that the configuration server holds this replica writer's public key",
            )
        try:
            signature = base64.b64decode(envelope.signature, validate=True)
            self.verifying.verify(signature, _signed_bytes(context, envelope.payload))
        except (InvalidSignature, ValueError) as error:  # base64 of other characters than ASCII is a plain ValueError
            raise IntegrityError(f"cannot accept a {kind.__name__}: its signature does not match") from error
        return kind.decode(envelope.payload.encode())


def document_context(kind: type[Document]) -> str:
    """The signing context of a kind of document."""
    return f"blockferry/{kind.__name__}/v1"


@dataclass(frozen=True)
class WriterIdentity:
    """A replica writer's private identity: signs receipts, recovery points and answers; opens wrapped data keys."""

    signing: Ed25519PrivateKey
    unwrapping: X25519PrivateKey

    @classmethod
    def generate(cls) -> WriterIdentity:
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    @functools.cached_property
    def public(self) -> WriterPublicKey:
        return WriterPublicKey(self.signing.public_key(), self.unwrapping.public_key())

    def encode(self) -> bytes:
        """For a file that only the replica writer may read."""
        keys = {"ed25519": self.signing.private_bytes_raw(), "x25519": self.unwrapping.private_bytes_raw()}
        return json.dumps({name: base64.b64encode(key).decode() for name, key in keys.items()}).encode()

    @classmethod
    def decode(cls, content: bytes) -> WriterIdentity:
        """:raises InvalidInput: if ``content`` is no writer identity."""
        try:
            document = json.loads(content)
            return cls(
                Ed25519PrivateKey.from_private_bytes(base64.b64decode(document["ed25519"], validate=True)),
                X25519PrivateKey.from_private_bytes(base64.b64decode(document["x25519"], validate=True)),
            )
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise InvalidInput("cannot use the replica writer's identity file: it is damaged") from error

    def sign(self, document: Document) -> bytes:
        context, payload = document_context(type(document)), document.model_dump_json()
        signature = self.signing.sign(_signed_bytes(context, payload))
        return _Envelope(
            context=context,
            key=self.public.key_id,
            payload=payload,
            signature=base64.b64encode(signature).decode(),
        ).encode()
