"""Commands on servers without an agent: discover, cancel that, accept a host key, forget. Called by ``cli.py``.

Secrets come from files or standard input, never from the command line, where every user of the machine could read them.
"""

from __future__ import annotations

import asyncio
import getpass
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from pydantic import SecretStr
from rich.console import Console

from config_server.core.host_import import HOST_KEY, read_host_file
from config_server.core.host_list import Host, parse_hosts
from config_server.discovery_plane import (
    DiscoveredServer,
    DiscoveryRequest,
    DiscoveryStatus,
    HostKeyAcceptance,
    HostRequest,
)
from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import ConfigServer, WaitTimedOut, as_json, path_part
from config_server.migratectl.discovery_rendering import host_line, tell_run
from config_server.migratectl.invocation import EXIT_FAILED, Invocation, json_option, pass_invocation
from config_server.migratectl.login_options import login_options
from replication.errors import InvalidInput, SettingsError
from replication.remote_access import MAX_HOSTS, MAX_KEY_CHARACTERS, MAX_PASSWORD_CHARACTERS, SSH_PORT, SshCredentials
from replication.service.console import make_console
from replication.settings import parse_duration

POLL_S: Final = 0.5
_UNEXPECTED: Final = ("failed", "host-key-changed", "host-key-unknown")


def read_credentials(
    key_file: Path | None,
    key_passphrase_file: Path | None,
    password_file: Path | None,
    sudo_password_file: Path | None,
) -> SshCredentials:
    """:raises SettingsError: if none is given, or a file cannot be read. No message repeats what is in it."""
    if key_file is None and password_file is None:
        raise SettingsError("cannot log in anywhere", hint="give --key-file or --password-file")
    return SshCredentials(
        private_key=_secret(key_file, MAX_KEY_CHARACTERS, whole=True),
        key_passphrase=_secret(key_passphrase_file, MAX_PASSWORD_CHARACTERS),
        password=_secret(password_file, MAX_PASSWORD_CHARACTERS),
        sudo_password=_secret(sudo_password_file, MAX_PASSWORD_CHARACTERS),
    )


def _secret(path: Path | None, most: int, *, whole: bool = False) -> SecretStr | None:
    if path is None:
        return None
    try:
        if str(path) != "-":
            text = path.read_text()
        elif sys.stdin.isatty():
            text = getpass.getpass("password: ")
        else:
            text = sys.stdin.readline(most + 2)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"cannot read {path}: {reason}") from None
    if not whole:
        text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip() or len(text) > most or (not whole and "\n" in text):
        raise SettingsError(f"cannot use {path}: it is empty, too long, or has more than one line")
    return SecretStr(text)


