"""Text of others (host names, models, messages) on its way to a terminal: shown, never obeyed. Called by every CLI for what it prints."""

from __future__ import annotations

from typing import Final

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: str) -> str:
    """``text`` with a sign in place of all that a terminal would obey: host names, models, messages come from others."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else REPLACEMENT for sign in text)


def one_line(text: str) -> str:
    r"""``text`` with an escape (``\n``, ``\x1b``) in place of all that is not printed: it takes one line, whoever wrote it."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
