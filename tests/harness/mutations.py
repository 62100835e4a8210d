"""Hostile variants of valid documents: flipped, cut, spliced, lengths at their extremes; and what a decoder may cost.

Called by tests/property/test_fuzz_*.py and tests/hostile. ``mutations_of`` is a Hypothesis strategy; ``fuzzed`` runs a decoder on one
input and lets nothing out but the error tree, within a bound of processor time; ``bounded_memory`` bounds what a block may hold.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any, Final, TypeVar

from hypothesis import settings
from hypothesis import strategies as st

from replication.errors import BlockferryError

MAX_PROCESSOR_S: Final = 2.0
"""What one input may cost; on a loaded machine too, since only this process's time counts."""
MIB: Final = 2**20

_THOROUGH: Final = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
_EXTREMES: Final = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
INTEGERS: Final = (-1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40)
"""What JSON may hold and a database or a C integer may not."""

ResultT = TypeVar("ResultT")


def budget(examples: int) -> settings:
    """A fixed number of examples; twenty times as many with HYPOTHESIS_PROFILE=thorough."""
    return settings(max_examples=examples * (20 if _THOROUGH else 1), deadline=None)


def fuzzed(decode: Callable[[], ResultT]) -> ResultT | None:
    """The decoder's result, or None if it refused with an error of the tree; anything else it raises fails the test."""
    begun_s = time.process_time()
    try:
        return decode()
    except BlockferryError as error:
        refusal = str(error)
    finally:
        assert time.process_time() - begun_s < MAX_PROCESSOR_S
    assert refusal.startswith("cannot "), refusal
    assert len(refusal) < 2000, "an error does not repeat what it was sent"
    return None


def _memory_bytes(field: str) -> int:
    """``VmRSS`` and of that ``RssFile`` (now), or ``VmHWM`` (at most until now) of this process: proc(5)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


MODULE_BYTES: Final = 512 * MIB
"""For all tests of a module: Hypothesis' own share, and pages of libraries that were away in the beginning and in the end but not at the
peak, came to 260 MiB on a busy machine. A length that a decoder believed would cost far more; tests of single decoders have less.
"""


@contextlib.contextmanager
def bounded_memory(most_bytes: int) -> Iterator[None]:
    """Fails if this process holds so much more, at any moment inside the block, than at its beginning.

    Programs and libraries do not count: a machine that takes their pages away while nobody uses them gives them back all at once.
    """
    with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:
        peak.write("5")  # the high-water mark begins anew: proc(5)
    before, of_files = _memory_bytes("VmRSS"), _memory_bytes("RssFile")
    yield
    grown = _memory_bytes("VmHWM") - before - max(0, _memory_bytes("RssFile") - of_files)
    assert grown <= most_bytes, f"{grown / MIB:.0f} MiB more than before"


@st.composite
def mutations_of(draw: st.DrawFn, documents: st.SearchStrategy[bytes]) -> bytes:
    """One to four changes to a document."""
    content = bytearray(draw(documents))
    for _ in range(draw(st.integers(1, 4))):
        _change(draw, content)
    return bytes(content)


def _change(draw: st.DrawFn, content: bytearray) -> None:
    at = draw(st.integers(0, max(0, len(content) - 1)))
    match draw(st.sampled_from(["flip", "extreme", "cut", "drop", "repeat", "splice", "append"])):
        case "flip" if content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        case "extreme":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            value = draw(st.sampled_from(_EXTREMES)) & (2 ** (8 * size) - 1)
            content[at : at + size] = value.to_bytes(size, "little")
        case "cut":
            del content[at:]
        case "drop":
            del content[at : at + draw(st.integers(1, 64))]
        case "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 256))]
        case "splice":
            content[at : at + draw(st.integers(0, 32))] = draw(st.binary(max_size=32))
        case _:
            content += draw(st.binary(max_size=64))


def mutated(random: Random, content: bytes) -> bytes:
    """One change to a document, from a seed: for whole services, where Hypothesis cannot drive."""
    changed, at = bytearray(content), random.randrange(len(content))
    match random.randrange(5):
        case 0:
            changed[at] ^= 1 << random.randrange(8)
        case 1:
            size = random.choice([1, 2, 4, 8])
            changed[at : at + size] = (random.choice(_EXTREMES) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        case 2:
            del changed[at:]
        case 3:
            changed[at:at] = random.randbytes(random.randrange(1, 64))
        case _:
            del changed[at : at + random.randrange(1, 64)]
    return bytes(changed)


def _places(document: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    children: Sequence[tuple[str | int, object]] = ()
    if isinstance(document, dict):
        children = list(document.items())
    elif isinstance(document, list):
        children = list(enumerate(document))
    for name, child in children:
        yield from _places(child, (*path, name))


def _with(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    if not path:
        return value
    changed: Any = list(document) if isinstance(document, list) else dict(document)
    changed[path[0]] = _with(changed[path[0]], path[1:], value)
    return changed


def replaced_values(document: Any, values: Iterable[object]) -> Iterator[Any]:
    """``document`` with each of its values replaced by each of ``values``, one at a time."""
    hostile = list(values)
    for path in list(_places(document)):
        if not path:
            continue
        for value in hostile:
            yield _with(document, path, value)


HOSTILE_VALUES: Final = st.one_of(
    st.sampled_from(INTEGERS),
    st.sampled_from([None, True, 1.5, 1e308, -1e308, "", "x" * 5000, "\0", "\u202e\uffff\U0010ffff", "1", "../../etc"]),
    st.sampled_from([[], {}, [[]], {"": ""}, [0] * 1000, {str(number): number for number in range(1000)}]),
    st.text(max_size=20),
)


@st.composite
def json_mutations_of(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with one to three of its values replaced by hostile ones."""
    for _ in range(draw(st.integers(1, 3))):
        document = _with(document, draw(st.sampled_from(list(_places(document)))), draw(HOSTILE_VALUES))
    return document
