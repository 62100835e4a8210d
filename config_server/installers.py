"""The agent installers that this appliance offers: a directory of files, the catalogue of them, and the authority's signature over it.

Called by ``installer_commands`` (adds and removes), ``daemon`` and ``api/downloads`` (serve). Files are put in place whole before the
catalogue names them, and the catalogue and its signature are one file, so that whoever reads sees the one or the other state. The
signature is ECDSA (P-256, SHA-256) by the site's authority over the bytes of ``index.json``: the fingerprint that an administrator has
pins every installer's hash. A certificate begins with 0x30, this document with a brace: a signature of one is never one of the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.authority import Authority
from replication.documents import Document
from replication.durable_file import DurableFile, make_directory_durably, sync_directory
from replication.errors import BlockferryError, Conflict, InvalidInput, NotFound, PeerProtocolError, SettingsError
from replication.installer_catalogue import MAX_INSTALLER_BYTES, Installer, InstallerCatalogue, version_order

DIRECTORY: Final = "downloads"
_CATALOGUE_FILE: Final = ".catalogue"
_HEAD_BYTES: Final = 64 * 1024
_END_OF_HEAD: Final = b"\n# What follows is the payload.\n"
_FIELD: Final = re.compile(rb"^(version|architecture|oldest_glibc|payload_sha256|payload_bytes)=(\S+)$", re.MULTILINE)
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_CHUNK_BYTES: Final = 1024 * 1024


class _Stored(Document):
    index: str
    signature: str


@dataclass(frozen=True, slots=True)
class SignedIndex:
    """``index``: the catalogue's bytes as they are served; ``signature``: DER."""

    index: bytes
    signature: bytes
    catalogue: InstallerCatalogue


class Installers:
    """Those below the configuration server's state directory. Calls block."""

    def __init__(self, state_dir: Path, authority: Authority) -> None:
        self.directory = state_dir / DIRECTORY
        self._authority = authority
        self._file = DurableFile(self.directory / _CATALOGUE_FILE)

    def read(self) -> SignedIndex:
        """Signed anew if another authority issues by now.

        :raises SettingsError: if the catalogue is damaged.
        """
        content = self._file.read()
        if content is None:
            return self._signed(InstallerCatalogue())
        try:
            stored = _Stored.decode(content)
            index, signature = stored.index.encode(), base64.b64decode(stored.signature, validate=True)
            catalogue = InstallerCatalogue.decode(index)
        except (PeerProtocolError, binascii.Error, ValueError) as error:
            raise SettingsError(
                f"cannot read the catalogue of installers: {error}", hint=f"remove {self._file.path}, add them again"
            ) from error
        try:
            self._authority.key.public_key().verify(signature, index, _ECDSA)
        except InvalidSignature:
            return self._signed(catalogue)
        return SignedIndex(index, signature, catalogue)

    def _signed(self, catalogue: InstallerCatalogue) -> SignedIndex:
        index = catalogue.encode()
        return SignedIndex(index, self._authority.key.sign(index, _ECDSA), catalogue)

    def add(self, source: Path) -> Installer:
        """Offer ``source``; adding the same file again changes nothing.

        :raises InvalidInput: if it is no installer, or a damaged one.
        :raises Conflict: if another file of its version and architecture is offered.
        """
        make_directory_durably(self.directory)
        unfinished = self.directory / f".{os.getpid()}.new"
        try:
            try:
                shutil.copyfile(source, unfinished)
            except OSError as error:
                raise InvalidInput(f"cannot copy {source}: {error.strerror}") from error
            installer = describe_installer(unfinished)
            catalogue = self.read().catalogue
            for other in catalogue.installers:
                if _kind(other) == _kind(installer) and other.sha256 != installer.sha256:
                    raise Conflict(
                        f"cannot add {source.name}: another {other.file} is offered",
                        hint=f"servers may have installed it; a changed build needs a version of its own, or first: "
                        f"config-server remove-installer {other.file}",
                    )
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.chmod(0o644)
            unfinished.replace(self.directory / installer.file)
            sync_directory(self.directory)
        finally:
            unfinished.unlink(missing_ok=True)
        others = [each for each in catalogue.installers if _kind(each) != _kind(installer)]
        self._write([*others, installer])
        return installer

    def remove(self, file: str) -> None:
        """:raises NotFound: if it is not offered."""
        installers = self.read().catalogue.installers
        kept = [installer for installer in installers if installer.file != file]
        if len(kept) == len(installers):
            raise NotFound(f"cannot remove {file[:128]}: it is not offered", hint="config-server installers lists them")
        self._write(kept)
        (self.directory / file).unlink(missing_ok=True)
        sync_directory(self.directory)

    def _write(self, installers: list[Installer]) -> None:
        ordered = sorted(installers, key=lambda each: (version_order(each.version), each.architecture), reverse=True)
        try:
            signed = self._signed(InstallerCatalogue(installers=tuple(ordered)))
        except ValueError as error:
            raise Conflict("cannot offer more installers", hint="config-server remove-installer FILE") from error
        stored = _Stored(index=signed.index.decode(), signature=base64.b64encode(signed.signature).decode())
        self._file.replace(stored.encode())


def _kind(installer: Installer) -> tuple[object, str]:
    return version_order(installer.version), installer.architecture


def describe_installer(path: Path) -> Installer:
    """What an installer says of itself (its script's first lines, which are read and not run), with its own size and hash.

    :raises InvalidInput: if it is no installer, or not whole.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head, separator, _ = file.read(_HEAD_BYTES).partition(_END_OF_HEAD)
        fields = {match[1].decode(): match[2].decode(errors="replace") for match in _FIELD.finditer(head)}
        if not separator or len(fields) != 5 or size_bytes > MAX_INSTALLER_BYTES:
            raise InvalidInput(
                "cannot add it: it is no installer of the agent", hint="blockferry-agent-VERSION-ARCHITECTURE.run"
            )
        payload_at = len(head) + len(separator)
        file.seek(0)
        whole, payload = hashlib.sha256(), hashlib.sha256()
        whole.update(file.read(payload_at))
        while chunk := file.read(_CHUNK_BYTES):
            whole.update(chunk)
            payload.update(chunk)
    if fields["payload_bytes"] != str(size_bytes - payload_at) or payload.hexdigest() != fields["payload_sha256"]:
        raise InvalidInput("cannot add it: the installer is damaged", hint="copy or build it again")
    try:
        return Installer(
            file=f"blockferry-agent-{fields['version']}-{fields['architecture']}.run",
            version=fields["version"],
            architecture=fields["architecture"],
            oldest_glibc=fields["oldest_glibc"],
            size_bytes=size_bytes,
            sha256=whole.hexdigest(),
        )
    except (ValueError, BlockferryError) as error:
        raise InvalidInput("cannot add it: the installer's script says nothing that makes sense") from error
