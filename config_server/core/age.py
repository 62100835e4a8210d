"""How long ago something was, and whether that is known. Made by ``ages.py``; health, readiness and placement decide by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Age:
    """``seconds``: at least so long ago; ``known``: not longer either. What is not known is never fresh."""

    seconds: float
    known: bool = True

    def is_within(self, limit_s: float) -> bool:
        return self.known and self.seconds <= limit_s

    def exceeds(self, limit_s: float) -> bool:
        return self.seconds > limit_s

    @property
    def heard(self) -> str:
        """The end of the sentence *the agent was …*."""
        if self.known:
            return f"last heard {self.seconds:.0f} s ago"
        return (
            f"not heard in the last {self.seconds:.0f} s; when before is not known, as this server's clock was set back"
        )


def at_least_s(age: Age | None) -> float | None:
    return None if age is None else age.seconds


def known_s(age: Age | None) -> float | None:
    """None also if it may be longer."""
    return age.seconds if age is not None and age.known else None
