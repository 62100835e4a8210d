"""The freeze watchdog: an independent process that thaws at the end of the budget, or when the agent dies, whatever happens.

Started by ``freeze_guard`` as a program of its own, by its path: ``python -I watchdog.py SOCKET-FD``. Imports the standard
library only. All its memory is locked; after the start it opens, writes and logs nothing: it must run when every file
system of the machine is frozen.

Messages over a SOCK_SEQPACKET pair, one byte of kind each:

    agent → watchdog   A + f64 budget in seconds + bool, with the descriptors of all mount points (SCM_RIGHTS), and, if true, of the record
                          of what is frozen (``freeze_record``) as the last one: arm; the clock starts
                       F + u16 index: about to freeze that one          (before the ioctl: killed in it, it is thawed)
                       N + u16 index: it was not frozen by us after all
                       D: disarm
    watchdog → agent   R: ready            a: armed
                       d + u16 count + u16 indices of those that the watchdog has thawed: disarmed

At the budget's end the watchdog thaws what is marked F, again and again until disarmed: a freeze that takes longer than
the budget is undone as soon as it stands. When the socket ends (the agent is gone), it thaws what is marked F, empties the record,
and ends.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
MAX_MOUNTS = 200
"""SCM_RIGHTS carries at most 253 descriptors in a message."""

READY, ARM, ARMED, FREEZING, NOT_FROZEN, DISARM, DISARMED = b"R", b"A", b"a", b"F", b"N", b"D", b"d"
MESSAGE_BYTES = 1 + 2 + 2 * MAX_MOUNTS
_RETRY_S = 0.05
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def thaw(descriptor: int) -> bool:
    """Whether the file system was frozen and is thawed now. Any other failure counts as not frozen."""
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError:
        return False
    return True


class Watch:
    """The armed state: which descriptors, which of them may be frozen, and until when."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.frozen: set[int] = set()
        self.thawed: list[int] = []
        self.deadline_s = 0.0
        self.record: int | None = None

    def arm(self, descriptors: list[int], record: int | None, deadline_s: float) -> None:
        self.disarm()
        self.descriptors = descriptors
        self.record = record
        self.deadline_s = deadline_s

    def disarm(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        if self.record is not None:
            os.close(self.record)
        self.record = None
        self.descriptors = []
        self.frozen.clear()
        self.thawed.clear()

    def thaw_all(self) -> None:
        """Last frozen, first thawed."""
        for index in sorted(self.frozen, reverse=True):
            if thaw(self.descriptors[index]):
                self.thawed.append(index)
                self.frozen.discard(index)

    def outlive_agent(self) -> None:
        """Nobody else thaws any more; and the next agent shall not thaw what somebody else may freeze from now on."""
        self.thaw_all()
        if self.record is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self.record, 0)

    def wait_s(self, now_s: float) -> float | None:
        """How long to wait for a message; None: for ever."""
        if not self.frozen:
            return None
        return max(0.0, self.deadline_s - now_s) or _RETRY_S


def serve(agent: socket.socket) -> None:
    """Until the agent's end is closed."""
    watch = Watch()
    poller = select.poll()
    poller.register(agent, select.POLLIN)
    agent.send(READY)
    while True:
        wait_s = watch.wait_s(time.monotonic())
        ready = poller.poll(None if wait_s is None else wait_s * 1000)
        if watch.frozen and time.monotonic() >= watch.deadline_s:
            watch.thaw_all()
        if not ready:
            continue
        try:
            message, ancillary, _, _ = agent.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(4 * (MAX_MOUNTS + 1)))
        except OSError:
            message = b""
        if not message:
            watch.outlive_agent()
            return
        _obey(watch, agent, message, ancillary)


def _obey(watch: Watch, agent: socket.socket, message: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
    kind, rest = message[:1], message[1:]
    if kind == ARM:
        descriptors = array.array("i")
        for _, _, data in ancillary:
            descriptors.frombytes(data)
        budget_s, has_record = struct.unpack("<d?", rest)
        record = descriptors.pop() if has_record else None
        watch.arm(list(descriptors), record, time.monotonic() + budget_s)
        agent.send(ARMED)
    elif kind == FREEZING:
        watch.frozen.add(struct.unpack("<H", rest)[0])
    elif kind == NOT_FROZEN:
        watch.frozen.discard(struct.unpack("<H", rest)[0])
    elif kind == DISARM:
        thawed = list(watch.thawed)
        watch.disarm()
        agent.send(DISARMED + struct.pack(f"<H{len(thawed)}H", len(thawed), *thawed))


def main() -> None:
    agent = socket.socket(fileno=int(sys.argv[1]))
    # It ends with the agent's socket, not with the signals that end the agent.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # needs CAP_SYS_RESOURCE
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"-1000")
        os.close(descriptor)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        sys.exit(f"cannot lock memory: {os.strerror(ctypes.get_errno() or errno.EPERM)}")
    serve(agent)


if __name__ == "__main__":
    main()
