"""``mobility-agent upgrade``: another version takes over where the one before it was; if it does not start, that one goes on.

Called by ``installation_commands``. Tracking is the kernel's meanwhile and the journals are on disk: nothing is compared or sent again
(R2, R3). ``activate`` runs in the new version's own process; ``fetch`` gets its installer from the site's configuration server, whose
certificate is checked as always, so that nothing of it needs a signature to be believed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiohttp

from mobility_agent.installation import system
from mobility_agent.installation.install import Say, remove_other_trees
from mobility_agent.installation.places import Tree, current_tree
from replication.documents import MAX_DOCUMENT_BYTES
from replication.errors import Conflict, IntegrityError, NotFound, PeerProtocolError, PeerUnavailable, Permanent
from replication.installer_catalogue import INDEX_PATH, Installer, InstallerCatalogue, version_order

_CONNECT_TIMEOUT_S: Final = 30.0
_FETCH_TIMEOUT_S: Final = 3600.0
_CHUNK_BYTES: Final = 1024 * 1024


def activate(new: Tree, say: Say, *, allow_downgrade: bool = False) -> None:
    """``new`` is the version in use on return, and runs if the agent ran before.

    :raises NotFound: if no version is installed. :raises Conflict: if a newer one is.
    :raises Permanent: if it does not start; the version before it runs again then.
    """
    old = current_tree()
    if old is None:
        raise NotFound("cannot upgrade: no agent is installed here", hint="run the installer with install")
    if version_order(new.version) < version_order(old.version) and not allow_downgrade:
        raise Conflict(
            f"cannot upgrade to {new.version}: {old.version} is installed",
            hint="an older version may not read what a newer one wrote; --allow-downgrade tries it",
        )
    ran = system.is_active()
    _switch(new)
    if not ran:
        say(f"{new.version} is installed; the agent did not run before, and was not started")
        return
    try:
        system.restart()
    except Permanent as failed:
        _switch(old)
        system.restart()
        raise Permanent(
            f"cannot upgrade to {new.version}, {old.version} runs again: {failed.message}", hint=failed.hint
        ) from failed
    remove_other_trees({new.directory, old.directory})
    say(f"{new.version} runs; before it was {old.version}")


def _switch(tree: Tree) -> None:
    system.install_system_files(tree)
    system.use_tree(tree)
    system.reload()


async def fetch_from_any(
    urls: Sequence[str], tls: ssl.SSLContext, directory: Path, version: str | None
) -> tuple[Installer, Path]:
    """``fetch`` from the first of the site's configuration servers that can be reached and offers it: each has installers of its own."""
    for tried, url in enumerate(urls, start=1):
        try:
            return await fetch(url, tls, directory, version)
        except (PeerUnavailable, NotFound):
            if tried == len(urls):
                raise
    raise AssertionError("there is at least one address")


async def fetch(url: str, tls: ssl.SSLContext, directory: Path, version: str | None) -> tuple[Installer, Path]:
    """Download from the configuration server at ``url`` the newest installer that runs here, or that of ``version``, into ``directory``.

    :raises NotFound: and :raises Unsupported: as ``InstallerCatalogue.choose``.
    :raises IntegrityError: if it is not what the catalogue says. :raises PeerUnavailable: if the server does not answer.
    """
    timeout = aiohttp.ClientTimeout(
        total=_FETCH_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_CONNECT_TIMEOUT_S
    )
    connector = aiohttp.TCPConnector(ssl=tls, limit=1)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            async with session.get(url + INDEX_PATH, allow_redirects=False) as answer:
                _require_ok(answer, url)
                body = await answer.content.read(MAX_DOCUMENT_BYTES + 1)
                while len(body) <= MAX_DOCUMENT_BYTES and (more := await answer.content.read(MAX_DOCUMENT_BYTES + 1)):
                    body += more
            _, glibc = platform.libc_ver()
            chosen = InstallerCatalogue.decode(body).choose(platform.machine(), glibc, version)
            async with session.get(url + chosen.path, allow_redirects=False) as answer:
                _require_ok(answer, url)
                return chosen, await _store(answer, chosen, directory)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise PeerUnavailable(f"cannot fetch the installer from {url}: {str(error) or type(error).__name__}") from error


def _require_ok(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.status == 404:
        raise NotFound(f"cannot find installers at {url}", hint="on the appliance: config-server add-installer FILE")
    if answer.status != 200:
        raise PeerProtocolError(f"cannot fetch the installer from {url}: it answers {answer.status}")


async def _store(answer: aiohttp.ClientResponse, installer: Installer, directory: Path) -> Path:
    path = directory / installer.file
    digest, received_bytes = hashlib.sha256(), 0
    try:
        with path.open("wb") as file:
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                received_bytes += len(chunk)
                if received_bytes > installer.size_bytes:
                    break
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Permanent(f"cannot store the installer in {directory}: {error.strerror}") from error
    if received_bytes != installer.size_bytes or digest.hexdigest() != installer.sha256:
        path.unlink()
        raise IntegrityError(
            f"cannot use {installer.file}: it is not what the catalogue says", hint="add it again on the appliance"
        )
    return path
