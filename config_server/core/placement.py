"""Which process server each item belongs to, and which items change over now. Called by ``config_server/placement.py``.

A pure decision over the facts of one moment. In this order, each with its reason:

1. *assign*: an item without a process server is given one.
2. *take over*: the items of one that has been silent for ``silent_after_s`` go to others, all at once. Silence counts only as far as this
   server has been listening: who has just started, or heard nobody, knows nothing of anybody.
3. *reach*: an item whose agent has lost the way to its process server, and has one to another, goes there.
4. *drain*: the items of one that is being drained go to others, a few at a time.
5. *rebalance*: one item from a loaded one to an idle one, if nothing else is to be done.

Nothing is given to a process server that the item's agent says it cannot reach. Only an item that has none goes there all the same where
there is no other. One whose process server is silent waits for it then: where its agent has no way nothing of it is shipped either, and
the silent one may be back in a minute. That holds as long as the agent's word is fresh (``word_holds_s``); an agent that tells nothing any
more does not keep its item on a dead process server. Who still has a way keeps it.

A change of process server costs a new attempt of what is unconfirmed (R4), never a resync, so a take-over that turns out to have been
needless harms nothing. What must not be is to and fro: nothing moves to a process server that is no better off (silent itself for a while,
drained, without the store, with a full spool); what has moved stays for ``settled_after_s``; who has come back must have been steady for
``steady_after_s`` before he is given anything of others; a rebalancing move needs a difference of ``min_difference`` of the capacity, never
makes the receiver fuller than the giver, and so ends: the sorted loads only go down. A move for reach needs a word from after the item was
put where it is, ``unreached_after_s`` of words that all say so (a process server that restarts is out of reach for a moment), and
``between_reach_moves_s`` since the last one of that item: a way that comes and goes moves nothing to and fro. By one and the same word it
goes one way only, as who is open is not out of reach.

Load is what the capacity tables count, servers and churn, whichever is nearer to its limit. Backlog and free spool go up and down with the
minute; they say who may receive, not who must give.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from config_server.core.age import Age
from config_server.core.capacity import Capacity
from config_server.core.reach import ReachWord
from replication.data_plane import SPOOL_THROTTLED_BELOW

MIN_SPOOL_FREE: Final = SPOOL_THROTTLED_BELOW
"""Below it a process server throttles its agents (FIELD.md): it is given nothing more."""
FRESH_FRACTION: Final = 2 / 3
"""Of the silence that makes a process server lose its items; who has been silent that long receives none."""


class Cause(enum.StrEnum):
    """Why an item changes over."""

    ASSIGN = "assign"
    TAKE_OVER = "take-over"
    REACH = "reach"
    DRAIN = "drain"
    REBALANCE = "rebalance"


class Hold(enum.StrEnum):
    """What a change of process server would disturb. A cutover begins anew when its session does; a migrated source must stay held."""

    NONE = "none"
    CUTOVER = "cutover"
    SOURCE_HELD = "source-held"


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator may set, and how fast a drain goes. ``between_moves_s``: of rebalancing, for the whole site; ``drain_burst`` items
    move within ``drain_within_s``. ``take_over`` is the switch for reach too: both leave a process server that does not serve the item.

    ``word_holds_s``: three of an agent's inventories, which come every 300 s; ``unreached_after_s``: two of its looks at who is out of
    reach, every 30 s (``mobility_agent/daemon.py``).
    """

    silent_after_s: float = 15.0
    take_over: bool = True
    rebalance: bool = True
    min_difference: float = 0.2
    settled_after_s: float = 3600.0
    between_moves_s: float = 60.0
    steady_after_s: float = 600.0
    drain_burst: int = 4
    drain_within_s: float = 5.0
    word_holds_s: float = 900.0
    unreached_after_s: float = 60.0
    between_reach_moves_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process server. ``heard``: since its newest heartbeat; ``steady``: since its heartbeats have come without a gap."""

    identifier: str
    name: str
    heard: Age | None
    steady: Age | None
    draining: bool
    upload_problem: str | None
    spool_free_fraction: float
    capacity: Capacity

    def is_fresh(self, rules: Rules) -> bool:
        return self.heard is not None and self.heard.is_within(rules.silent_after_s * FRESH_FRACTION)

    def is_silent(self, rules: Rules, listening_s: float) -> bool:
        """Silent for as long as it takes to lose its items, all of it while this server listened."""
        silence_s = listening_s if self.heard is None else min(self.heard.seconds, listening_s)
        return silence_s > rules.silent_after_s

    def refusal(self, rules: Rules) -> str | None:
        """Why it can take nothing over; None: it can."""
        if not self.is_fresh(rules):
            return "it is not heard" if self.heard is None else f"it was {self.heard.heard}"
        if self.draining:
            return "it is being drained"
        if self.upload_problem is not None:
            return f"its uploads are blocked: {self.upload_problem}"
        if self.spool_free_fraction < MIN_SPOOL_FREE:
            return f"its spool has {self.spool_free_fraction:.0%} free"
        return None


@dataclass(frozen=True, slots=True)
class PlacedItem:
    """A protected item. ``since``: how long it has been on ``server``; None: always. ``out_of_reach``: of its agent, by its newest word,
    however old; ``word``: that word, if somebody asks how old. ``reach_moved``: since its last move for reach, if it is remembered.
    """

    identifier: str
    server: str | None
    churn_bytes_per_day: float = 0.0
    since: Age | None = None
    hold: Hold = Hold.NONE
    out_of_reach: frozenset[str] = frozenset()
    word: ReachWord | None = None
    reach_moved: Age | None = None

    def has_fresh_word(self, rules: Rules) -> bool:
        return self.word is not None and self.word.told.is_within(rules.word_holds_s)

    def has_lost_its_way(self, rules: Rules) -> bool:
        """Its agent says so of its process server, since it is there, for long enough, and lately."""
        if self.word is None or self.server is None or not self.has_fresh_word(rules):
            return False
        is_of_here = self.since is None or self.since.exceeds(self.word.told.seconds)
        unreached = self.word.unreached.get(self.server)
        return is_of_here and unreached is not None and unreached.exceeds(rules.unreached_after_s)


@dataclass(frozen=True, slots=True)
class Move:
    """An item changes over to ``target``."""

    item: str
    source: str | None
    target: str
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """An item that should change over, and why it does not."""

    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """``waiting``: each with its reason, until another decision says otherwise."""

    moves: tuple[Move, ...] = ()
    waiting: tuple[Waiting, ...] = ()


@dataclass(slots=True)
class _Load:
    """What a process server carries."""

    capacity: Capacity
    items: int = 0
    churn_bytes_per_day: float = 0.0

    def fraction(self, items: int = 0, churn_bytes_per_day: float = 0.0) -> float:
        """Of its capacity, with so much more (or less)."""
        return max(
            (self.items + items) / self.capacity.servers,
            (self.churn_bytes_per_day + churn_bytes_per_day) / self.capacity.churn_bytes_per_day,
        )

    def add(self, item: PlacedItem) -> None:
        self.items += 1
        self.churn_bytes_per_day += item.churn_bytes_per_day

    def remove(self, item: PlacedItem) -> None:
        self.items -= 1
        self.churn_bytes_per_day -= item.churn_bytes_per_day


@dataclass(slots=True)
class _Round:
    """One decision in the making: loads follow the moves that are decided already."""

    candidates: dict[str, Candidate]
    rules: Rules
    loads: dict[str, _Load]
    moves: list[Move] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)

    def best(self, item: PlacedItem, among: Iterable[Candidate]) -> Candidate | None:
        """The one that is least loaded with the item added; among equals the one with more spool free, then by identifier."""
        return min(
            (candidate for candidate in among if candidate.identifier != item.server),
            key=lambda c: (
                self.loads[c.identifier].fraction(1, item.churn_bytes_per_day),
                -c.spool_free_fraction,
                c.identifier,
            ),
            default=None,
        )

    def best_in_reach(self, item: PlacedItem, among: Iterable[Candidate]) -> Candidate | None:
        """As ``best``, of those that the item's agent can reach as far as is known."""
        return self.best(item, [candidate for candidate in among if candidate.identifier not in item.out_of_reach])

    def receivers(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates.values() if candidate.refusal(self.rules) is None]

    def move(self, item: PlacedItem, target: Candidate, cause: Cause, why: str) -> None:
        if item.server in self.loads:
            self.loads[item.server].remove(item)
        self.loads[target.identifier].add(item)
        filled = self.loads[target.identifier].fraction()
        reason = f"{why}; {target.name} takes the item and is then at {filled:.0%} of its capacity"
        self.moves.append(Move(item.identifier, item.server, target.identifier, cause, reason))

    def wait(self, item: PlacedItem, why: str) -> None:
        self.waiting.append(Waiting(item.identifier, why))

    def nobody(self, item: PlacedItem) -> str:
        """Why none of the others can take an item."""
        others = [
            f"{candidate.name}: {candidate.refusal(self.rules) or 'the agent cannot reach it'}"
            for candidate in self.candidates.values()
            if candidate.identifier != item.server
        ]
        return f"no other process server can take it ({'; '.join(others)})" if others else "there is no other one"


