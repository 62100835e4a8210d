"""SSH with a pinned host key, root and bounds: against Debian's sshd, and against servers that are not what they say."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest
from pydantic import SecretStr

from process_server.core.probe_output import Service
from process_server.remote.probe import Prober
from process_server.remote.problems import (
    AddressRefused,
    HostKeyChanged,
    HostKeyUnknown,
    LoginRefused,
    NoAnswer,
    NoSsh,
    NoSudo,
)
from process_server.remote.ssh_connection import SshConnection
from replication.clock import Clock
from replication.errors import InvalidInput, PeerProtocolError, PeerUnavailable
from replication.remote_access import SshCredentials, SshTarget
from replication.server_addresses import DiscoverySettings
from tests.harness.ssh_server import USER_WITHOUT_RIGHTS, SshServer, running_sshd, sudo_with

pytestmark = pytest.mark.requires("root", "sshd")
OTHER_KEY = "SHA256:" + "A" * 43
LAB = DiscoverySettings(allow_loopback=True)
PASSWORD = "s3cret of the login"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with running_sshd(tmp_path_factory.mktemp("sshd"), host_key_kinds=("ssh-ed25519", "ssh-rsa")) as server:
        yield server


@pytest.fixture
def sshd(served: SshServer) -> Iterator[SshServer]:
    yield served
    for program in (served.directory / "bin").iterdir():
        program.unlink()


async def connect(
    sshd: SshServer, credentials: SshCredentials | None = None, host_key: str | None = ""
) -> SshConnection:
    pinned = sshd.host_key if host_key == "" else host_key
    return await SshConnection.connect(sshd.target(pinned), credentials or sshd.credentials, LAB)


async def test_command_runs_and_says_how_it_ended(sshd: SshServer) -> None:
    async with await connect(sshd) as connection:
        done = await connection.run("cat; echo bad >&2; exit 3", deadline_s=20, most_bytes=100, stdin=b"taken")
    assert (done.status, done.output, done.errors) == (3, b"taken", "bad")


async def test_secret_that_the_server_prints_is_left_out(sshd: SshServer) -> None:
    credentials = sshd.credentials.model_copy(update={"sudo_password": SecretStr(PASSWORD)})
    async with await connect(sshd, credentials) as connection:
        done = await connection.run(
            "tee /dev/stderr", deadline_s=20, most_bytes=100, stdin=f"it is {PASSWORD}!".encode()
        )
    assert (done.output, done.errors) == (b"it is ***!", "it is ***!")


async def test_server_met_for_the_first_time_is_sent_nothing(sshd: SshServer) -> None:
    with pytest.raises(HostKeyUnknown) as caught:
        await connect(sshd, host_key=None)
    assert caught.value.offered == sshd.host_key
    assert "accept-host-key" in (caught.value.hint or "")


async def test_changed_key_is_refused_with_both_fingerprints(sshd: SshServer) -> None:
    with pytest.raises(HostKeyChanged) as caught:
        await connect(sshd, host_key=OTHER_KEY)
    assert OTHER_KEY in caught.value.message
    assert sshd.host_key in caught.value.message


async def test_any_of_a_servers_keys_may_be_the_pinned_one(sshd: SshServer) -> None:
    rsa = asyncssh.read_public_key(sshd.directory / "host_key_ssh-rsa.pub").get_fingerprint("sha256")
    async with await connect(sshd, host_key=rsa) as connection:
        assert (await connection.run("true", deadline_s=20, most_bytes=10)).status == 0


async def test_refused_login_says_what_was_tried(sshd: SshServer) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(LoginRefused, match="refused the key"):
        await connect(sshd, SshCredentials(private_key=SecretStr(stranger)))


async def test_key_that_is_none_is_refused_without_repeating_it(sshd: SshServer) -> None:
    with pytest.raises(InvalidInput) as caught:
        await connect(sshd, SshCredentials(private_key=SecretStr("no key at all, but secret")))
    assert "secret" not in str(caught.value)


async def test_encrypted_key_needs_its_passphrase(sshd: SshServer) -> None:
    key = asyncssh.import_private_key(sshd.private_key)
    encrypted = SecretStr(key.export_private_key("openssh", passphrase="of the key", rounds=50).decode())
    with pytest.raises(InvalidInput, match="passphrase"):
        await connect(sshd, SshCredentials(private_key=encrypted))
    credentials = SshCredentials(private_key=encrypted, key_passphrase=SecretStr("of the key"))
    async with await connect(sshd, credentials) as connection:
        assert connection.host == "127.0.0.1"


async def test_nothing_there_is_no_answer() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = SshTarget(host="127.0.0.1", port=unused.getsockname()[1], user="root", host_key=OTHER_KEY)
        with pytest.raises(NoAnswer, match="cannot reach"):
            await SshConnection.connect(target, SshCredentials(password=SecretStr(PASSWORD)), LAB)


async def test_deadline_ends_a_command(sshd: SshServer) -> None:
    async with await connect(sshd) as connection:
        with pytest.raises(PeerUnavailable, match="had not ended"):
            await connection.run("sleep 100", deadline_s=0.2, most_bytes=10)


async def test_output_without_end_is_cut_off(sshd: SshServer) -> None:
    async with await connect(sshd) as connection:
        with pytest.raises(PeerProtocolError, match="more than"):
            await connection.run("yes", deadline_s=20, most_bytes=100_000)


async def test_errors_without_end_are_dropped(sshd: SshServer) -> None:
    async with await connect(sshd) as connection:
        done = await connection.run("head -c 300000 /dev/zero >&2; echo ok", deadline_s=20, most_bytes=10)
    assert done.output == b"ok\n"
    assert len(done.errors) < 20_000


SCRIPT = b"main() {\n id -u\n cat\n}\nmain </dev/null\n"


@pytest.mark.parametrize(
    ("sudo", "given", "root"),
    [
        (None, None, False),
        (sudo_with(None), None, True),
        (sudo_with(None), "not needed", True),
        (sudo_with(PASSWORD), PASSWORD, True),
        (sudo_with(PASSWORD), None, False),
    ],
    ids=["no sudo", "NOPASSWD", "NOPASSWD, password given", "password", "password not given"],
)
async def test_script_runs_as_root_if_that_is_possible(
    sshd: SshServer, sudo: str | None, given: str | None, root: bool
) -> None:
    sshd.program("id", USER_WITHOUT_RIGHTS)
    sshd.program("sudo", sudo or "#!/bin/sh\nexit 127\n")
    sudo_password = None if given is None else SecretStr(given)
    credentials = SshCredentials(private_key=SecretStr(sshd.private_key), sudo_password=sudo_password)
    if sudo is None and given is None:
        credentials = sshd.credentials
    async with await connect(sshd, credentials) as connection:
        assert await connection.may_become_root() is root
        done = await connection.run_script(SCRIPT, ["a b"], as_root=True, deadline_s=20, most_bytes=1000)
    assert (done.status, done.output, done.errors) == (0, b"0\n" if root else b"1000\n", "")


async def test_wrong_sudo_password_is_tried_once_and_not_repeated(sshd: SshServer) -> None:
    sshd.program("id", USER_WITHOUT_RIGHTS)
    sshd.program("sudo", sudo_with(PASSWORD))
    credentials = SshCredentials(
        private_key=SecretStr(sshd.private_key), sudo_password=SecretStr("wrong horse battery")
    )
    async with await connect(sshd, credentials) as connection:
        with pytest.raises(NoSudo) as caught:
            await connection.may_become_root()
    assert "no password was provided" in caught.value.message
    assert "horse" not in str(caught.value)


async def test_probe_runs_over_ssh(sshd: SshServer) -> None:
    services = [Service("process server", "127.0.0.1", sshd.port)]
    async with await connect(sshd) as connection:
        facts = await Prober(Clock(), lambda: services).look(connection)
    assert facts.hostname == socket.gethostname()
    assert [reach.result for reach in facts.reach] == ["open"]
    assert abs(facts.clock_offset_s) < 10


async def test_probe_is_refused_where_the_login_runs_something_else(sshd: SshServer) -> None:
    sshd.program("sh", "#!/bin/bash\necho This account is disabled. >&2\nexit 1\n")
    async with await connect(sshd) as connection:
        with pytest.raises(PeerProtocolError, match="account is disabled"):
            await Prober(Clock(), list).look(connection)


class _PasswordServer(asyncssh.SSHServer):
    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return password == PASSWORD


@contextlib.asynccontextmanager
async def password_server() -> AsyncIterator[tuple[int, str]]:
    """A server that takes a password, which Debian's takes from the machine's own accounts only."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[key],
        server_factory=_PasswordServer,
        process_factory=lambda process: process.exit(0),
    )
    try:
        yield server.sockets[0].getsockname()[1], key.get_fingerprint("sha256")
    finally:
        server.close()
        await server.wait_closed()


