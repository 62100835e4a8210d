"""An agent in the test's process, with a stand-in for its client of the configuration server. Called by the tests of ``daemon``."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mobility_agent.config import AgentSettings, ConfigServerSettings, TrackerSettings
from mobility_agent.daemon import Agent
from replication.agent_limits import AgentLimits, ObservationAnswer
from replication.control_plane import (
    AgentDesired,
    AgentObservation,
    DesiredItem,
    EnrolmentAnswer,
    GenerationGrant,
    GenerationRequest,
    InventoryAnswer,
    MachineInventory,
    ProcessServerAddress,
    RenewalRequest,
    ReplicationTiming,
)
from replication.errors import PeerUnavailable
from replication.identifiers import DiskId
from replication.service.health import HealthState
from replication.service.observability import ObservabilitySettings
from replication.service.runtime import Lifecycle
from replication.tls_identity import Role, TlsIdentity
from tests.harness.tls import LabAuthority

DISK = "22222222-2222-4222-8222-222222222222"


class ConfigServer:
    """In place of the agent's client of it: says ``desired`` once, or that it is away."""

    def __init__(self) -> None:
        self.is_away = False
        self.news: list[AgentDesired] = []
        self.observations: list[AgentObservation] = []
        self.inventories: list[MachineInventory] = []
        self.process_servers: list[ProcessServerAddress] | None = None
        """None: it is from before it told them."""
        self.contexts: list[ssl.SSLContext] = []
        self.limits: AgentLimits | None = None
        """None: it is from before there were limits."""

    def _answer(self) -> None:
        if self.is_away:
            raise PeerUnavailable("cannot reach the configuration server")

    async def put_inventory(self, inventory: MachineInventory) -> InventoryAnswer | None:
        self._answer()
        self.inventories.append(inventory)
        return None if self.process_servers is None else InventoryAnswer(process_servers=self.process_servers)

    async def post_observation(self, observation: AgentObservation) -> ObservationAnswer | None:
        self._answer()
        self.observations.append(observation)
        return None if self.limits is None else ObservationAnswer(limits=self.limits)

    async def desired(self, _: int, wait_s: float) -> AgentDesired | None:
        self._answer()
        if self.news:
            return self.news.pop(0)
        await asyncio.sleep(0.01)
        return None

    async def renew_certificate(self, _: RenewalRequest) -> EnrolmentAnswer:
        raise PeerUnavailable("cannot renew a certificate: there is no authority")

    async def new_generation(self, disk: DiskId, _: GenerationRequest) -> GenerationGrant:
        raise PeerUnavailable(f"cannot grant a generation of {disk}: nobody keeps them")

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        self.contexts.append(tls)

    async def close(self) -> None:
        return None


def wish(revision: int, *disks: str, reached: bool = False) -> AgentDesired:
    """:param reached: there is a process server; it does not answer."""
    address = ProcessServerAddress(identifier=str(uuid.uuid4()), url="https://127.0.0.1:1") if reached else None
    item = DesiredItem(
        item=str(uuid.uuid4()), disks=list(disks), goal="replicate", timing=ReplicationTiming(), process_server=address
    )
    return AgentDesired(revision=revision, item=item if disks else None)


def agent_settings(directory: Path) -> AgentSettings:
    """Enrolled, with the least that it takes to run."""
    made = AgentSettings(
        config_server=ConfigServerSettings("https://127.0.0.1:1"),
        state_dir=directory / "state",
        heartbeat_s=0.5,
        keep_unprotected_s=0.0,
        tracker=TrackerSettings(kind="scan", pin_root=directory / "pins"),
        observability=ObservabilitySettings(listen="127.0.0.1:0"),
    )
    LabAuthority().issue(Role.AGENT, str(uuid.uuid4()), made.identity_dir)
    return made


class Running:
    def __init__(self, agent: Agent, server: ConfigServer, task: asyncio.Task[None]) -> None:
        self.agent, self.server, self.task = agent, server, task

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                if self.task.done():
                    await self.task
                await asyncio.sleep(0.005)

    def health(self, check: str) -> HealthState | None:
        return next((each.state for each in self.agent._board.checks if each.name == check), None)


@asynccontextmanager
async def running(settings: AgentSettings, server: ConfigServer) -> AsyncIterator[Running]:
    lifecycle = Lifecycle()
    with contextlib.ExitStack() as held:
        agent = Agent(settings, TlsIdentity(settings.identity_dir), held)
        await agent._control.close()
        agent._control = server  # type: ignore[assignment]  # the same calls
        task = asyncio.create_task(agent.run(lifecycle))
        try:
            yield Running(agent, server, task)
        finally:
            lifecycle.request_stop()
            await asyncio.wait([task])
