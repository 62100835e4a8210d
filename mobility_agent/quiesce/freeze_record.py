"""What is frozen right now, for whoever comes after an agent and a watchdog that were both killed: a small file in /run.

Written by ``freeze_guard`` before each freeze and emptied after the thaw; emptied by ``watchdog`` when it has thawed in a killed
agent's place; read by ``freeze_guard`` at the agent's start, and for ``left_frozen`` when the agent is removed. /run is a tmpfs: it is
never frozen itself, and what it holds ends with the machine, as a freeze does. Where it is none, the boot that the record names tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mobility_agent.quiesce.interface import Mount
from replication.errors import BlockferryError, Refused
from replication.identifiers import parse_uuid

RUN_DIRECTORY: Final = Path("/run/blockferry")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_BYTES: Final = 4 * 1024 * 1024


def record_of(machine: str, directory: Path = RUN_DIRECTORY) -> Path:
    """Where the agent with that identity keeps its record: agents of several identities may run on one kernel."""
    return directory / f"agent-{machine}.frozen"


def machines_recorded(directory: Path) -> list[str]:
    """The identities of which there is a record."""
    found = []
    for path in sorted(directory.glob("agent-*.frozen")):
        with contextlib.suppress(BlockferryError):
            found.append(parse_uuid(path.stem.removeprefix("agent-"), "machine id"))
    return found


class FreezeRecord:
    """One file. ``open`` before ``note``; ``close`` takes the file away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def open(self) -> int:
        """The descriptor of the file, which is made if there is none.

        :raises Refused: if it cannot be: nothing may be frozen then.
        """
        if self._descriptor is None:
            try:
                self._path.parent.mkdir(mode=0o755, exist_ok=True)
                self._descriptor = os.open(
                    self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600
                )
            except OSError as error:
                raise Refused(
                    f"cannot freeze: no record of it can be kept in {self._path}: {error.strerror}",
                    hint="run the agent as root",
                ) from error
        return self._descriptor

    def note(self, mounts: Sequence[Mount]) -> None:
        """``mounts`` are about to be frozen. :raises Refused: if that cannot be written."""
        content = json.dumps({"boot": _boot(), "mounts": [dataclasses.asdict(mount) for mount in mounts]}).encode()
        descriptor = self.open()
        try:
            os.ftruncate(descriptor, 0)
            if os.pwrite(descriptor, content, 0) != len(content):
                raise OSError(0, "no room")  # noqa: TRY301
        except OSError as error:
            raise Refused(f"cannot freeze: no record of it can be kept in {self._path}: {error.strerror}") from error

    def clear(self) -> None:
        """Everything is thawed."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)

    def left(self) -> list[Mount]:
        """What may still be frozen by an agent before this one, in the order in which it was frozen. A torn record stands for nothing:
        it was not written to its end, so that the freeze had not begun.
        """
        try:
            with self._path.open("rb") as stream:
                told = json.loads(stream.read(_MOST_BYTES))
            if told["boot"] != _boot():
                return []
            return [Mount(**{**mount, "device": (mount["device"][0], mount["device"][1])}) for mount in told["mounts"]]
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            return []

    def clear_left(self) -> None:
        """What was left is thawed."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def close(self) -> None:
        """Nothing is frozen. Idempotent."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
