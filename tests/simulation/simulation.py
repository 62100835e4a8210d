"""One seed, from beginning to end: a site is drawn, works, suffers, comes to rest, and is judged.

``simulate(seed)`` is called by the tests, by ``soak`` and by ``mutants``. See README.md for the design.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import logging
import warnings
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from replication.control_plane import ReplicationTiming
from replication.errors import BlockferryError
from tests.simulation.faults import Faults
from tests.simulation.oracle import Broken
from tests.simulation.redirected_calls import redirected
from tests.simulation.source_disk import KernelHabits
from tests.simulation.store_trouble import StoreTrouble
from tests.simulation.troubles import Troubles
from tests.simulation.virtual_loop import Stuck
from tests.simulation.workload import Habits
from tests.simulation.world import Shape, TracingHandler, World, as_text

REST_DEADLINE_S: Final = 900.0
OPERATOR_PATIENCE_S: Final = 120.0
TOLD_EVENTS: Final = 60
TROUBLED: Final = "troubled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed came to. ``digest`` is of the whole trace: the same seed has the same."""

    seed: int
    digest: str
    virtual_s: float
    steps: int
    points: int
    receipts: int
    writes: int
    generations: int
    was_put_back: bool
    """Whether an older copy took the store's place."""
    refusals: int
    """Calls that the store answered with 500 or 503."""
    clocks_set: int
    """Of other machines than the source."""


@dataclass
class SimulationFailed(AssertionError):
    """A promise was broken under ``seed``; the message tells the last events and how to replay it."""

    seed: int
    reason: str
    events: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = "\n".join(self.events[-TOLD_EVENTS:])
        return f"seed {self.seed}: {self.reason}\n{told}\nseed {self.seed}: {self.reason}\nreplay: make soak SEED={self.seed}"


def drawn_shape(random: Random) -> Shape:
    return Shape(
        disks=random.choice((1, 1, 1, 2)),
        granules=random.randrange(6, 30),
        short_by_sectors=random.randrange(8),
        tracker="scan" if random.random() < 0.25 else "ebpf",
        epoch_granules=random.choice((3, 12, 12)),
        writers=random.choice((1, 2)),
        workload=Habits(
            rate=random.choice((0.5, 0.5, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 20.0)),
            raw=random.choice((0.0, 0.0, 0.1)),
            hot=random.choice((0.2, 0.7)),
            undo=random.choice((0.0, 0.3, 0.6)),
        ),
        kernel=KernelHabits(
            slow=random.choice((0.0, 0.1, 0.5)),
            lingering=random.choice((0.0, 0.25)),
            racing=random.choice((0.0, 0.4)),
            lost_issue=random.choice((0.0, 0.0, 0.0, 0.05)),
            lost_completion=random.choice((0.0, 0.0, 0.05)),
            overflow=random.choice((0.0, 0.0, 0.0, 0.02)),
        ),
        slow_freezes=random.choice((0.0, 0.0, 0.3)),
        timing=ReplicationTiming(
            epoch_interval_s=random.choice((0.5, 1.0, 2.5)),
            recovery_point_interval_s=random.choice((2.0, 3.0, 6.0)),
            freeze_budget_s=random.choice((0.05, 0.5)),
        ),
    )


async def _scenario(world: World, random: Random, troubles: Troubles, theme_wanted: str) -> None:
    faults = Faults(world, random)
    for process_server in world.process_servers:
        process_server.start()
    for writer in world.writers:
        writer.start()
    world.agent.start(world.process_servers[0])
    world.workload.start()
    await asyncio.sleep(random.random() * 4)
    pruning = asyncio.get_running_loop().create_task(_prune(world, random))
    is_troubled = theme_wanted == TROUBLED
    theme = faults.of_a_theme("" if is_troubled else theme_wanted)
    async with asyncio.TaskGroup() as tasks:
        for trouble in troubles.drawn(certainly=is_troubled):
            tasks.create_task(trouble())
        for _ in range(random.randrange(1, 5)):
            tasks.create_task(random.choice(theme)())
            await asyncio.sleep(random.choice((0.0, 0.5, 3.0, 10.0)) * random.random())
    await faults.heal()
    pruning.cancel()
    world.note("scenario", "healed")
    await asyncio.sleep(random.random())
    world.workload.stop()
    await _rest(world)
    world.oracle.judge_end()
    world.agent.kill()
    world.agent.judge_files()
    world.note("scenario", "at rest")


