"""The first administrator's way in: a one-time secret, or a token at once, and the file in which it is handed over.

Called by ``installation.py``. The file is durable before the database commits what it holds. So whatever fails in between, or crashes,
leaves nothing in the database that nobody can have read: a repetition makes another, and writes it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from config_server.administrators import Administrators
from config_server.events import COMMAND_LINE
from replication.durable_file import DurableFile
from replication.errors import Conflict, SettingsError
from replication.failpoint import reached


@dataclass(frozen=True, slots=True)
class SecretFile:
    """``asked_for``: the caller named it, and counts on what is in it afterwards."""

    path: Path
    asked_for: bool


async def make_first_access(administrators: Administrators, name: str | None, file: SecretFile | None) -> str | None:
    """A one-time secret, or with ``name`` that administrator's token, durable and in ``file`` on return; None if none was made.

    None is made if somebody can come in already. Only for a file that was asked for a secret that waits does not count, for who has it
    is not known: it ends, another takes its place. So on return a file that was asked for holds a way in.

    :raises SettingsError: the file cannot be written. :raises Conflict: it was asked for, and an administrator has a token already.
    """
    if file is None or not file.asked_for:
        if await administrators.can_come_in():
            return None
    elif await _lets_in(administrators, file.path, secrets_count=name is None):
        return None
    elif await administrators.has_token():
        raise Conflict(
            f"cannot write {file.path}: no secret is made for it, since an administrator has a token already",
            hint="all else is done, and `config-server init` without --token-file does it again; "
            "`config-server create-administrator-token` makes another token",
        )
    hand_over = None if file is None else functools.partial(_write, file.path)
    if name is None:
        return await administrators.create_one_time_secret(COMMAND_LINE, hand_over)
    return await administrators.create_first_token(name, COMMAND_LINE, hand_over)


async def _lets_in(administrators: Administrators, path: Path, *, secrets_count: bool) -> bool:
    """Whether an earlier call has written the file, and an administrator can still come in with what it holds."""
    text = _text_in(path)
    found = await administrators.recognize(text)
    if found is not None:
        return found.is_administrator
    return secrets_count and await administrators.is_waiting(text)


def _text_in(path: Path) -> str:
    """Nothing if it cannot be read: whether it can be written is seen where it is written."""
    try:
        return path.read_text(errors="replace").strip() if path.is_file() else ""
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    try:
        if path.exists() and not path.is_file():
            raise SettingsError(f"cannot write {path}: it is no file", hint="name a file with --token-file")
        DurableFile(path).replace(f"{text}\n".encode())
        reached("config.first-access.written")
    except OSError as error:
        raise SettingsError(
            f"cannot write {path}: {error.strerror}", hint="name a file in a directory that you can write to"
        ) from error
