"""One SSH connection to a server whose host key is pinned: log in, become root, run a command with bounds. Over asyncssh.

Called by ``probe.py`` and ``installation.py``. Nothing of this machine's SSH configuration counts: no known_hosts, no agent, no keys of
the account. Nothing is sent to a server before the key that it shows is the expected one; without an expected one the connection ends
there, and what was shown is told. Every wait has a deadline; of what a command prints no more is taken than was asked for
(R14). Only addresses that can be another server's are connected to, also if a name means others (``replication/server_addresses.py``):
what is judged is what is connected to, so that no second look-up comes between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import shlex
import socket
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import asyncssh

from process_server.remote.masking import masked_output, masked_text
from process_server.remote.problems import (
    AddressRefused,
    HostKeyChanged,
    HostKeyUnknown,
    NoAnswer,
    NoSsh,
    broken_off,
    login_refused,
    sudo_refused,
    took_too_long,
    unusable_key,
)
from replication.errors import PeerProtocolError, PeerUnavailable
from replication.remote_access import SshCredentials, SshTarget
from replication.server_addresses import DiscoverySettings, why_no_server

CONNECT_TIMEOUT_S: Final = 10.0
LOGIN_TIMEOUT_S: Final = 30.0
SUDO_TIMEOUT_S: Final = 30.0
MAX_STDERR_BYTES: Final = 16 * 1024
_PIECE_BYTES: Final = 64 * 1024
_MARK: Final = "blockferry-begin"
_USUAL_LIMITS: Final = DiscoverySettings()

_KEY_FAMILIES: Final[tuple[tuple[str, ...], ...]] = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256"),
)
"""Host keys by preference. A server has several: the pinned one is asked for before another is called a changed one."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended. Output is what it printed, up to the bound, without the login's secrets."""

    status: int
    output: bytes
    errors: str


class _Pinned(asyncssh.SSHClient):
    """Accepts one host key; remembers the one that was shown."""

    def __init__(self, expected: str | None) -> None:
        self._expected = expected
        self.offered: str | None = None
        self.connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    @property
    def has_spoken(self) -> bool:
        """Whether the peer has said that it speaks SSH."""
        return self.connection is not None and bool(self.connection.get_extra_info("server_version"))

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        del host, addr, port
        self.offered = key.get_fingerprint("sha256")
        return self.offered == self._expected


