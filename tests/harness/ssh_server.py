"""Debian's sshd for tests: on a free port of the loopback address, with keys and configuration of its own; and a `sudo` that tests script.

Called by tests of discovery and installation. ``running_sshd`` ends it with the block. Programs under ``directory/bin`` come before the
system's for whoever logs in: a test puts its own `id`, `sudo` or `df` there and so plays a user without rights, or a full disk.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from pydantic import SecretStr

from replication.remote_access import SshCredentials, SshTarget

_SEPARATION = Path("/run/sshd")


@dataclass(slots=True)
class SshServer:
    """A running sshd; ``credentials`` log in as ``user``."""

    directory: Path
    port: int
    host_key: str
    user: str
    private_key: str

    @property
    def credentials(self) -> SshCredentials:
        return SshCredentials(private_key=SecretStr(self.private_key))

    def target(self, host_key: str | None) -> SshTarget:
        return SshTarget(host="127.0.0.1", port=self.port, user=self.user, host_key=host_key)

    def program(self, name: str, script: str) -> None:
        """Put a program ahead of the system's of this name."""
        path = self.directory / "bin" / name
        path.write_text(script)
        path.chmod(0o755)


def fingerprint(key_file: Path) -> str:
    return asyncssh.read_public_key(f"{key_file}.pub").get_fingerprint("sha256")


def make_key(path: Path, kind: str = "ssh-ed25519") -> Path:
    key = asyncssh.generate_private_key(kind)
    key.write_private_key(path)
    key.write_public_key(f"{path}.pub")
    path.chmod(0o600)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_sshd(directory: Path, *, host_key_kinds: tuple[str, ...] = ("ssh-ed25519",)) -> Iterator[SshServer]:
    """Serve until the block is left. Needs root and openssh-server."""
    directory.mkdir(parents=True, exist_ok=True)
    _SEPARATION.mkdir(mode=0o755, exist_ok=True)
    (directory / "bin").mkdir(exist_ok=True)
    host_keys = [make_key(directory / f"host_key_{kind}", kind) for kind in host_key_kinds]
    login = make_key(directory / "login_key")
    (directory / "authorized_keys").write_bytes((directory / "login_key.pub").read_bytes())
    port = free_port()
    configuration = directory / "sshd_config"
    configuration.write_text(
        "\n".join(
            [
                f"Port {port}",
                "ListenAddress 127.0.0.1",
                *(f"HostKey {key}" for key in host_keys),
                f"AuthorizedKeysFile {directory}/authorized_keys",
                f"PidFile {directory}/sshd.pid",
                *("UsePAM no", "StrictModes no", "PermitRootLogin yes", "PasswordAuthentication no", "UseDNS no"),
                "Subsystem sftp internal-sftp",
                f"SetEnv PATH={directory}/bin:{os.environ['PATH']}",
            ]
        )
        + "\n"
    )
    with (directory / "sshd.log").open("wb") as log:
        process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(configuration)], stderr=log)
        try:
            _wait_for(port, process)
            yield SshServer(directory, port, fingerprint(host_keys[0]), getpass.getuser(), login.read_text())
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise AssertionError(f"sshd ended with {process.returncode}")
        time.sleep(0.02)
    raise AssertionError("sshd does not listen")


USER_WITHOUT_RIGHTS = """#!/bin/sh
[ "$BLOCKFERRY_ROOT" = 1 ] && exec /usr/bin/id "$@"
echo 1000
"""
"""An `id` for ``SshServer.program``: not root, unless the scripted `sudo` below has been passed."""


def sudo_with(password: str | None) -> str:
    """A `sudo` that takes this password on its standard input, as the real one does; None: NOPASSWD."""
    check = (
        ""
        if password is None
        else f"""
[ "$ask" = no ] && {{ echo "sudo: a password is required" >&2; exit 1; }}
[ "$standard" = yes ] || {{ echo "sudo: a terminal is required to read the password" >&2; exit 1; }}
for attempt in 1 2 3; do
    IFS= read -r given || {{ echo "sudo: no password was provided" >&2; exit 1; }}
    [ "$given" = '{password}' ] && break
    echo "Sorry, try again." >&2
    [ $attempt = 3 ] && {{ echo "sudo: 3 incorrect password attempts" >&2; exit 1; }}
done"""
    )
    return f"""#!/bin/sh
ask=yes standard=no
while :; do
    case $1 in
    -n) ask=no; shift ;;
    -S) standard=yes; shift ;;
    -k) shift ;;
    -p) shift 2 ;;
    *) break ;;
    esac
done
{check}
BLOCKFERRY_ROOT=1 exec "$@"
"""
