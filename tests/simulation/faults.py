"""What a seed does to a site: each fault is a coroutine that strikes, and puts right what a person or a service manager would.

Used by ``simulation``. Crashes strike at once or at the n-th action from now (a file changed, a message sent, a block read): any failpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from tests.simulation.network import Weather
from tests.simulation.process_server_machine import ProcessServerMachine
from tests.simulation.virtual_files import Inode
from tests.simulation.virtual_loop import Process
from tests.simulation.world import World, WriterMachine

Fault = Callable[[], Coroutine[Any, Any, None]]

_FUSES: Final = (0, 1, 2, 3, 5, 8, 13, 21, 40, 80, 160)
_RARE: Final = ("harvest", "commit", "name", "table")
_AGENTS_PLACES: Final = (None, "file", "file", "harvest", "commit", "table")


@dataclass(slots=True)
class Faults:
    """Strikes one world."""

    world: World
    random: Random
    calm: bool = False

    def _away_s(self) -> float:
        return self.random.choice((0.0, 0.2, 1.0, 4.0, 10.0)) * (0.5 + self.random.random())

    async def _at_failpoint(
        self,
        process: Process | None,
        strike: Callable[[], None],
        places: Sequence[str | None] = (None, "file", "file"),
    ) -> None:
        """Strike in the middle of one of the process's next actions, or after a while if it is idle."""
        world = self.world
        if process is None or process.is_dead():
            strike()
            return
        process.fuse_burns_at = self.random.choice(places)
        rare = process.fuse_burns_at in _RARE
        process.fuse, process.on_fuse = self.random.choice(_FUSES[:4] if rare else _FUSES), strike
        for _ in range(12):
            await asyncio.sleep(0.25)
            if process.is_dead():
                return
        process.fuse = None
        world.note("fault", f"{process.name} was idle")
        strike()

    # ---- the source

    async def _strike_agent(self, strike: Callable[[], None], places: Sequence[str | None]) -> None:
        """On return the agent is down, and its files were judged as it left them."""
        agent = self.world.agent
        await self._at_failpoint(agent.process, strike, places)
        if agent.process is not None and not agent.process.is_dead():
            strike()  # another fault has ended it, and started it again
        agent.judge_files()

    async def kill_agent(self) -> None:
        world = self.world
        if world.agent.process is None or world.agent.process.is_dead():
            return
        world.note("fault", "agent is killed")
        await self._strike_agent(world.agent.kill, _AGENTS_PLACES)
        if self.random.random() < 0.3:
            world.agent.lose_digest_files()
        await self._start_agent()

    async def _start_agent(self) -> None:
        await asyncio.sleep(self._away_s())
        world = self.world
        if world.agent.process is None or world.agent.process.is_dead():
            chosen = world.agent.target
            if chosen is None or chosen.is_gone or self.random.random() < 0.3:
                chosen = self.random.choice([each for each in world.process_servers if not each.is_gone])
            world.note("agent", f"starts, ships to {chosen.name}")
            world.agent.start(chosen)

    async def cut_agents_power(self) -> None:
        world = self.world

        def strike() -> None:
            world.note("fault", "the source loses power")
            world.agent.cut_power()

        await self._strike_agent(strike, _AGENTS_PLACES)
        await asyncio.sleep(self._away_s())
        world.workload.start()
        await self._start_agent()

    async def cut_power_after_a_kill(self) -> None:
        """The agent dies before a name is durable, acts on what it finds when it is started again, and only then the power goes."""
        world = self.world
        if world.agent.process is None or world.agent.process.is_dead():
            return
        world.note("fault", "agent is killed, then its machine")
        await self._at_failpoint(world.agent.process, world.agent.kill, ("name",))
        if world.agent.process.is_dead() and world.agent.target is not None and not world.agent.target.is_gone:
            world.agent.start(world.agent.target)
        await asyncio.sleep(0.01 + self.random.random() * self.random.choice((0.05, 0.3, 1.0)))
        world.note("fault", "the source loses power")
        world.agent.cut_power()
        world.agent.judge_files()
        await asyncio.sleep(self._away_s())
        world.workload.start()
        await self._start_agent()

    async def switch_process_server(self) -> None:
        """As when the configuration server assigns another one: the item session ends and begins anew, batches are on their way."""
        world = self.world
        others = [each for each in world.process_servers if not each.is_gone and each is not world.agent.target]
        if others and world.agent.process is not None and not world.agent.process.is_dead():
            world.note("fault", f"the agent is to ship to {others[0].name}")
            world.agent.change_to(others[0])

    async def strand_epochs(self) -> None:
        """The process server that has them does not reach the store; the agent goes on with the other one; the first is back: two process
        servers hold parts of the same epochs.
        """
        world, used = self.world, self._some_process_server()
        pair = frozenset((used.name, "store"))
        world.note("fault", f"{used.name} does not reach the store")
        world.network.cut.add(pair)
        await asyncio.sleep(self.random.random() * 4)
        if self.random.random() < 0.6:
            await self.switch_process_server()
            await asyncio.sleep(self.random.random() * self.random.choice((0.5, 4.0)))
        else:  # it has all that it acknowledged in its spool, and there alone
            await self._crash_twice(used)
        world.network.cut.discard(pair)
        await self._start_process_server(used)

    async def _crash_twice(self, chosen: ProcessServerMachine) -> None:
        """Killed, started, and then without power: what was found after the kill must be durable once it is acted on."""
        if self.random.random() < 0.6:
            await asyncio.sleep(self.random.random())
            if self.random.random() < 0.4 and chosen.damage_record():
                self.world.note("fault", f"a record of {chosen.name} is damaged")
            self.world.note("fault", f"{chosen.name} is killed and started")
            await self._at_failpoint(chosen.process, chosen.kill)
            if not chosen.is_gone and (chosen.process is None or chosen.process.is_dead()):
                chosen.start()
            await asyncio.sleep(self.random.random() * self.random.choice((0.3, 2.0)))
        else:
            chosen.files.failing_syncs = self.random.randrange(3)
            await asyncio.sleep(self.random.random() * 2)
        self.world.note("fault", f"{chosen.name} loses power")
        chosen.files.failing_syncs = 0
        chosen.cut_power()

    async def damage_spool(self) -> None:
        """A bit of a process server's disk: what it has acknowledged is lost, and it finds that out by itself."""
        chosen = self._some_process_server()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if chosen.damage_record():
                self.world.note("fault", f"a record of {chosen.name} is damaged")
                return

    async def order_resync(self) -> None:
        disk = self.random.choice(list(self.world.disks))
        self.world.note("fault", f"resync of {disk[:8]} is ordered")
        self.world.agent.order_resync(disk, self.world.new_id())

    async def revert_machine(self) -> None:
        """To a snapshot of its disks and files; it boots from there."""
        world = self.world
        media = {disk: bytes(source.medium) for disk, source in world.disks.items()}
        files = world.agent.files.copy()
        world.note("fault", "the source is snapshotted")
        await asyncio.sleep(self.random.random() * self.random.choice((1.0, 3.0, 15.0)))
        world.note("fault", "the source is reverted")
        world.agent.cut_power()
        world.agent.judge_files()
        world.agent.files.revert(files)
        world.agent.forget_promises()
        for disk, source in world.disks.items():
            source.revert(media[disk])
        await asyncio.sleep(self._away_s())
        world.workload.start()
        await self._start_agent()

    async def restore_agents_state(self) -> None:
        """From a backup, while the disks go on."""
        world = self.world
        files = world.agent.files.copy()
        world.note("fault", "the agent's state is backed up")
        # Where nothing of what it does meanwhile reaches anybody, only the tracker knows of it.
        is_alone = self.random.random() < 0.5
        cut = {frozenset(("agent", each.name)) for each in world.process_servers} if is_alone else set()
        world.network.cut |= cut
        await asyncio.sleep(self.random.random() * self.random.choice((1.0, 3.0, 15.0)))
        world.note("fault", "the agent's state is restored")
        await self._strike_agent(world.agent.kill, ("net", None))
        world.network.cut -= cut
        world.agent.files.revert(files)
        world.agent.forget_promises()
        await self._start_agent()

    async def die_over_a_doubt(self) -> None:
        """Marks are lost; the agent dies as soon as its tracker has forgotten that. Its state may be that of just before it was found."""
        world, process = self.world, self.world.agent.process
        if process is None or process.is_dead():
            return
        world.note("fault", "a mark is lost")
        for disk in world.disks.values():
            disk.overflows = 1
        copies: list[Inode] = []

        def found() -> None:
            copies.append(world.agent.files.copy())
            process.fuse, process.fuse_burns_at, process.on_fuse = 0, "doubt", world.agent.kill

        process.fuse, process.fuse_burns_at, process.on_fuse = 0, "doubt found", found
        for _ in range(24):
            await asyncio.sleep(0.25)
            if process.is_dead():
                break
        process.fuse = None
        world.agent.kill()
        world.agent.judge_files()
        if copies and self.random.random() < 0.5:
            world.note("fault", "the agent's state of before the doubt is restored")
            world.agent.files.revert(copies[0])
            world.agent.forget_promises()
        await self._start_agent()

    async def die_over_an_epoch(self) -> None:
        """Before its manifest is put; its state of just before the cut goes on with the other process server."""
        world, process = self.world, self.world.agent.process
        if process is None or process.is_dead():
            return
        world.note("fault", "the agent's state is backed up at its next harvest")
        copies: list[Inode] = []

        def found() -> None:
            copies.append(world.agent.files.copy())
            process.fuse, process.fuse_burns_at, process.on_fuse = self.random.randrange(1, 5), "net", world.agent.kill

        process.fuse, process.fuse_burns_at, process.on_fuse = self.random.randrange(3), "harvest", found
        for _ in range(24):
            await asyncio.sleep(0.25)
            if process.is_dead():
                break
        process.fuse = None
        world.agent.kill()
        world.agent.judge_files()
        if copies:
            world.note("fault", "the agent's state is restored")
            world.agent.files.revert(copies[0])
            world.agent.forget_promises()
        others = [each for each in world.process_servers if not each.is_gone and each is not world.agent.target]
        if others:
            world.note("agent", f"starts, ships to {others[0].name}")
            world.agent.start(others[0])
        else:
            await self._start_agent()

    async def jump_clock(self) -> None:
        seconds = self.random.choice((-7200.0, -30.0, -1.0, 1.0, 30.0, 7200.0))
        self.world.note("fault", f"the source's clock jumps by {seconds} s")
        self.world.clock_offset_ns += int(seconds * 1e9)

    async def fill_disk(self) -> None:
        """Of the source or of a process server: what is new finds no room, or what is synced does not arrive."""
        chosen = self.random.choice((self.world.agent.files, self._some_process_server().files))
        if self.random.random() < 0.6:
            self.world.note("fault", f"{chosen.machine}'s disk is full")
            chosen.is_full = True
            await asyncio.sleep(self.random.random() * 20)
            chosen.is_full = False
        else:
            chosen.failing_syncs = self.random.randrange(1, 4)
            self.world.note("fault", f"{chosen.failing_syncs} syncs of {chosen.machine} fail")

    async def damage_segment(self) -> None:
        """In the store; and the operator resynchronizes the disk, as the problem's hint says."""
        world = self.world
        for _ in range(200):
            await asyncio.sleep(0.01)
            if world.damage_some_segment():
                break
        await asyncio.sleep(self.random.random() * 5)
        for disk in world.disks:
            world.agent.order_resync(disk, world.new_id())

    # ---- process servers

    def _some_process_server(self) -> ProcessServerMachine:
        alive = [each for each in self.world.process_servers if not each.is_gone]
        used = self.world.agent.target
        if isinstance(used, ProcessServerMachine) and not used.is_gone and self.random.random() < 0.7:
            return used
        return self.random.choice(alive)

    async def kill_process_server(self) -> None:
        chosen = self._some_process_server()
        self.world.note("fault", f"{chosen.name} is killed")
        await self._at_failpoint(chosen.process, chosen.kill)
        await self._start_process_server(chosen)

    async def stop_process_server(self) -> None:
        """As a service manager stops it."""
        chosen = self._some_process_server()
        if chosen.process is not None and chosen.process.is_running:
            self.world.note("fault", f"{chosen.name} is stopped")
            chosen.stop()
            await asyncio.sleep(2.0)
            chosen.kill()
            await self._start_process_server(chosen)

    async def cut_process_servers_power(self) -> None:
        chosen = self._some_process_server()

        def strike() -> None:
            self.world.note("fault", f"{chosen.name} loses power")
            chosen.cut_power()

        await self._at_failpoint(chosen.process, strike)
        await self._start_process_server(chosen)

    async def _start_process_server(self, chosen: ProcessServerMachine) -> None:
        await asyncio.sleep(self._away_s())
        if not chosen.is_gone and (chosen.process is None or chosen.process.is_dead()):
            self.world.note(chosen.name, "starts")
            chosen.start()

    async def lose_process_server(self) -> None:
        """For good, with its spool; the configuration server assigns the other one after a while."""
        world = self.world
        alive = [each for each in world.process_servers if not each.is_doomed]
        if len(alive) < 2:
            return
        chosen = self._some_process_server()
        chosen.is_doomed = True

        def strike() -> None:
            world.note("fault", f"{chosen.name} is gone for good")
            chosen.lose_everything()

        await self._at_failpoint(chosen.process, strike)
        await asyncio.sleep(self._away_s())
        if world.agent.target is chosen:
            taker = world.control.taken_over_by(chosen.name, [each.name for each in alive])
            other = next(each for each in alive if each.name == taker)
            world.note("fault", f"the agent is to ship to {other.name}")
            world.agent.change_to(other)

    # ---- writers

    async def stall_somebody(self) -> None:
        """A machine that is paused, or a process that is stopped: it wakes up and goes on where it was."""
        world = self.world
        writers = [each.process for each in world.writers]
        chosen = self.random.choice(
            [*writers, *writers, world.agent.process, *(each.process for each in world.process_servers)]
        )
        if chosen is None or chosen.is_dead():
            return
        clock_stands = self.random.random() < 0.5

        def strike() -> None:
            world.note("fault", f"{chosen.name} stalls, its clock {'stands' if clock_stands else 'goes on'}")
            chosen.stall(clock_stands=clock_stands)

        chosen.fuse, chosen.on_fuse, chosen.fuse_burns_at = self.random.choice(_FUSES), strike, None
        await asyncio.sleep(self.random.choice((3.0, 18.0, 26.0)) * (0.5 + self.random.random()))
        chosen.fuse = None
        world.note("fault", f"{chosen.name} wakes")
        chosen.wake()

    async def kill_writer(self) -> None:
        chosen: WriterMachine = self.random.choice(self.world.writers)
        self.world.note("fault", f"{chosen.name} is killed")
        await self._at_failpoint(chosen.process, chosen.kill)
        await asyncio.sleep(self._away_s())
        if chosen.process is None or chosen.process.is_dead():
            self.world.note(chosen.name, "starts")
            chosen.start()

    async def revert_store(self) -> None:
        """An older copy of the store takes its place; the writers are stopped for it. Nobody else is told. Once in a story."""
        world = self.world
        if world.store_is_copied:
            return
        world.store_is_copied = True
        state, remembered = world.account.copied(), world.oracle.remembered()
        world.note("fault", "the store is copied")
        await asyncio.sleep(self.random.random() * self.random.choice((1.0, 5.0, 20.0)))
        for writer in world.writers:
            writer.kill()
        world.note("fault", "the store is put back to the copy")
        world.network.store_is_down, world.network.store_lives = True, world.network.store_lives + 1
        await asyncio.sleep(3 + self.random.random() * 8)
        world.network.store_is_down = False
        world.account.put_back(state)
        world.oracle.revert(remembered)
        for process_server in world.process_servers:
            process_server.forget_promises()
        await asyncio.sleep(self._away_s())
        for writer in world.writers:
            if writer.process is None or writer.process.is_dead():
                writer.start()

    # ---- the network

    async def storm(self) -> None:
        network, random = self.world.network, self.random
        strength = random.choice((0.05, 0.15, 0.4))
        shares = [random.random() for _ in range(4)]
        network.weather = Weather(
            lost=strength * shares[0],
            answer_lost=strength * shares[1],
            late=strength * shares[2],
            repeated=strength * shares[3],
            slow=random.choice((0.0, 0.1, 0.5)),
        )
        self.world.note("fault", f"storm {network.weather}")
        await asyncio.sleep(3 + random.random() * 12)
        network.weather = Weather()

    async def part(self) -> None:
        """Two of them do not reach each other for a while."""
        network = self.world.network
        names = [("agent", "ps-1"), ("agent", "ps-2"), ("ps-1", "store"), ("ps-2", "store"), ("agent", "config")]
        names += [("writer-1", "store"), ("writer-2", "store"), ("ps-1", "config")]
        pair = frozenset(self.random.choice(names))
        self.world.note("fault", f"{' and '.join(sorted(pair))} do not reach each other")
        network.cut.add(pair)
        await asyncio.sleep(self.random.choice((2.0, 8.0, 20.0)) * (0.5 + self.random.random()))
        network.cut.discard(pair)

    def of_a_theme(self, wanted: str) -> list[Fault]:
        """Any faults, or those of one part of the site: the same few again and again reach deeper. ``wanted`` "": drawn."""
        agent: list[Fault] = [
            self.kill_agent,
            self.cut_agents_power,
            self.kill_agent,
            self.cut_agents_power,
            self.cut_power_after_a_kill,
            self.die_over_a_doubt,
            self.storm,
        ]
        spools: list[Fault] = [self.kill_process_server, self.cut_process_servers_power, self.stop_process_server]
        spools += [self.cut_process_servers_power, self.switch_process_server, self.fill_disk, self.storm]
        spools += [self.strand_epochs, self.strand_epochs, self.damage_spool, self.lose_process_server]
        sink: list[Fault] = [
            self.kill_writer,
            self.stall_somebody,
            self.stall_somebody,
            self.storm,
            self.storm,
            self.part,
        ]
        history: list[Fault] = [self.order_resync, self.damage_segment, self.revert_machine, self.restore_agents_state]
        history += [
            self.die_over_a_doubt,
            self.die_over_an_epoch,
            self.cut_agents_power,
            self.lose_process_server,
            self.jump_clock,
        ]
        everything = [*agent, *spools, *sink, *history]
        drawn = self.random.choice((everything, everything, agent, spools, sink, history))
        store: list[Fault] = [self.revert_store, self.revert_store, self.kill_process_server, self.kill_agent]
        store += [self.order_resync, self.storm, self.part]
        themes = {"": drawn, "agent": agent, "spools": spools, "sink": sink, "history": history, "store": store}
        return themes[wanted]

    async def heal(self) -> None:
        """No further fault; everybody who is not gone for good runs."""
        world = self.world
        world.network.weather = Weather()
        world.network.cut.clear()
        world.network.store_is_down = False
        for files in (world.agent.files, *(each.files for each in world.process_servers)):
            files.is_full, files.failing_syncs = False, 0
        for process_server in world.process_servers:
            if not process_server.is_gone and (process_server.process is None or process_server.process.is_dead()):
                process_server.start()
        for writer in world.writers:
            if writer.process is None or writer.process.is_dead():
                writer.start()
        world.workload.start()
        if world.agent.process is None or world.agent.process.is_dead():
            await self._start_agent()
        elif world.agent.target is not None and world.agent.target.is_gone:
            world.agent.change_to(next(each for each in world.process_servers if not each.is_gone))
