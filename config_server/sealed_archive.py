"""A tar archive, sealed with a passphrase: the form of a backup. Called by ``backup.py``; described in docs/operations/backup.md.

    line 1    ``blockferry-backup 1``
    line 2    a JSON object: ``n``, ``r``, ``p``, ``salt`` of scrypt (RFC 7914), and what may be known without the passphrase
    then      chunks: length of the sealed bytes (4 bytes, big-endian), sealed bytes

A chunk holds at most 1 MiB of the tar, sealed with AES-256-GCM under the key that scrypt makes of the passphrase; its nonce is the chunk's
number (8 bytes, big-endian), three zeros, and 1 for the last chunk, else 0; the two lines are its associated data. So a chunk that was
changed, left out, put in, or moved does not open, nor does an archive that was cut off. Each archive has a salt, so a key, of its own.
Lengths are bounded before memory is taken (R14).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from replication.errors import IntegrityError, InvalidInput

MAGIC: Final = b"blockferry-backup 1\n"
CHUNK_BYTES: Final = 2**20
TAG_BYTES: Final = 16
MAX_HEADER_BYTES: Final = 4096
MIN_PASSPHRASE: Final = 12
SCRYPT_N: Final = 2**17
"""With r = 8: 128 MiB and some tenths of a second for each guess."""
_SCRYPT_R: Final = 8
_SCRYPT_P: Final = 1
_MAX_SCRYPT_N: Final = 2**20
_SALT_BYTES: Final = 32
_BLOCK: Final = tarfile.BLOCKSIZE


def check_passphrase(passphrase: str) -> None:
    """:raises InvalidInput: if it is too short to keep the keys of a site."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise InvalidInput(
            "cannot use this passphrase for a backup: it is too short",
            hint=f"at least {MIN_PASSPHRASE} characters, such as five words drawn at random; it guards every key of the site",
        )


def _key(passphrase: str, header: Mapping[str, object]) -> bytes:
    try:
        n, r, p, salt = int(str(header["n"])), header["r"], header["p"], bytes.fromhex(str(header["salt"]))
    except (KeyError, ValueError) as error:
        raise IntegrityError("cannot read the backup: its second line is damaged") from error
    if r != _SCRYPT_R or p != _SCRYPT_P or not 2**14 <= n <= _MAX_SCRYPT_N or n & (n - 1) or len(salt) != _SALT_BYTES:
        raise IntegrityError("cannot read the backup: nobody makes a key the way its second line says")
    return hashlib.scrypt(
        passphrase.encode(), salt=salt, n=n, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=129 * _SCRYPT_R * n + 2**20, dklen=32
    )


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(8, "big") + b"\0\0\0" + (b"\1" if last else b"\0")


def tar_parts(members: Iterable[tuple[str, int, Iterable[bytes]]]) -> Iterator[bytes]:
    """A tar of ``(name, size, content)``, in pieces.

    :raises InvalidInput: if a content has another length than its size.
    """
    for name, size_bytes, content in members:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size_bytes, 0o600
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = size_bytes
        for piece in content:
            left -= len(piece)
            yield piece
        if left:
            raise InvalidInput(f"cannot put {name} into the archive: it has another length than it had")
        yield bytes(-size_bytes % _BLOCK)
    yield bytes(2 * _BLOCK)


def sealed_parts(
    parts: Iterable[bytes], passphrase: str, public: Mapping[str, object], scrypt_n: int = SCRYPT_N
) -> Iterator[bytes]:
    """The archive's bytes, in pieces; ``public`` goes into the second line, in clear."""
    check_passphrase(passphrase)
    header = {**public, "n": scrypt_n, "r": _SCRYPT_R, "p": _SCRYPT_P, "salt": os.urandom(_SALT_BYTES).hex()}
    head = MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n"
    sealer = AESGCM(_key(passphrase, header))
    yield head
    number, buffer = 0, bytearray()
    for part in parts:
        buffer += part
        while len(buffer) > CHUNK_BYTES:
            yield _chunk(sealer.encrypt(_nonce(number, last=False), bytes(buffer[:CHUNK_BYTES]), head))
            del buffer[:CHUNK_BYTES]
            number += 1
    yield _chunk(sealer.encrypt(_nonce(number, last=True), bytes(buffer), head))


def _chunk(sealed: bytes) -> bytes:
    return len(sealed).to_bytes(4, "big") + sealed


class _Opened(io.RawIOBase):
    """The tar's bytes, decrypted as they are read; every byte handed out was authenticated."""

    def __init__(self, stream: IO[bytes], head: bytes, opener: AESGCM) -> None:
        self._stream = stream
        self._head = head
        self._opener = opener
        self._number = 0
        self._ended = False
        self._rest = b""
        self._ahead = _exactly(stream, 4)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = size if size >= 0 else 2**62
        found = bytearray()
        while len(found) < wanted:
            if not self._rest and not self._next():
                break
            piece = self._rest[: wanted - len(found)]
            found += piece
            self._rest = self._rest[len(piece) :]
        return bytes(found)

    def _next(self) -> bool:
        if self._ended:
            return False
        length = int.from_bytes(self._ahead, "big")
        if not TAG_BYTES <= length <= CHUNK_BYTES + TAG_BYTES:
            raise IntegrityError("cannot read the backup: it is damaged")
        sealed = _exactly(self._stream, length)
        self._ahead = self._stream.read(4)
        self._ended = not self._ahead
        try:
            self._rest = self._opener.decrypt(_nonce(self._number, last=self._ended), sealed, self._head)
        except InvalidTag as error:
            reason = "the passphrase is wrong, or it is damaged" if self._number == 0 else "it is damaged or cut off"
            raise IntegrityError(f"cannot open the backup: {reason}") from error
        self._number += 1
        return bool(self._rest) or self._next()

    def finish(self) -> None:
        """Read to the end. :raises IntegrityError: if it was cut off."""
        while self._rest or self._next():
            self._rest = b""


def _exactly(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) != count:
        raise IntegrityError("cannot read the backup: it is cut off")
    return content


def read_header(stream: IO[bytes]) -> tuple[bytes, dict[str, object]]:
    """The two lines and what the second one says.

    :raises IntegrityError: if it is no backup, or damaged.
    """
    if stream.readline(len(MAGIC)) != MAGIC:
        raise IntegrityError("cannot read the backup: this is none, or one of a newer version")
    line = stream.readline(MAX_HEADER_BYTES)
    try:
        header = json.loads(line)
    except ValueError as error:
        raise IntegrityError("cannot read the backup: its second line is damaged") from error
    if not isinstance(header, dict):
        raise IntegrityError("cannot read the backup: its second line is damaged")
    return MAGIC + line, header


def opened_members(stream: IO[bytes], passphrase: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents, in the order in which they were put in; each content is to be read before the next name is asked for. What has
    been read is authentic; that nothing is missing is known when the iteration has ended.

    :raises IntegrityError: the passphrase is wrong, or the archive damaged or cut off.
    """
    head, header = read_header(stream)
    opened = _Opened(stream, head, AESGCM(_key(passphrase, header)))
    try:
        with tarfile.open(fileobj=opened, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None:
                    raise IntegrityError(f"cannot use the backup: {member.name[:100]!r} is no file")
                yield member.name, content
    except tarfile.TarError as error:
        raise IntegrityError(f"cannot read the backup: {error}") from error
    opened.finish()
