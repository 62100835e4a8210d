"""Freezing file systems under the eyes of the watchdog (rule R9).

Called by the agent's point epochs and by cutover. Touches the mount points (opened before the freeze), and the watchdog
process that it starts. See ``interface`` for what a freeze promises and ``watchdog`` for the messages.

Before each freeze a record of it is written to /run (``freeze_record``): after agent and watchdog were both killed, the agent's next start
thaws what it names (``thaw_left``). That the watchdog alone is gone is seen by ``remaining_s``: there is no time left then.

While ``frozen`` is on, the caller must not write files, log, import modules (their bytecode is written) or wait for anything
that does. A file system with the agent's own state may be among the frozen ones as long as nothing is written there.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mobility_agent.quiesce import watchdog
from mobility_agent.quiesce.freeze_record import FreezeRecord
from mobility_agent.quiesce.interface import FreezeResult, Mount
from replication.errors import BlockferryError, Conflict, InvalidInput, NotFound, Refused, Unsupported

_ANSWER_TIMEOUT_S: Final = 10.0
MAX_BUDGET_S: Final = 60.0

_libc: Final = ctypes.CDLL(None, use_errno=True)
_logger = logging.getLogger(__name__)


class RunningFreeze:
    """See ``interface.Freeze``."""

    def __init__(self, deadline_s: float, is_watched: Callable[[], bool]) -> None:
        self._deadline_s = deadline_s
        self._is_watched = is_watched
        self.was_unwatched = False
        self.result: FreezeResult | None = None

    def remaining_s(self) -> float:
        if not self._is_watched():
            self.was_unwatched = True
        return 0.0 if self.was_unwatched else self._deadline_s - time.monotonic()


class FreezeGuard:
    """``interface.Freezer`` with a watchdog process. One freeze at a time. Close it, or use it as a context."""

    def __init__(self, record: FreezeRecord | None = None) -> None:
        """:param record: of what is frozen; None: nobody comes after this process."""
        self._record = record
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def watchdog_process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def thaw_left(self) -> list[str]:
        """Thaw what an agent before this one has left frozen, and nothing else; the mount points of what was.

        The caller is the only agent that keeps this record, and has written to no file system yet: it might be one of these.
        """
        thawed, failures = [], []
        for mount in reversed([] if self._record is None else self._record.left()):
            try:
                descriptor = _open_mount(mount)
            except BlockferryError as error:
                failures.append(str(error))
                continue
            if watchdog.thaw(descriptor):
                thawed.append(mount.mount_point)
            os.close(descriptor)
        if self._record is not None:
            self._record.clear_left()
        if thawed or failures:
            fields = {"thawed": ", ".join(thawed), "failures": "; ".join(failures)}
            _logger.warning("an agent before this one was killed in a freeze", extra={"fields": fields})
        return thawed

    def start(self) -> None:
        """Start the watchdog, if it does not run.

        :raises Refused: if it cannot be started or cannot lock its memory: nothing may be frozen then.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its:
                # In a session of its own: signals to the agent's group do not reach it.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(Path(watchdog.__file__)), str(its.fileno())],
                    pass_fds=(its.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            ours.settimeout(_ANSWER_TIMEOUT_S)
            self._socket = ours
            if ours.recv(watchdog.MESSAGE_BYTES) != watchdog.READY:
                raise Refused(f"cannot freeze: the watchdog did not start: {self._last_words()}")  # noqa: TRY301
        except BaseException:
            ours.close()
            self.close()
            raise

    def _last_words(self) -> str:
        process = self._process
        if process is None or process.stderr is None:
            return "no reason is known"
        process.wait(_ANSWER_TIMEOUT_S)
        return process.stderr.read().decode(errors="replace").strip() or f"exit code {process.returncode}"

    def close(self) -> None:
        """End the watchdog. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(_ANSWER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None
        if self._record is not None:
            self._record.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def frozen(self, mounts: Sequence[Mount], budget_s: float) -> Iterator[RunningFreeze]:
        """See ``interface.Freezer``. The budget runs from just before the first file system is frozen.

        Dirty data is written back before that (syncfs), so that the freeze itself is short.
        """
        if not 0 < budget_s <= MAX_BUDGET_S or len(mounts) > watchdog.MAX_MOUNTS:
            raise InvalidInput(
                f"cannot freeze {len(mounts)} file systems for {budget_s:g} s",
                hint=f"at most {watchdog.MAX_MOUNTS} and {MAX_BUDGET_S:g} s",
            )
        self.start()
        with contextlib.ExitStack() as opened:
            descriptors: list[int] = []
            for mount in mounts:
                descriptors.append(_open_mount(mount))
                opened.callback(os.close, descriptors[-1])
            for descriptor in descriptors:
                _libc.syncfs(descriptor)  # a failure shows again, and is decided upon, when it is frozen
            if self._record is not None and mounts:
                self._record.note(mounts)
                opened.callback(self._record.clear)
            is_watched = self._arm(descriptors, budget_s)
            started_s = time.monotonic()
            freeze = RunningFreeze(started_s + budget_s, is_watched)
            done: list[int] = []
            try:
                for index, mount in enumerate(mounts):
                    self._freeze_one(index, mount, descriptors[index])
                    done.append(index)
                yield freeze
            finally:
                interfered = [
                    mounts[index].mount_point for index in reversed(done) if not self._thaw_one(index, descriptors)
                ]
                duration_s = time.monotonic() - started_s
                by_watchdog = self._disarm()
                if freeze.was_unwatched:
                    freeze.result = FreezeResult(False, duration_s, "the freeze watchdog was gone: thawed at once")
                else:
                    freeze.result = _result(duration_s, budget_s, interfered, by_watchdog=bool(by_watchdog))

    def _freeze_one(self, index: int, mount: Mount, descriptor: int) -> None:
        self._tell(watchdog.FREEZING + struct.pack("<H", index))
        try:
            fcntl.ioctl(descriptor, watchdog.FIFREEZE, 0)
        except OSError as error:
            with contextlib.suppress(Refused):  # the watchdog's death matters less than this error
                self._tell(watchdog.NOT_FROZEN + struct.pack("<H", index))
            raise _freeze_error(mount, error) from error

    def _thaw_one(self, index: int, descriptors: list[int]) -> bool:
        """Whether it was still frozen by us. The watchdog is told: a freeze by someone else from now on is not its business."""
        thawed = watchdog.thaw(descriptors[index])
        with contextlib.suppress(Refused):
            self._tell(watchdog.NOT_FROZEN + struct.pack("<H", index))
        return thawed

    def _tell(self, message: bytes) -> None:
        """:raises Refused: if the watchdog is gone."""
        try:
            self._connection().send(message)
        except OSError as error:
            raise Refused("cannot freeze: the watchdog is gone", hint="the next attempt starts it anew") from error

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise Refused("cannot freeze: the watchdog is not running")
        return self._socket

    def _arm(self, descriptors: list[int], budget_s: float) -> Callable[[], bool]:
        """What tells from now on whether the watchdog lives."""
        has_record = self._record is not None and bool(descriptors)
        if self._record is not None and has_record:
            descriptors = [*descriptors, self._record.open()]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._connection().sendmsg([watchdog.ARM + struct.pack("<d?", budget_s, has_record)], rights)
            answer = self._connection().recv(watchdog.MESSAGE_BYTES)
        except OSError as error:
            self._abandon()
            raise Refused("cannot freeze: the watchdog is gone", hint="the next attempt starts it anew") from error
        if answer != watchdog.ARMED:
            self._abandon()
            raise Refused("cannot freeze: the watchdog did not answer", hint="the next attempt starts it anew")
        poller = select.poll()
        poller.register(
            self._connection(), select.POLLIN
        )  # it says nothing while it is armed: whatever comes is its end
        return lambda: not poller.poll(0)

    def _abandon(self) -> None:
        """It does not answer as it should: no message to it can be trusted any more. Nothing is frozen now."""
        if self._process is not None:
            self._process.kill()
        self.close()

    def _disarm(self) -> list[int]:
        """What the watchdog has thawed; nothing if it is gone: then it has thawed nothing that we could have thawed."""
        try:
            self._connection().send(watchdog.DISARM)
            answer = self._connection().recv(watchdog.MESSAGE_BYTES)
        except (OSError, Refused):
            answer = b""
        if answer[:1] != watchdog.DISARMED:
            self._abandon()
            return []
        return list(struct.unpack_from(f"<{struct.unpack_from('<H', answer, 1)[0]}H", answer, 3))


def _open_mount(mount: Mount) -> int:
    try:
        descriptor = os.open(mount.mount_point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"cannot freeze {mount.mount_point}: it is not mounted any more") from None
    except OSError as error:
        raise Refused(f"cannot freeze {mount.mount_point}: {error.strerror}", hint="run the agent as root") from error
    found = os.fstat(descriptor).st_dev
    if (os.major(found), os.minor(found)) != mount.device and mount.fs_type != "btrfs":
        os.close(descriptor)
        raise Conflict(
            f"cannot freeze {mount.source}: another file system is mounted over {mount.mount_point}",
            hint="unmount the upper one, or mount the lower one a second time elsewhere",
        )
    return descriptor


def _freeze_error(mount: Mount, error: OSError) -> Conflict | Refused | Unsupported:
    where = f"cannot freeze {mount.fs_type} on {mount.mount_point}"
    match error.errno:
        case errno.EBUSY:
            return Conflict(
                f"{where}: it is frozen by someone else", hint="another backup program? fsfreeze --unfreeze ends it"
            )
        case errno.EPERM | errno.EACCES:
            return Refused(f"{where}: {error.strerror}", hint="run the agent as root")
        case errno.EOPNOTSUPP | errno.ENOTTY:
            return Unsupported(f"{where}: this kind of file system cannot be frozen", hint="use quiesce hooks instead")
        case _:
            return Unsupported(f"{where}: {error.strerror}")


def _result(duration_s: float, budget_s: float, interfered: list[str], *, by_watchdog: bool) -> FreezeResult:
    if by_watchdog or duration_s > budget_s:
        return FreezeResult(
            is_point=False,
            duration_s=duration_s,
            problem=f"the freeze took longer than its budget of {budget_s:g} s",
        )
    if interfered:
        return FreezeResult(
            is_point=False,
            duration_s=duration_s,
            problem=f"someone else thawed {', '.join(interfered)} meanwhile",
        )
    return FreezeResult(is_point=True, duration_s=duration_s)
