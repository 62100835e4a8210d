"""Two network namespaces with a cable between them that can be pulled out and made slow: the process server alone on one side.

Called by tests/fault. ``private_network`` moves the calling thread, and every process it starts from then on, into a new namespace;
whoever is to be on the other side enters it by its file. The machine's own network sees nothing of it, and all is gone when the context
is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.loop_disk import run

NEAR: Final = "10.77.0.1"
FAR: Final = "10.77.0.2"
_CLONE_NEWNET: Final = 0x40000000
_HERE: Final = "/proc/thread-self/ns/net"
_CABLE: Final = ("near", "far")


def enter_network(namespace: str | int) -> None:
    """This thread, and what it starts from now on. :param namespace: a file of nsfs, or its descriptor."""
    descriptor = os.open(namespace, os.O_RDONLY) if isinstance(namespace, str) else namespace
    try:
        _checked(ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET), "setns")
    finally:
        if isinstance(namespace, str):
            os.close(descriptor)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


@dataclass(frozen=True, slots=True)
class Cable:
    """Between ``NEAR``, where the calling thread is, and ``FAR``, which ``far_namespace`` leads to."""

    far_namespace: Path

    def pull_out(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        run("ip", "link", "set", _CABLE[0], "down")

    def plug_in(self) -> None:
        run("ip", "link", "set", _CABLE[0], "up")

    def throttle(self, rate: str) -> None:
        """Both ways; a rate of tc(8), such as 4mbit."""
        shape = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms")
        run("tc", "qdisc", "replace", "dev", _CABLE[0], *shape)
        run("nsenter", f"--net={self.far_namespace}", "tc", "qdisc", "replace", "dev", _CABLE[1], *shape)

    def release(self) -> None:
        run("tc", "qdisc", "del", "dev", _CABLE[0], "root")
        run("nsenter", f"--net={self.far_namespace}", "tc", "qdisc", "del", "dev", _CABLE[1], "root")


@contextlib.contextmanager
def private_network() -> Iterator[Cable]:
    before = os.open(_HERE, os.O_RDONLY)
    name = f"blockferry-test-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, before)
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "del", name)
        _checked(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET), "unshare")
        stack.callback(enter_network, before)
        far = Path("/run/netns") / name
        near_end, far_end = _CABLE
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", near_end, "type", "veth", "peer", "name", far_end, "netns", name)
        run("ip", "addr", "add", f"{NEAR}/24", "dev", near_end)
        run("ip", "link", "set", near_end, "up")
        inside = ("nsenter", f"--net={far}", "ip")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "addr", "add", f"{FAR}/24", "dev", far_end)
        run(*inside, "link", "set", far_end, "up")
        yield Cable(far)
