"""Who has a place among a server's connections, and whose is taken for a newcomer. Called by ``connections.Listener``; no clock, no I/O.

Anybody can open connections, so places go to those who have said who they are. A connection is *unidentified* until the service has
recognized who made one of its requests (certificate, token, signature): through the handshake, the head, and a body that does not become
whole. One with a request under way that was identified, or is here as a whole, is *busy* and is never cut.

When all places are taken, an unidentified connection gives up its own, the oldest first, whatever it says meanwhile: requests that prove
nothing do not make it younger. Who dials again and again does not push out who has just come: each keeps its place for ``FAIR_CHANCE_S``,
and newcomers wait in the kernel's queue, in their order. If one source has more than an eighth of the places, its oldest goes first, so
that a crowd at one address costs those at others nothing. An identified connection that is idle goes only while fewer than a sixteenth of
the places are unidentified ones, all within their chance: otherwise a site whose agents fill every place could be joined by nobody.

An answer that is still being sent keeps no place: who does not read it would keep one for ever.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Final, Generic, TypeVar

FAIR_CHANCE_S: Final = 1.0
"""For a handshake, a head and who it is: three ways over the network. Of n places, n newcomers a second have their turn."""
_LEAST_SHARE: Final = 4

PlaceT = TypeVar("PlaceT", bound=Hashable)


class Places(Generic[PlaceT]):
    """Of ``limit`` connections. Whoever is not here is ignored: a connection may be lost before what it did is told."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._crowd = max(_LEAST_SHARE, limit // 8)
        self._reserve = max(_LEAST_SHARE, limit // 16)
        self._came: dict[PlaceT, tuple[str, float]] = {}
        self._unidentified: OrderedDict[PlaceT, None] = OrderedDict()  # the oldest first, busy ones included
        self._sources: dict[str, OrderedDict[PlaceT, None]] = {}  # of the unidentified
        self._crowds: set[str] = set()
        self._idle: dict[PlaceT, None] = {}  # identified; who has been idle longest comes first
        self._busy: set[PlaceT] = set()

    def __len__(self) -> int:
        return len(self._came)

    def __iter__(self) -> Iterator[PlaceT]:
        return iter(self._came)

    @property
    def is_full(self) -> bool:
        return len(self._came) >= self._limit

    @property
    def unidentified(self) -> int:
        """How many are neither identified nor busy."""
        return len(self._came) - len(self._idle) - len(self._busy)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return len(self._busy)

    @property
    def largest_crowd(self) -> str | None:
        """The source that has most unidentified connections, if that is too many."""
        return max(self._crowds, key=lambda source: len(self._sources[source]), default=None)

    def take(self, place: PlaceT, source: str, now_s: float) -> None:
        """A newcomer from ``source``; there must be room."""
        self._came[place] = (source, now_s)
        self._to_the_unidentified(place)

    def give_up(self, place: PlaceT) -> None:
        """It is cut, or gone."""
        if place in self._came:
            self._from_the_unidentified(place)
            self._idle.pop(place, None)
            self._busy.discard(place)
            del self._came[place]

    def begin(self, place: PlaceT) -> None:
        """A request of it is under way that is not to be cut."""
        if place in self._came:
            self._idle.pop(place, None)
            self._busy.add(place)

    def end(self, place: PlaceT) -> None:
        """No request of it is under way any more."""
        if place in self._busy:
            self._busy.discard(place)
            if place not in self._unidentified:
                self._idle[place] = None  # behind all who are idle already

    def identify(self, place: PlaceT) -> None:
        """It is known whose it is."""
        if place in self._unidentified:
            self._from_the_unidentified(place)
            if place not in self._busy:
                self._idle[place] = None

    def doubt(self, place: PlaceT) -> None:
        """What it says of itself does not hold, or not any more."""
        if place in self._came and place not in self._unidentified:
            self._idle.pop(place, None)
            self._came[place] = (self._came[place][0], -math.inf)  # it has had its chance
            self._to_the_unidentified(place)
            self._unidentified.move_to_end(place, last=False)
            self._sources[self._came[place][0]].move_to_end(place, last=False)

    def leaving(self, now_s: float) -> PlaceT | float | None:
        """Whose place is taken for a newcomer, or in how many seconds one may be, or None: once a request ends."""
        crowd = self.largest_crowd
        oldest = None if crowd is None else self._first_that_waits(self._sources[crowd])
        if oldest is None:
            oldest = self._first_that_waits(self._unidentified)
        idle = next(iter(self._idle), None)
        if oldest is None:
            return idle
        chance_s = self._came[oldest][1] + FAIR_CHANCE_S - now_s
        if chance_s <= 0:
            return oldest
        return idle if idle is not None and self.unidentified < self._reserve else chance_s

    def _first_that_waits(self, places: Iterable[PlaceT]) -> PlaceT | None:
        return next((place for place in places if place not in self._busy), None)

    def _to_the_unidentified(self, place: PlaceT) -> None:
        source = self._came[place][0]
        self._unidentified[place] = None
        here = self._sources.setdefault(source, OrderedDict())
        here[place] = None
        if len(here) > self._crowd:
            self._crowds.add(source)

    def _from_the_unidentified(self, place: PlaceT) -> None:
        if place not in self._unidentified:
            return
        source = self._came[place][0]
        del self._unidentified[place]
        here = self._sources[source]
        del here[place]
        if len(here) <= self._crowd:
            self._crowds.discard(source)
        if not here:
            del self._sources[source]
