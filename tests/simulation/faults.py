"""What a seed does to a site: each fault is a coroutine that strikes, and puts right what a person or a service manager would.

Used by ``simulation``. Crashes strike at once or at the n-th action from now (a file changed, a message sent, a block read): any failpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.simulation.network import Weather
from tests.simulation.process_server_machine import ProcessServerMachine
from tests.simulation.virtual_loop import Process
from tests.simulation.world import World, WriterMachine

_FUSES: Final = (0, 1, 2, 3, 5, 8, 13, 21, 40, 80, 160)


@dataclass(slots=True)
class Faults:
    """Strikes one world."""

    world: World
    random: Random
    calm: bool = False

    def _away_s(self) -> float:
        return self.random.choice((0.0, 0.2, 1.0, 5.0, 20.0)) * (0.5 + self.random.random())

    async def _at_failpoint(self, process: Process | None, strike: Callable[[], None]) -> None:
        """Strike in the middle of one of the process's next actions, or after a while if it is idle."""
        world = self.world
        if process is None or process.is_dead():
            strike()
            return
        process.fuse, process.on_fuse = self.random.choice(_FUSES), strike
        for _ in range(20):
            await asyncio.sleep(0.25)
            if process.is_dead():
                return
        process.fuse = None
        world.note("fault", f"{process.name} was idle")
        strike()

    # ---- the source

    async def kill_agent(self) -> None:
        world = self.world
        if world.agent.process is None or world.agent.process.is_dead():
            return
        world.note("fault", "agent is killed")
        await self._at_failpoint(world.agent.process, world.agent.kill)
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

        await self._at_failpoint(world.agent.process, strike)
        await asyncio.sleep(self._away_s())
        world.workload.start()
        await self._start_agent()

    async def switch_process_server(self) -> None:
        """As when the configuration server assigns another one: the item session ends and begins anew, batches are on their way."""
        world = self.world
        others = [each for each in world.process_servers if not each.is_gone and each is not world.agent.target]
        if not others or world.agent.process is None or world.agent.process.is_dead():
            return
        world.note("fault", f"agent changes to {others[0].name}")
        await self._at_failpoint(world.agent.process, world.agent.kill)
        if world.agent.process.is_dead():
            world.agent.start(others[0])

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

    # ---- writers

    async def kill_writer(self) -> None:
        chosen: WriterMachine = self.random.choice(self.world.writers)
        self.world.note("fault", f"{chosen.name} is killed")
        await self._at_failpoint(chosen.process, chosen.kill)
        await asyncio.sleep(self._away_s())
        if chosen.process is None or chosen.process.is_dead():
            self.world.note(chosen.name, "starts")
            chosen.start()

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
        await asyncio.sleep(5 + random.random() * 20)
        network.weather = Weather()

    def all(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.kill_agent,
            self.cut_agents_power,
            self.switch_process_server,
            self.kill_process_server,
            self.cut_process_servers_power,
            self.kill_writer,
            self.storm,
        ]

    async def heal(self) -> None:
        """No further fault; everybody who is not gone for good runs."""
        world = self.world
        world.network.weather = Weather()
        world.network.cut.clear()
        for process_server in world.process_servers:
            if not process_server.is_gone and (process_server.process is None or process_server.process.is_dead()):
                process_server.start()
        for writer in world.writers:
            if writer.process is None or writer.process.is_dead():
                writer.start()
        if world.agent.process is None or world.agent.process.is_dead():
            world.workload.start()
            await self._start_agent()