async def test_password_logs_in_and_a_wrong_one_does_not() -> None:
    async with password_server() as (port, key):
        target = SshTarget(host="127.0.0.1", port=port, user="admin", host_key=key)
        async with await SshConnection.connect(target, SshCredentials(password=SecretStr(PASSWORD)), LAB) as connection:
            assert (await connection.run("true", deadline_s=20, most_bytes=10)).status == 0
        with pytest.raises(LoginRefused) as caught:
            await SshConnection.connect(target, SshCredentials(password=SecretStr("swordfish")), LAB)
    assert "swordfish" not in str(caught.value)


async def test_server_that_speaks_no_ssh_is_no_danger(tmp_path: Path) -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                writer.write(b"220 mail.example ESMTP " + b"x" * 10_000 + b"\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        target = SshTarget(host="127.0.0.1", port=server.sockets[0].getsockname()[1], user="root", host_key=OTHER_KEY)
        with pytest.raises(NoSsh) as told:
            await SshConnection.connect(target, SshCredentials(password=SecretStr(PASSWORD)), LAB)
    assert f"what answers at 127.0.0.1:{target.port} does not speak SSH" in told.value.message
    assert "the port of sshd" in (told.value.hint or "")


async def test_what_hangs_up_without_a_word_is_told_as_no_ssh() -> None:
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as server:
        target = SshTarget(host="127.0.0.1", port=server.sockets[0].getsockname()[1], user="root", host_key=OTHER_KEY)
        with pytest.raises(NoSsh, match="does not speak SSH"):
            await SshConnection.connect(target, SshCredentials(password=SecretStr(PASSWORD)), LAB)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "127.0.0.9"])
