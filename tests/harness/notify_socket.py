"""The service manager's end of sd_notify(3): a socket that takes notifications, with the process that sent each.

Called by tests of daemons' lives.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CREDENTIALS: Final = struct.Struct("3i")
_MAX_MESSAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Notification:
    """``text`` such as ``READY=1``; ``process_id`` by the kernel's word, as systemd checks it against the unit's main process."""

    text: str
    process_id: int


class NotifySocket:
    """``path`` is what ``NOTIFY_SOCKET`` must say. Reads all the time, as systemd does: the kernel holds back few messages."""

    def __init__(self, path: Path, receiver: socket.socket) -> None:
        self.path = path
        self._socket = receiver
        self._received: queue.SimpleQueue[Notification] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="notify-socket")
        self._reader.start()

    def wait_for(self, text: str, process_id: int, timeout_s: float) -> list[Notification]:
        """Everything up to and including ``text`` from ``process_id``.

        :raises TimeoutError: if it does not come.
        """
        found: list[Notification] = []
        deadline_s = time.monotonic() + timeout_s
        while Notification(text, process_id) not in found:
            try:
                found.append(self._received.get(timeout=max(0.001, deadline_s - time.monotonic())))
            except queue.Empty:
                raise TimeoutError(f"{text} did not come, only {found}") from None
        return found

    def _read(self) -> None:
        while True:
            message, ancillary, _, _ = self._socket.recvmsg(_MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            if not message:
                return
            sender = next(data for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS)
            self._received.put(Notification(message.decode(), _CREDENTIALS.unpack(sender)[0]))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._reader.join()


@contextlib.contextmanager
def notify_socket(path: Path) -> Iterator[NotifySocket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind(str(path))
        with contextlib.closing(NotifySocket(path, receiver)) as manager:
            yield manager