async def _prune(world: World, random: Random) -> None:
    retention_s = random.choice((0.0, 5.0, 20.0, 1000.0))
    while True:
        await asyncio.sleep(2 + random.random() * 10)
        with contextlib.suppress(BlockferryError):
            await world.control.prune(retention_s)


async def _rest(world: World) -> None:
    """Until everything is applied, and a recovery point was made since.

    Where the store was put back, a segment may be gone whose manifest came later: nobody has it any more, and the operator does what the
    documents say of a *segment-missing* that does not pass.
    """
    deadline_s = world.loop.time() + REST_DEADLINE_S
    patient_until_s = world.loop.time() + OPERATOR_PATIENCE_S
    since_s: float | None = None
    while True:
        if world.oracle.store.put_back and world.loop.time() > patient_until_s:
            patient_until_s = float("inf")
            for each, supervisor in {} if world.agent.item is None else world.agent.item.supervisors.items():
                if supervisor.problem is not None and supervisor.problem.code == "segment-missing":
                    world.note("operator", f"resync of {each[:8]} is ordered, whose segment is missing for good")
                    world.agent.order_resync(each, world.new_id())
        if all(bytes(disk.medium) == world.oracle.bytes_or_none(each) for each, disk in world.disks.items()):
            since_s = world.loop.time() if since_s is None else since_s
            made = [taken.flip_s for cut in world.oracle.points for taken in world.oracle.cuts[cut]]
            if made and max(made) > since_s and not any(disk.in_flight for disk in world.disks.values()):
                return
        if world.loop.time() > deadline_s:
            problems = {} if world.agent.item is None else {
                disk[:8]: (str(supervisor.problem), None if supervisor.session is None else supervisor.session.ledger.applied_epoch)
                for disk, supervisor in world.agent.item.supervisors.items()
            }  # fmt: skip
            raise Broken(f"it does not come to rest: {problems}; equal since {since_s}")
        await asyncio.sleep(0.25)


def simulate(seed: int, *, tells_logs: bool = False, theme: str = "", tracker: str = "") -> Outcome:
    """:param theme: as ``Faults.of_a_theme``, or ``TROUBLED``: any faults, and certainly troubles.
    :param tracker: ``ebpf`` or ``scan`` instead of what is drawn.

    :raises SimulationFailed: if a promise was broken.
    """
    random = Random(seed)
    with redirected() as redirection, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that the dead never awaited
        shape = drawn_shape(random)
        own = Random(f"troubles of {seed}")
        world = World(replace(shape, tracker=tracker or shape.tracker), random, redirection, StoreTrouble(own))
        troubles = Troubles(world, own)
        world.note("scenario", f"{world.shape}")
        root = logging.getLogger()
        handler = TracingHandler(world)
        level = root.level
        if tells_logs:
            root.addHandler(handler)
            root.setLevel(logging.DEBUG)
        else:
            logging.disable(logging.CRITICAL)
        collects = gc.isenabled()
        _keep_what_is_loaded()
        gc.disable()
        try:
            with world.in_place():
                _run(world, random, troubles, theme)
                digest = hashlib.sha256(repr(world.trace).encode()).hexdigest()
                if world.failure is not None:
                    events = [f"{at_s:10.4f} {who:9} {what}" for at_s, who, what in world.trace]
                    raise SimulationFailed(seed, as_text(world.failure), events) from world.failure
        finally:
            logging.disable(logging.NOTSET)
            root.removeHandler(handler)
            root.setLevel(level)
            if collects:
                gc.enable()
    return Outcome(
        seed=seed,
        digest=digest,
        virtual_s=world.loop.time(),
        steps=world.loop.steps,
        points=world.oracle.checked_points,
        receipts=world.oracle.checked_receipts,
        writes=sum(disk.writes for disk in world.disks.values()),
        generations=max(len(each) for each in world.control.generations.values()),
        was_put_back=world.oracle.store.put_back,
        refusals=world.network.store_trouble.refusals,
        clocks_set=troubles.clocks_set,
    )


@functools.cache
def _keep_what_is_loaded() -> None:
    """Modules are never garbage: looking through them after each seed takes longer than collecting the seed's world."""
    gc.freeze()


def _run(world: World, random: Random, troubles: Troubles, theme: str) -> None:
    loop = world.loop
    loop.set_exception_handler(world.on_loop_error)
    task = loop.create_task(_scenario(world, random, troubles, theme))
    task.add_done_callback(lambda _: loop.stop())
    try:
        loop.run_forever()
        if task.done() and task.exception() is not None:
            world.fail(task.exception() or Broken("?"))
    except Stuck as error:
        world.fail(error)
    finally:
        world.end()