@click.command()
@click.argument("hosts", nargs=-1)
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="List of hosts: CSV, YAML, or a host a line; may be repeated.",
)
@click.option("--user", default="root", show_default=True, help="Log in as this user where a host names none.")
@click.option("--port", default=SSH_PORT, show_default=True, type=click.IntRange(1, 65535), help="Port of sshd.")
@login_options
@click.option(
    "--host-key", "host_keys", multiple=True, help="HOST[:PORT]=SHA256:…, the host key to accept; may be repeated."
)
@click.option(
    "--accept-new-host-keys",
    is_flag=True,
    help="Accept whatever key a server shows that is met for the first time. Never a changed one.",
)
@click.option("--process-server", default=None, help="Go there from this process server; by default from any.")
@click.option(
    "--timeout", default=None, help="Give up waiting after this time (such as 30 min); the discovery goes on."
)
@json_option
@pass_invocation
def discover(
    invocation: Invocation,
    /,
    hosts: tuple[str, ...],
    files: tuple[Path, ...],
    user: str,
    port: int,
    key_file: Path | None,
    key_passphrase_file: Path | None,
    password_file: Path | None,
    sudo_password_file: Path | None,
    host_keys: tuple[str, ...],
    accept_new_host_keys: bool,
    process_server: str | None,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """Look over SSH at HOSTS (names, addresses, networks up to a /22, ranges): system, disks, what stands against protection.

    A host key that is met for the first time is shown, and nothing is sent, until it is accepted: here on a terminal, with --host-key,
    with --accept-new-host-keys, or with `servers accept-host-key`.
    """
    wanted = _requests(hosts, files, port, _given_keys(host_keys))
    credentials = read_credentials(key_file, key_passphrase_file, password_file, sudo_password_file)
    deadline = None if timeout is None else time.monotonic() + parse_duration(timeout, "--timeout")
    console = make_console()

    async def act(server: ConfigServer) -> DiscoveryStatus:
        async def look(at: list[HostRequest]) -> DiscoveryStatus:
            request = _checked(at, user, port, credentials, process_server)
            run = await server.send("POST", "/discoveries", DiscoveryStatus, request)
            if not as_json_wanted:
                console.print(f"discovery {run.id} began")
            return await _until_ended(server, run, None if as_json_wanted else console, deadline)

        run = await look(wanted)
        accepted = [
            HostRequest(address=host.address, port=host.port, user=host.user)
            for host in run.hosts
            if host.state == "host-key-unknown"
            and host.offered_host_key is not None
            and await _accept(server, host.server, host.address, host.offered_host_key, always=accept_new_host_keys)
        ]
        if not accepted:
            return run
        again = {(host.address, host.port): host for host in (await look(accepted)).hosts}
        return run.model_copy(update={"hosts": [again.get((host.address, host.port), host) for host in run.hosts]})

    run = invocation.run(act)
    if as_json_wanted:
        click.echo(as_json(run))
    else:
        tell_run(console, run)
    missed = [host for host in run.hosts if host.state in _UNEXPECTED or (host.state == "silent" and not host.of_range)]
    if missed:
        sys.exit(EXIT_FAILED)


def _checked(
    hosts: list[HostRequest], user: str, port: int, credentials: SshCredentials, process_server: str | None
) -> DiscoveryRequest:
    values = {
        "hosts": hosts,
        "user": user,
        "port": port,
        "credentials": credentials,
        "process_server": process_server,
    }
    options = {"user": ("--user", "a user's name"), "hosts": ("these hosts", f"1 to {MAX_HOSTS} of them")}
    return checked(DiscoveryRequest, values, options)


_Keys = dict[tuple[str, int | None], str]
"""By host and port; port None: the host's, whichever port it is reached at."""


def _given_keys(texts: Sequence[str]) -> _Keys:
    found: _Keys = {}
    for text in texts:
        host, _, key = text.partition("=")
        if not host or not HOST_KEY.fullmatch(key):
            raise SettingsError(
                f"cannot use --host-key {text[:100]!r}",
                hint="HOST[:PORT]=SHA256:…, as `ssh-keygen -l` prints the fingerprint",
            )
        named = parse_hosts(host, allow_loopback=True)
        if len(named) != 1:
            raise SettingsError(
                f"cannot use --host-key {text[:100]!r}: a key is one host's", hint="give it for each host"
            )
        found[named[0].host.lower(), named[0].port] = key
    return found


def _take_key(host: Host, port: int, keys: _Keys) -> str | None:
    """The key given for this host, which is reached at ``port`` unless it names another; each key is taken once."""
    name = host.host.lower()
    return keys.pop((name, host.port or port), None) or keys.pop((name, None), None)


def _requests(hosts: Sequence[str], files: Sequence[Path], port: int, keys: _Keys) -> list[HostRequest]:
    """:raises InvalidInput: for a host that cannot be used; of a file with line and column."""
    found: list[HostRequest] = []
    for text in hosts:
        parsed = parse_hosts(text, allow_loopback=True)  # whether the site does, it says itself
        key = _take_key(parsed[0], port, keys) if len(parsed) == 1 else None
        found.append(HostRequest(address=text, host_key=key))
    for path in files:
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {path}: {error}") from error
        found += [_request(host, port, keys) for host in read_host_file(path.name, content)]
    if keys:
        left = ", ".join(sorted(host if at is None else f"{host} port {at}" for host, at in keys))
        raise SettingsError(
            f"cannot use --host-key for {left}: no such host is to be discovered", hint="named as among the hosts"
        )
    if not found:
        raise InvalidInput("cannot discover nothing", hint="name hosts, or give --file")
    return found


def _request(host: Host, port: int, keys: _Keys) -> HostRequest:
    return HostRequest(
        address=host.host,
        port=host.port,
        user=host.user,
        host_key=host.host_key or _take_key(host, port, keys),
        of_range=host.of_range,
    )


async def _accept(server: ConfigServer, identifier: str | None, address: str, key: str, *, always: bool) -> bool:
    if identifier is None:
        return False
    if not always:
        if not sys.stdin.isatty():
            return False
        question = f"{address} shows the host key {key}. Is this what `ssh-keygen -l` prints on the server?"
        if not click.confirm(question, err=True):
            return False
    await server.send(
        "PUT", f"/servers/{path_part(identifier)}/host-key", DiscoveredServer, HostKeyAcceptance(host_key=key)
    )
    return True


async def _until_ended(
    server: ConfigServer, run: DiscoveryStatus, console: Console | None, deadline: float | None
) -> DiscoveryStatus:
    """Poll; a line for each host that comes forward, and for how many are done."""
    shown: dict[tuple[str, int], str] = {}
    told = 0
    while True:
        for host in run.hosts if console is not None else ():
            line = host_line(host)
            if host.state != "waiting" and shown.get((host.address, host.port)) != line and console is not None:
                console.print(line, soft_wrap=True, highlight=False, markup=False)
                shown[host.address, host.port] = line
        if console is not None and run.total > len(run.hosts) and run.done - told >= 100:
            told = run.done
            console.print(f"{run.done} of {run.total} looked at")
        if run.state == "ended":
            return run
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimedOut(
                f"cannot wait longer for the discovery {run.id}: {run.done} of {run.total} looked at"
                + (f"; {run.message}" if run.message else ""),
                hint=f"it goes on; `migratectl servers` lists what was found, `migratectl cancel-discovery {run.id}` ends it",
            )
        await asyncio.sleep(POLL_S)
        run = await server.get(f"/discoveries/{run.id}", DiscoveryStatus)


@click.command("cancel-discovery")
@click.argument("discovery")
@pass_invocation
def cancel_discovery(invocation: Invocation, discovery: str) -> None:
    """End DISCOVERY and erase its credentials; what was found stays."""
    path = f"/discoveries/{path_part(discovery)}/cancellation"
    run = invocation.run(lambda server: server.send("POST", path, DiscoveryStatus))
    click.echo(f"discovery {run.id}: {run.message}; {run.total} hosts")


@click.command("accept-host-key")
@click.argument("server")
@click.argument("host_key")
@pass_invocation
def accept_host_key(invocation: Invocation, server: str, host_key: str) -> None:
    """Accept HOST_KEY (SHA256:…) as the one that the discovered SERVER must show from now on."""
    if not HOST_KEY.fullmatch(host_key):
        raise SettingsError(
            f"cannot use {host_key[:100]!r} as a host key", hint="as `ssh-keygen -l` prints the fingerprint: SHA256:…"
        )
    found = invocation.run(
        lambda connection: connection.send(
            "PUT", f"/servers/{path_part(server)}/host-key", DiscoveredServer, HostKeyAcceptance(host_key=host_key)
        )
    )
    click.echo(f"host key of {found.address} port {found.port}: {found.host_key}")


@click.command("forget")
@click.argument("server")
@pass_invocation
def forget(invocation: Invocation, server: str) -> None:
    """Forget what was discovered of SERVER, and its host key; an agent that has enrolled stays."""
    invocation.run(lambda connection: connection.order("DELETE", f"/servers/{path_part(server)}/discovery"))
    click.echo(f"{server} is forgotten")
