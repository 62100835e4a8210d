"""What can be wrong with a server that is reached over SSH, as errors of the tree with a code of their own and a remedy.

Called by the other modules of this room; the codes reach the operator with the report (``remote_access.HostReport``). No message repeats
a secret: none of these is given one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from replication.control_plane import Problem
from replication.errors import BlockferryError, InvalidInput, PeerUnavailable, Refused
from replication.remote_access import SshCredentials, SshTarget

_MAX_SHOWN = 300


class NoAnswer(PeerUnavailable):
    """Nothing that speaks SSH is there."""

    code = "no-answer"

    def __init__(self, target: SshTarget, error: BaseException) -> None:
        timed_out = isinstance(error, asyncio.TimeoutError)
        super().__init__(
            f"cannot reach {target.host} port {target.port}: {'no answer in time' if timed_out else _text(error)}",
            hint="check the address, that sshd runs, and that the firewall lets the process server in",
        )


class AddressRefused(Refused):
    """What was named is no other server's; nothing was connected to."""

    code = "address-refused"

    def __init__(self, target: SshTarget, address: str, why: str) -> None:
        named = "" if address == target.host else f"{address}, which it means here, "
        super().__init__(
            f"cannot go to {target.host}: {named}{why}",
            hint="name the address under which others reach the server; on a machine that is a laboratory, set discovery.allow_loopback",
        )


class NoSsh(PeerUnavailable):
    """Something answers there, and is no sshd, or one that hangs up before it says so."""

    code = "no-ssh"

    def __init__(self, target: SshTarget, error: BaseException) -> None:
        said = "it said nothing of it in time" if isinstance(error, TimeoutError) else _text(error)
        super().__init__(
            f"cannot log in at {target.host}: what answers at {_place(target)} does not speak SSH ({said})",
            hint="give the port of sshd; if it is that one, sshd hangs up: see MaxStartups, PerSourcePenalties, and its log",
        )


class HostKeyUnknown(Refused):
    """The server is met for the first time; nothing was sent."""

    code = "host-key-unknown"

    def __init__(self, target: SshTarget, offered: str) -> None:
        super().__init__(
            f"cannot tell whether {target.host} is the server that it says: its host key {offered} is not known yet; nothing was sent",
            hint="compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the server, then "
            f"`migratectl servers accept-host-key {target.host} {offered}`",
        )
        self.offered = offered


class HostKeyChanged(Refused):
    """The server shows another key than the pinned one; nothing was sent."""

    code = "host-key-changed"

    def __init__(self, target: SshTarget, offered: Sequence[str]) -> None:
        super().__init__(
            f"cannot trust {target.host}: its host key was {target.host_key} and is {', '.join(offered)} now; nothing was sent",
            hint="somebody may be in between; if the server was reinstalled, compare the fingerprint on it, then "
            f"`migratectl servers accept-host-key {target.host} {offered[0]}`",
        )
        self.offered = offered[0]


class LoginRefused(Refused):
    """The server is the right one and does not let the user in."""

    code = "login-refused"


class NoSudo(Refused):
    """Logged in, and not root."""

    code = "no-sudo"


def login_refused(target: SshTarget, credentials: SshCredentials) -> LoginRefused:
    offered = [
        word
        for word, given in (("key", credentials.private_key), ("password", credentials.password))
        if given is not None
    ]
    return LoginRefused(
        f"cannot log in at {target.host} as {target.user}: the server refused the {' and the '.join(offered) or 'login'}",
        hint="check the user, authorized_keys, and sshd's PasswordAuthentication, PermitRootLogin and AllowUsers",
    )


def sudo_refused(target: SshTarget, said: str) -> NoSudo:
    return NoSudo(
        f"cannot become root at {target.host} as {target.user}: {said[:_MAX_SHOWN] or 'sudo refused'}",
        hint="give the password that sudo asks for, or allow the user to run sh with NOPASSWD in sudoers",
    )


def no_sudo(target: SshTarget) -> NoSudo:
    return NoSudo(
        f"cannot become root at {target.host}: {target.user} is not root, and sudo asks for a password that was not given",
        hint="log in as root, give --sudo-password-file, or allow NOPASSWD in sudoers",
    )


def unusable_key(error: BaseException) -> InvalidInput:
    return InvalidInput(
        f"cannot use the private key: {_text(error)}",
        hint="a file as ssh-keygen makes it; an encrypted one needs --key-passphrase-file",
    )


def broken_off(target: SshTarget, error: BaseException) -> PeerUnavailable:
    return PeerUnavailable(f"cannot go on at {target.host}: the connection broke: {_text(error)}", hint="try again")


def took_too_long(target: SshTarget, deadline_s: float) -> PeerUnavailable:
    return PeerUnavailable(
        f"cannot wait any longer for {target.host}: a command had not ended after {deadline_s:g} s",
        hint="log in and see what hangs there: a mount whose server is away, a disk that does not answer",
    )


def _place(target: SshTarget) -> str:
    return f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"


def problem_of(error: BlockferryError) -> Problem:
    return Problem(code=error.code, message=error.message, hint=error.hint)


def _text(error: BaseException) -> str:
    return (getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error) or type(error).__name__)[
        :_MAX_SHOWN
    ]
