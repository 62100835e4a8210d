"""Cuts an operation off at its n-th call of the operating system, as a crash or a failing disk would.

Called by tests of what must survive that. The calls are the ones through which files are changed; each may fail with an OSError
(the disk), or end the operation with ``Crash``, which nothing may catch, after the call's effect or instead of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

CALLS: Final = ("open", "write", "fsync", "fchmod", "close", "rename", "replace", "unlink", "mkdir")


class Crash(BaseException):
    """The process is no more. No BaseException handler's clean-up counts: see ``Interrupter.is_dead``."""


class Interrupter:
    """Counts calls, and at number ``at`` fails or crashes. After a crash every further call raises too: the process is gone."""

    def __init__(self, at: int, *, crash: bool, after_effect: bool = False) -> None:
        self.calls: list[str] = []
        self.at = at
        self.crash = crash
        self.after_effect = after_effect
        self.is_dead = False

    @property
    def struck(self) -> bool:
        return len(self.calls) > self.at

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if self.is_dead:
                raise Crash
            number = len(self.calls)
            self.calls.append(name)
            if number != self.at:
                return real(*arguments, **named)
            self.is_dead = self.crash
            if self.after_effect or name == "close":  # a descriptor is closed whatever close(2) says
                real(*arguments, **named)
            raise Crash if self.crash else OSError(errno.EIO, f"injected at call {number}, {name}")

        return called


@contextlib.contextmanager
def interrupted(at: int, *, crash: bool, after_effect: bool = False) -> Iterator[Interrupter]:
    """Run the body with the ``at``-th of ``CALLS`` interrupted; a ``Crash`` ends the body, an OSError is the body's to handle."""
    interrupter = Interrupter(at, crash=crash, after_effect=after_effect)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, interrupter.wrap(name, getattr(os, name)))
        with contextlib.suppress(Crash):
            yield interrupter
