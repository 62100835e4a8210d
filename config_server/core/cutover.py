"""What a migration does next, and whether its disks are proved identical (P6). Called by ``reconciler/cutover.py``.

Order: the agent claims the source disks, ships the final epoch and seals it; the writer applies it and records the final recovery point;
disks are made from that point (usable); each is hashed by the writer and compared with the source's hash (proved). Identity is proved
only if for every disk of the item name, size and SHA-256 agree and the agent claims that nothing wrote to the source since it was hashed.
What is missing is not proved; there is no default. An agent that restarted begins its cutover again and cuts another final point: then
the disks of the earlier one are made anew, because their source was not held all the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from replication.control_plane import CutoverMode, CutoverObservation, SourceHash
from replication.store_documents import MadeDisk, MakeDiskItem, RecoveryPoint, WriterAnswer, WriterProblem

REPLICA_DIFFERS_HINT: Final = (
    "the source is still held and is what counts: cancel, and it runs on while every block of the disks that differ is sent anew, "
    "by itself; migrate again when that is over. No recovery point was deleted, but all that there are of these disks are suspect"
)
_NOT_COMPARED_HINT: Final = (
    "the source is still held: cancel to go back to it, or migrate again; replica and recovery points are unharmed"
)


@dataclass(frozen=True, slots=True)
class Work:
    """A request to the writer: ``state`` as in ``writer_requests``; ``refused``: an answer came that could not be verified."""

    state: Literal["new", "put", "succeeded", "failed"]
    answer: WriterAnswer | None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class CutoverFacts:
    """All that is known of a migration. ``disks``: the item's. ``point``: of the cut that the agent names as final now;
    ``planned``, ``make``, ``hashes`` (by name of the made disk) are of that point.
    """

    mode: CutoverMode
    disks: Sequence[str]
    agent_silent: bool
    cutover: CutoverObservation | None
    point: RecoveryPoint | None
    planned: Sequence[MakeDiskItem]
    make: Work | None
    hashes: Mapping[str, Work]


@dataclass(frozen=True, slots=True)
class WaitForSource:
    """The agent has not claimed the disks; ``operator``: somebody must do something on the source."""

    message: str
    operator: bool


@dataclass(frozen=True, slots=True)
class WaitForFinalPoint:
    """The final epoch is under way: being read, shipped or applied."""

    message: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class MakeFinalDisks:
    """The final point is there: ask for its disks, or wait for them."""

    done_bytes: int
    total_bytes: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class ProveIdentity:
    """The disks can be used: ask for their hashes, or wait for them and for the source's."""

    made: tuple[MadeDisk, ...]
    done_bytes: int
    total_bytes: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Proved:
    """Every disk is identical to its source. ``sha256`` by disk."""

    made: tuple[MadeDisk, ...]
    sha256: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """The migration failed. ``source_released``: the agent has let the source go, so it need not be held any longer."""

    code: str
    message: str
    hint: str | None
    source_released: bool
    divergent: tuple[Divergent, ...] = ()
    """The disks whose content was compared and differs: replica and digest table of these are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Divergent:
    """A disk whose final disk does not hold what its source holds, cut in ``generation``."""

    disk: str
    generation: int
    source_sha256: str
    final_sha256: str

    @property
    def reason(self) -> str:
        """Why nothing that was cut of this disk can be vouched for."""
        return (
            f"its final disk was compared with its source and differs (SHA-256 {self.final_sha256[:12]}…, not "
            f"{self.source_sha256[:12]}…), so that its replica is not what its digests say"
        )


CutoverStep = WaitForSource | WaitForFinalPoint | MakeFinalDisks | ProveIdentity | Proved | Failed


def next_step(facts: CutoverFacts) -> CutoverStep:
    """What comes next."""
    if facts.cutover is not None and facts.cutover.state == "failed":
        return _agent_failed(facts.cutover)
    if facts.point is None:
        return _before_final_point(facts)
    wrong = _wrong_point(facts, facts.point)
    if wrong is not None:
        return Failed("final-point", wrong, "cancel and migrate again", source_released=False)
    make = facts.make
    if make is None or make.state in ("new", "put"):
        answer = None if make is None else make.answer
        return MakeFinalDisks(
            0 if answer is None else answer.done_bytes,
            0 if answer is None else answer.total_bytes,
            _waiting_text(make),
        )
    if make.state == "failed" or make.answer is None:
        return _writer_failed("make the final disks", make)
    wrong = _wrong_disks(facts, facts.point, make.answer.disks)
    if wrong is not None:
        return Failed("final-disks", wrong, "cancel and migrate again", source_released=False)
    return _after_disks(facts, tuple(make.answer.disks))


def _before_final_point(facts: CutoverFacts) -> CutoverStep:
    cutover = facts.cutover
    if facts.agent_silent:
        return WaitForSource("the agent is not heard: see that it runs and reaches this server", operator=True)
    if cutover is None:
        return WaitForSource("the agent is told to claim the disks", operator=False)
    if cutover.state == "waiting-for-disk":
        message = "stop what uses the disks and unmount them; the migration goes on by itself"
        if cutover.problem is not None:
            message = f"{cutover.problem.message}; {cutover.problem.hint or message}"
        return WaitForSource(message, operator=True)
    text = "the final epoch is shipped" if cutover.state == "shipping" else "the final epoch is applied at the sink"
    return WaitForFinalPoint(text, cutover.hashed_bytes, cutover.total_bytes)


def _wrong_point(facts: CutoverFacts, point: RecoveryPoint) -> str | None:
    if not point.final:
        return f"the recovery point {point.cut} is not marked as final"
    missing = sorted(set(facts.disks) - {disk.disk for disk in point.disks})
    if missing:
        return f"the final recovery point lacks disk {missing[0]}"
    return None


def _wrong_disks(facts: CutoverFacts, point: RecoveryPoint, made: Sequence[MadeDisk]) -> str | None:
    """What differs between the disks that were asked for and those that the writer says it made."""
    wanted = {item.disk: item.name for item in facts.planned}
    sizes = {disk.disk: disk.size_bytes for disk in point.disks}
    found = {disk.disk: disk for disk in made}
    if len(found) != len(made) or found.keys() != wanted.keys() or wanted.keys() != set(facts.disks):
        return "the replica writer did not make every disk exactly once"
    for disk, name in wanted.items():
        if found[disk].name != name:
            return f"disk {disk} was made as {found[disk].name!r}, not as {name!r}"
        if found[disk].size_bytes != sizes[disk]:
            return f"disk {disk} was made with {found[disk].size_bytes} bytes; its recovery point has {sizes[disk]}"
    return None


def _after_disks(facts: CutoverFacts, made: tuple[MadeDisk, ...]) -> CutoverStep:
    works = [facts.hashes.get(disk.name) for disk in made]
    total = sum(disk.size_bytes for disk in made)
    for work in works:
        if work is not None and work.state == "failed":
            return _writer_failed("hash a final disk", work)
    done = sum(
        disk.size_bytes if work is not None and work.state == "succeeded" else _done_bytes(work)
        for disk, work in zip(made, works, strict=True)
    )
    if any(work is None or work.state != "succeeded" for work in works):
        waiting = next((text for work in works if (text := _waiting_text(work))), "")
        return ProveIdentity(made, done, total, waiting)
    cutover = facts.cutover
    if cutover is None or cutover.state != "applied" or not cutover.identity_claimed:
        return ProveIdentity(made, done, total, "waiting for the agent's hashes of the source disks")
    hashes = {disk.disk: _sha256(facts.hashes[disk.name]) for disk in made}
    differences = identity_differences(made, cutover.source_hashes, hashes)
    if differences:
        divergent = _divergent(made, cutover.source_hashes, hashes, facts.point)
        return Failed(
            "identity-not-proved",
            "identity is not proved: " + "; ".join(differences),
            REPLICA_DIFFERS_HINT if divergent else _NOT_COMPARED_HINT,
            source_released=False,
            divergent=divergent,
        )
    return Proved(made, {disk: sha256 for disk, sha256 in hashes.items() if sha256 is not None})


def _divergent(
    made: Sequence[MadeDisk],
    sources: Sequence[SourceHash],
    hashes: Mapping[str, str | None],
    point: RecoveryPoint | None,
) -> tuple[Divergent, ...]:
    """The disks of which both sides were hashed over the same size with different results. A missing hash says nothing of a replica."""
    names = {disk.disk: disk for disk in made}
    generations = {} if point is None else {disk.disk: disk.generation for disk in point.disks}
    found = {}
    for source in sources:
        disk, sha256 = names.get(source.disk), hashes.get(source.disk)
        if disk is None or sha256 is None or (source.size_bytes, source.sha256) == (disk.size_bytes, sha256):
            continue
        if source.size_bytes == disk.size_bytes:
            found[source.disk] = Divergent(source.disk, generations.get(source.disk, 0), source.sha256, sha256)
    return tuple(found[disk] for disk in sorted(found))


def _done_bytes(work: Work | None) -> int:
    return 0 if work is None or work.answer is None else work.answer.done_bytes


def _sha256(work: Work) -> str | None:
    return None if work.answer is None else work.answer.sha256


def identity_differences(
    made: Sequence[MadeDisk], sources: Sequence[SourceHash], hashes: Mapping[str, str | None]
) -> list[str]:
    """What stands against identity; empty means proved. A hash that is missing on either side is a difference (P6)."""
    differences = []
    by_disk: dict[str, list[SourceHash]] = {}
    for source in sources:
        by_disk.setdefault(source.disk, []).append(source)
    if not made:
        differences.append("no disk was made")
    for disk in made:
        found, sha256 = by_disk.pop(disk.disk, []), hashes.get(disk.disk)
        if len(found) != 1:
            differences.append(f"disk {disk.disk}: the agent gives {len(found)} hashes of the source")
        elif sha256 is None:
            differences.append(f"disk {disk.disk}: the replica writer gives no hash of {disk.name}")
        elif found[0].size_bytes != disk.size_bytes:
            differences.append(
                f"disk {disk.disk}: the source has {found[0].size_bytes} bytes, {disk.name} has {disk.size_bytes}"
            )
        elif found[0].sha256 != sha256:
            differences.append(f"disk {disk.disk}: SHA-256 of the source {found[0].sha256}, of {disk.name} {sha256}")
    differences += [f"disk {disk}: hashed at the source, but not made" for disk in sorted(by_disk)]
    return differences


def _agent_failed(cutover: CutoverObservation) -> Failed:
    problem = cutover.problem or WriterProblem(code="unexplained", message="the agent gives no reason")
    return Failed(
        problem.code, f"the cutover failed on the source: {problem.message}", problem.hint, source_released=True
    )


def _writer_failed(what: str, work: Work) -> Failed:
    problem = None if work.answer is None else work.answer.problem
    problem = problem or WriterProblem(code="unexplained", message="the replica writer gives no reason")
    return Failed(
        problem.code, f"the replica writer could not {what}: {problem.message}", problem.hint, source_released=False
    )


def _waiting_text(work: Work | None) -> str:
    if work is not None and work.refused is not None:
        return f"an answer was refused: {work.refused}"
    return ""