class SshConnection:
    """Opened by ``connect``; use as an asynchronous context."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, target: SshTarget, credentials: SshCredentials
    ) -> None:
        self._connection = connection
        self._target = target
        self._credentials = credentials
        self._as_root: str | None = None

    @classmethod
    async def connect(
        cls, target: SshTarget, credentials: SshCredentials, limits: DiscoverySettings = _USUAL_LIMITS
    ) -> Self:
        """A connection that is logged in.

        :raises AddressRefused: no other server is there. :raises NoAnswer: nothing answers there. :raises NoSsh: something else does.
        :raises HostKeyUnknown: there is no pinned key. :raises HostKeyChanged: it shows another. :raises Refused: the login was refused.
        :raises InvalidInput: the private key cannot be used. :raises PeerUnavailable: it broke.
        """
        key = _private_key(credentials)
        offered: list[str] = []
        # All families at once first; each alone only if a key is pinned and it was not the one that the server prefers.
        everything = tuple(name for family in _KEY_FAMILIES for name in family)
        for names in (everything, *(_KEY_FAMILIES if target.host_key is not None else ())):
            try:
                connection, shown = await _connected(target, credentials, limits, key, names)
            except PeerUnavailable:
                if not offered:
                    raise
                continue  # the server has no key of this family
            if connection is not None:
                return cls(connection, target, credentials)
            if target.host_key is None:
                raise HostKeyUnknown(target, shown)
            if shown not in offered:
                offered.append(shown)
        raise HostKeyChanged(target, offered)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._connection.abort()

    @property
    def host(self) -> str:
        return self._target.host

    async def may_become_root(self) -> bool:
        """Whether commands can run as root. :raises Refused: if a sudo password was given and sudo does not take it."""
        if self._as_root is not None:
            return True
        who = await self.run("id -u", deadline_s=SUDO_TIMEOUT_S, most_bytes=1024)
        if who.output.strip() == b"0":
            self._as_root = ""
        elif (await self.run("sudo -n true", deadline_s=SUDO_TIMEOUT_S, most_bytes=1024)).status == 0:
            self._as_root = "sudo -n "
        elif self._sudo_password() is not None:
            # One attempt: sudo asks again after a wrong password, and finds the end of its input.
            done = await self.run(
                "sudo -S -k -p '' true",
                deadline_s=SUDO_TIMEOUT_S,
                most_bytes=1024,
                stdin=f"{self._sudo_password()}\n".encode(),
            )
            if done.status == 0:
                self._as_root = "sudo -S -k -p '' "
            elif self._credentials.sudo_password is not None:
                raise sudo_refused(self._target, done.errors)
        return self._as_root is not None

    def _sudo_password(self) -> str | None:
        secret = self._credentials.sudo_password or self._credentials.password
        return None if secret is None else secret.get_secret_value()

    async def run_script(
        self, script: bytes, arguments: Sequence[str], *, as_root: bool, deadline_s: float, most_bytes: int
    ) -> Done:
        """Run a shell script from its standard input; as ``run_shell`` otherwise."""
        return await self.run_shell(
            'exec sh -s -- "$@"', arguments, script, as_root=as_root, deadline_s=deadline_s, most_bytes=most_bytes
        )

    async def run_shell(
        self,
        body: str,
        arguments: Sequence[str],
        stdin: bytes | AsyncIterable[bytes],
        *,
        as_root: bool,
        deadline_s: float,
        most_bytes: int,
    ) -> Done:
        """Run ``body`` by sh; its standard input is ``stdin``. ``as_root`` only after ``may_become_root`` has said that it may.

        Raises as ``run`` does.
        """
        prefix = self._as_root or "" if as_root else ""
        # sudo reads the password if it wants one; else it is still there, and the shell must not take it for something else.
        begin = f'while IFS= read -r line; do [ "$line" = {_MARK} ] && break; done; {body}'
        words = " ".join(shlex.quote(word) for word in arguments)
        head = f"{self._sudo_password()}\n" if "-S" in prefix else ""
        return await self.run(
            f"{prefix}sh -c {shlex.quote(begin)} sh {words}",
            deadline_s=deadline_s,
            most_bytes=most_bytes,
            stdin=_joined(f"{head}{_MARK}\n".encode(), stdin),
        )

    async def run(
        self,
        command: str,
        *,
        deadline_s: float,
        most_bytes: int,
        stdin: bytes | AsyncIterable[bytes] = b"",
    ) -> Done:
        """Run ``command`` by the login shell; ``stdin`` is closed after its end.

        :raises PeerUnavailable: if the connection breaks or the deadline passes. :raises PeerProtocolError: if it prints more than
            ``most_bytes``.
        """
        try:
            async with asyncio.timeout(deadline_s):
                process = await self._connection.create_process(command, encoding=None)
                try:
                    output, errors = await _exchanged(process, stdin, most_bytes)
                    done = await process.wait(check=False)
                finally:
                    process.close()  # without waiting: a command that hangs keeps nobody from stopping
        except TimeoutError as error:
            raise took_too_long(self._target, deadline_s) from error
        except (asyncssh.Error, OSError) as error:
            raise broken_off(self._target, error) from error
        status = -1 if done.exit_status is None else done.exit_status
        said = masked_text(errors.decode(errors="replace").strip(), self._credentials)
        return Done(status, masked_output(output, self._credentials), said)


async def _joined(head: bytes, rest: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    yield head
    if isinstance(rest, bytes):
        yield rest
    else:
        async for piece in rest:
            yield piece


async def _exchanged(
    process: asyncssh.SSHClientProcess[bytes], stdin: bytes | AsyncIterable[bytes], most_bytes: int
) -> tuple[bytes, bytes]:
    """What a command prints on both its outputs while it is fed."""
    try:
        async with asyncio.TaskGroup() as tasks:
            output = tasks.create_task(_all_of(process.stdout, most_bytes))
            errors = tasks.create_task(_head_of(process.stderr))
            tasks.create_task(_feed(process.stdin, stdin))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    return output.result(), errors.result()


async def _feed(writer: asyncssh.SSHWriter[bytes], stdin: bytes | AsyncIterable[bytes]) -> None:
    """A command that ends without having read everything has said why in another way."""
    try:
        if isinstance(stdin, bytes):
            for at in range(0, len(stdin), _PIECE_BYTES):
                writer.write(stdin[at : at + _PIECE_BYTES])
                await writer.drain()
        else:
            async for piece in stdin:
                writer.write(piece)
                await writer.drain()
        writer.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return


async def _all_of(reader: asyncssh.SSHReader[bytes], most_bytes: int) -> bytes:
    taken = bytearray()
    while piece := await reader.read(_PIECE_BYTES):
        taken += piece
        if len(taken) > most_bytes:
            raise PeerProtocolError(
                f"cannot use what the server prints: it is more than {most_bytes} bytes",
                hint="log in with ssh and see what its login shell prints",
            )
    return bytes(taken)


async def _head_of(reader: asyncssh.SSHReader[bytes]) -> bytes:
    """The beginning; the rest is read and dropped, so that the command can go on."""
    taken = bytearray()
    while piece := await reader.read(_PIECE_BYTES):
        taken += piece[: MAX_STDERR_BYTES - len(taken)]
    return bytes(taken)


def _private_key(credentials: SshCredentials) -> asyncssh.SSHKey | None:
    if credentials.private_key is None:
        return None
    passphrase = credentials.key_passphrase
    try:
        return asyncssh.import_private_key(
            credentials.private_key.get_secret_value(), None if passphrase is None else passphrase.get_secret_value()
        )
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
        raise unusable_key(error) from error


async def _reached(target: SshTarget, limits: DiscoverySettings) -> socket.socket:
    """A socket that is connected to the first of the target's addresses that answers; those that are no other server's are not tried.

    :raises AddressRefused: if it has no others. :raises OSError: if none answers.
    """
    loop = asyncio.get_running_loop()
    refused: AddressRefused | None = None
    failed: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM):
        why = why_no_server(ipaddress.ip_address(address[0]), allow_loopback=limits.allow_loopback)
        if why is not None:
            refused = refused or AddressRefused(target, str(address[0]), why)
            continue
        reached = socket.socket(family, kind, protocol)
        try:
            reached.setblocking(False)
            await loop.sock_connect(reached, address)
        except OSError as error:
            reached.close()
            failed = error
        except BaseException:
            reached.close()
            raise
        else:
            return reached
    raise failed or refused or OSError(f"{target.host} has no address")


async def _connected(
    target: SshTarget,
    credentials: SshCredentials,
    limits: DiscoverySettings,
    key: asyncssh.SSHKey | None,
    key_names: tuple[str, ...],
) -> tuple[asyncssh.SSHClientConnection | None, str]:
    """The connection, if the host key is the pinned one, and the key that was shown."""
    client = _Pinned(target.host_key)
    password = credentials.password
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reached = await _reached(target, limits)
    except OSError as error:  # a passed deadline, too
        raise NoAnswer(target, error) from error
    try:
        async with asyncio.timeout(LOGIN_TIMEOUT_S):
            connection = await asyncssh.connect(
                target.host,
                target.port,
                sock=reached,
                config=None,
                known_hosts=asyncssh.import_known_hosts(""),
                server_host_key_algs=key_names,
                client_factory=lambda: client,
                username=target.user,
                client_keys=None if key is None else [key],
                password=None if password is None else password.get_secret_value(),
                preferred_auth=("publickey", "password", "keyboard-interactive"),
                agent_path=None,
                gss_host=None,
                login_timeout=LOGIN_TIMEOUT_S,
                keepalive_interval=10,
                keepalive_count_max=3,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        if client.offered is None:
            raise broken_off(target, error) from error
        return None, client.offered
    except asyncssh.PermissionDenied as error:
        raise login_refused(target, credentials) from error
    except (asyncssh.Error, OSError) as error:  # a passed deadline, too
        if client.has_spoken:
            raise broken_off(target, error) from error
        raise NoSsh(target, error) from error
    finally:
        if client.connection is None:
            reached.close()  # else it is the connection's
    return connection, client.offered or ""