def loads_of(candidates: Iterable[Candidate], items: Iterable[PlacedItem]) -> dict[str, float]:
    """How loaded each process server is, as a fraction of its capacity; may exceed 1."""
    return {identifier: load.fraction() for identifier, load in _loads(candidates, items).items()}


def _loads(candidates: Iterable[Candidate], items: Iterable[PlacedItem]) -> dict[str, _Load]:
    loads = {candidate.identifier: _Load(candidate.capacity) for candidate in candidates}
    for item in items:
        if item.server in loads:
            loads[item.server].add(item)
    return loads


def choose_process_server(
    candidates: Sequence[Candidate],
    items: Sequence[PlacedItem],
    rules: Rules,
    out_of_reach: frozenset[str] = frozenset(),
) -> str | None:
    """For a new item: one that can take it or, where none can, one that is heard and not drained; None if there is none."""
    decision = decide(candidates, [*items, PlacedItem("", None, out_of_reach=out_of_reach)], rules, listening_s=0.0)
    return next((move.target for move in decision.moves if move.item == ""), None)


def decide(
    candidates: Sequence[Candidate], items: Sequence[PlacedItem], rules: Rules, *, listening_s: float
) -> Decision:
    """What changes over now. The same facts give the same answer.

    ``listening_s``: for how long this server has been up and has heard somebody, without a gap.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.identifier)
    found = _Round({candidate.identifier: candidate for candidate in ordered}, rules, _loads(ordered, items))
    # The heaviest first, while there is most room; then by identifier.
    for item in sorted(items, key=lambda each: (-each.churn_bytes_per_day, each.identifier)):
        source = None if item.server is None else found.candidates.get(item.server)
        if source is None:
            _assign(found, item)
        elif source.is_silent(rules, listening_s):
            _take_over(found, item, source)
        elif not source.draining and listening_s >= rules.unreached_after_s and item.has_lost_its_way(rules):
            _mend_reach(found, item, source)
    _drain(found, items, listening_s)
    if rules.rebalance and not found.moves and not found.waiting and listening_s >= rules.steady_after_s:
        _rebalance(found, items)
    return Decision(tuple(found.moves), tuple(found.waiting))


def _assign(found: _Round, item: PlacedItem) -> None:
    heard = [c for c in found.candidates.values() if c.is_fresh(found.rules) and not c.draining]
    receivers = found.receivers()
    target = (
        found.best_in_reach(item, receivers)
        or found.best_in_reach(item, heard)
        or found.best(item, receivers)
        or found.best(item, heard)
    )
    if target is None:
        found.wait(item, f"it has no process server: {found.nobody(item)}")
    else:
        found.move(item, target, Cause.ASSIGN, "it had no process server")


def _take_over(found: _Round, item: PlacedItem, source: Candidate) -> None:
    heard = "was never heard" if source.heard is None else f"was {source.heard.heard}"
    silent = f"process server {source.name} {heard}"
    if item.hold is Hold.SOURCE_HELD:
        return  # nothing of it is shipped, and a new session would let go of the source
    if not found.rules.take_over:
        found.wait(item, f"{silent}; automatic take-over is switched off")
        return
    receivers = found.receivers()
    target = found.best_in_reach(item, receivers)
    if target is None and not item.has_fresh_word(found.rules):
        target = found.best(item, receivers)
    if target is None:
        found.wait(item, f"{silent}; {found.nobody(item)}")
    else:
        found.move(item, target, Cause.TAKE_OVER, silent)


def _mend_reach(found: _Round, item: PlacedItem, source: Candidate) -> None:
    """To one that the agent has connected to. If there is none, its health says that nothing is shipped; no move would change that."""
    if item.word is None or item.hold is Hold.SOURCE_HELD:
        return
    target = found.best(item, [each for each in found.receivers() if each.identifier in item.word.open_to])
    if target is None:
        return
    lost = f"its agent cannot reach process server {source.name}"
    if item.hold is not Hold.NONE:
        found.wait(item, f"{lost}; a migration of it is under way; it changes over when that has ended")
    elif not found.rules.take_over:
        found.wait(item, f"{lost}, but {target.name}; automatic take-over is switched off")
    elif item.reach_moved is not None and not item.reach_moved.exceeds(found.rules.between_reach_moves_s):
        pause = f"{found.rules.between_reach_moves_s / 60:.0f} min"
        found.wait(item, f"{lost}, but {target.name}; it changed over for that within the last {pause} already")
    else:
        found.move(item, target, Cause.REACH, f"{lost}, but {target.name}")


def _drain(found: _Round, items: Sequence[PlacedItem], listening_s: float) -> None:
    rules = found.rules
    lately = sum(1 for item in items if item.since is not None and not item.since.exceeds(rules.drain_within_s))
    left = rules.drain_burst - lately
    for item in sorted(items, key=lambda each: each.identifier):
        source = None if item.server is None else found.candidates.get(item.server)
        if source is None or not source.draining or source.is_silent(rules, listening_s):
            continue
        if item.hold is not Hold.NONE:
            found.wait(item, "a migration of it is under way; it changes over when that has ended")
            continue
        target = found.best_in_reach(item, found.receivers())
        if target is None:
            found.wait(item, f"{source.name} is being drained, but {found.nobody(item)}")
        elif left > 0:
            left -= 1
            found.move(item, target, Cause.DRAIN, f"process server {source.name} is being drained")


def _rebalance(found: _Round, items: Sequence[PlacedItem]) -> None:
    """At most one item: the one whose change makes the fuller of the two emptiest."""
    rules = found.rules
    if any(item.since is not None and not item.since.exceeds(rules.between_moves_s) for item in items):
        return
    receivers = [c for c in found.receivers() if c.steady is not None and c.steady.exceeds(rules.steady_after_s)]
    givers = [c for c in found.candidates.values() if c.is_fresh(rules) and not c.draining]
    load = {identifier: each.fraction() for identifier, each in found.loads.items()}
    for giver in sorted(givers, key=lambda c: (-load[c.identifier], c.identifier)):
        movable = [
            item
            for item in items
            if item.server == giver.identifier
            and item.hold is Hold.NONE
            and (item.since is None or item.since.exceeds(rules.settled_after_s))
        ]
        for receiver in sorted(receivers, key=lambda c: (load[c.identifier], c.identifier)):
            if load[giver.identifier] - load[receiver.identifier] <= rules.min_difference:
                break
            item = _best_to_give(found, giver, receiver, movable)
            if item is not None:
                why = (
                    f"process server {giver.name} is at {load[giver.identifier]:.0%} of its capacity, "
                    f"{receiver.name} at {load[receiver.identifier]:.0%}"
                )
                found.move(item, receiver, Cause.REBALANCE, why)
                return


def _best_to_give(
    found: _Round, giver: Candidate, receiver: Candidate, movable: Sequence[PlacedItem]
) -> PlacedItem | None:
    best: tuple[float, str] | None = None
    chosen = None
    before = found.loads[giver.identifier].fraction()
    for item in movable:
        left = found.loads[giver.identifier].fraction(-1, -item.churn_bytes_per_day)
        filled = found.loads[receiver.identifier].fraction(1, item.churn_bytes_per_day)
        if filled > left or left >= before or receiver.identifier in item.out_of_reach:
            continue
        if best is None or (left, item.identifier) < best:
            best, chosen = (left, item.identifier), item
    return chosen