async def test_loopback_is_not_connected_to_whatever_it_is_called(host: str) -> None:
    """What listens there notices nothing, and the answer does not tell whether something does."""
    met = 0

    def meet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        said = []
        for port in (server.sockets[0].getsockname()[1], 1):
            target = SshTarget(host=host, port=port, user="root", host_key=OTHER_KEY)
            with pytest.raises(AddressRefused, match="loopback address") as told:
                await SshConnection.connect(target, SshCredentials(password=SecretStr(PASSWORD)))
            said.append(str(told.value))
    assert met == 0
    assert said[0] == said[1]


async def test_a_name_is_connected_to_at_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers otherwise the second time is not asked a second time; of several addresses those of others count."""
    asked = 0
    listener = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]

    async def answer(*_arguments: object, **_more: object) -> list[tuple[object, ...]]:
        nonlocal asked
        asked += 1
        found = ("169.254.169.254", "::ffff:127.0.0.1") if asked == 1 else ("127.0.0.1",)
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, found, strict=True)
        ]

    async with listener:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer, raising=False)
        target = SshTarget(host="web-1.example", port=port, user="root", host_key=OTHER_KEY)
        with pytest.raises(AddressRefused, match=r"169\.254\.169\.254, which it means here, is a link-local address"):
            await SshConnection.connect(target, SshCredentials(password=SecretStr(PASSWORD)))
    assert asked == 1
