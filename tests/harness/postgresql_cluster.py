"""A PostgreSQL of the test's own: Debian's programs, a new cluster in a directory of its own, on a Unix socket, as an unprivileged user.

Called by ``each_database.py`` and by the tests of failover. ``PostgresqlCluster`` is a context: on entry the cluster answers, on exit it is
ended by its id and its directory is gone. It does not outlive this process (PR_SET_PDEATHSIG). Without fsync by default: what a crash of
the *machine* would cost is not the matter here, and every test gets a database of its own.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types

from replication.tls_identity import TlsIdentity

START_TIMEOUT_S: Final = 60.0
USER: Final = "blockferry"
_SERVER_USER: Final = "postgres"
_INSTALLED: Final = Path("/usr/lib/postgresql")
_QUICK: Final = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=200", "autovacuum=off")


def postgresql_programs() -> Path | None:
    """The directory of the newest version's programs, or None if PostgreSQL is not installed."""
    found = [path for path in _INSTALLED.glob("*/bin/postgres") if path.parent.parent.name.isdecimal()]
    return max(found, key=lambda path: int(path.parent.parent.name)).parent if found else None


def lacking_postgresql() -> str | None:
    """For ``@pytest.mark.requires("postgresql")``."""
    return None if postgresql_programs() else "needs PostgreSQL's server (deploy/setup/debian-packages.txt)"


class PostgresqlCluster:
    """``url(name)`` is what ``database_url`` takes. ``tls``: it listens on ``port`` of the loopback address, too, with this identity."""

    def __init__(self, tls: TlsIdentity | None = None, port: int = 5432) -> None:
        programs = postgresql_programs()
        assert programs is not None, "PostgreSQL is not installed"
        self._programs = programs
        self.port = port
        self._tls = tls
        self._numbers: Iterator[int] = itertools.count(1)
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Not below pytest's directory: that is root's alone, and a socket's path may have 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="blockferry-pg-"))
        if os.geteuid() == 0:
            account = pwd.getpwnam(_SERVER_USER)
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        options = ("-U", USER, "--auth=trust", "-E", "UTF8", "--no-locale", "--no-sync")
        initdb = self._unprivileged(self._programs / "initdb", "-D", self.directory / "data", *options)
        subprocess.run(initdb, check=True, capture_output=True)
        if self._tls is not None:
            for path in (self._tls.key_path, self._tls.certificate_path):
                copy = Path(shutil.copy(path, self.directory))
                copy.chmod(0o600)
                if os.geteuid() == 0:
                    shutil.chown(copy, _SERVER_USER)
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self) -> None:
        """On return it answers."""
        settings = [*_QUICK, f"port={self.port}", "listen_addresses="]
        if self._tls is not None:
            files = (self._tls.certificate_path, self._tls.key_path)
            certificate, key = (self.directory / path.name for path in files)
            settings += ["listen_addresses=127.0.0.1", "ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}"]
        options = [word for setting in settings for word in ("-c", setting)]
        command: tuple[str | Path, ...] = (
            self._programs / "postgres",
            "-D",
            self.directory / "data",
            "-k",
            self.directory,
            *options,
        )
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                self._unprivileged(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        ready = (self._programs / "pg_isready", "-q", "-h", self.directory, "-p", str(self.port))
        until_s = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._server.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < until_s, "PostgreSQL does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, as a crash is (*immediate shutdown*)."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(START_TIMEOUT_S)
            self._server = None

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.directory}"

    async def connect(self, database: str = "postgres") -> Any:
        """A connection beside the product's (asyncpg's)."""
        return await asyncpg.connect(host=str(self.directory), port=self.port, user=USER, database=database)

    async def create_database(self, template: str | None = None, drop: Sequence[str] = ()) -> str:
        """A new database, like ``template``, to which nobody may be connected; returns its name. Those of ``drop`` go."""
        name = f"test_{next(self._numbers)}"
        connection = await self.connect()
        try:
            for old in drop:
                await connection.execute(f'DROP DATABASE "{old}" WITH (FORCE)')
            like = "" if template is None else f' TEMPLATE "{template}" STRATEGY file_copy'
            await connection.execute(f'CREATE DATABASE "{name}"{like}')
        finally:
            await connection.close()
        return name

    def _unprivileged(self, *command: str | Path) -> list[str]:
        words = [str(word) for word in command]
        if os.geteuid() != 0:
            return words
        account = pwd.getpwnam(_SERVER_USER)
        identity = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--no-new-privs")
        return ["setpriv", *identity, "--pdeathsig=KILL", "--", *words]
