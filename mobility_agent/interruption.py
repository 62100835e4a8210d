"""Telling a long blocking call that nobody waits for it any more.

Shared by a disk session, which interrupts when it is cancelled, and the ``scan`` tracker, which looks between two slices.
"""

from __future__ import annotations

import threading


class Interruption:
    """One blocking call at a time: ``renew`` before it is begun, ``interrupt`` to end it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def renew(self) -> None:
        self._event = threading.Event()

    def interrupt(self) -> None:
        self._event.set()

    def is_interrupted(self) -> bool:
        return self._event.is_set()
