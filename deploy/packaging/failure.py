"""The one error of building packages: what cannot be done, and what to do about it. Raised here, told by ``__main__``."""

from __future__ import annotations


class PackagingFailure(Exception):
    """The message starts with "cannot"."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
