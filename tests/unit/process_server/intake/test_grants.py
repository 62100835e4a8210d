"""Who may ship what: asked once, kept while the configuration server is away, never given to another machine."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from process_server.intake.grants import FAILURE_KEPT_S, MAX_GRANTS, REFUSAL_KEPT_S, Grants
from replication.control_plane import DataKeyGrant
from replication.errors import BlockferryError, NotFound, PeerProtocolError, PeerUnavailable, Refused
from replication.identifiers import DiskId, GenerationId, GenerationKey, MachineId
from replication.store_documents import GenerationRecord
from tests.harness.epochs import new_uuid
from tests.harness.process_time import in_virtual_time, virtual_clock

RANDOM = Random(51)
MACHINE, STRANGER = MachineId(new_uuid(RANDOM)), MachineId(new_uuid(RANDOM))


class Rig:
    """A configuration server and a store, both of which may fail."""

    def __init__(self) -> None:
        self.failure: BlockferryError | None = None
        self.record_failure: BlockferryError | None = None
        self.recorded: dict[GenerationKey, MachineId] = {}
        self.known: dict[GenerationKey, MachineId] = {}
        self.changes: dict[str, object] = {}
        self.asked = 0
        self.records_asked = 0
        self.grants = Grants(self, self, virtual_clock(), self.known.get)

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.failure is not None:
            raise self.failure
        grant = DataKeyGrant(
            disk=key.disk, generation=key.generation, machine=MACHINE, size_bytes=4096, data_key="ab" * 32
        )
        return grant.model_copy(update=self.changes)

    async def generation_record(self, key: GenerationKey) -> GenerationRecord | None:
        self.records_asked += 1
        if self.record_failure is not None:
            raise self.record_failure
        if key not in self.recorded:
            return None
        return GenerationRecord(
            disk=key.disk, generation=key.generation, machine=self.recorded[key], item=new_uuid(RANDOM),
            size_bytes=4096, granularity_bytes=4096, base=None, writer_key_id="k",
        )  # fmt: skip


def new_key() -> GenerationKey:
    return GenerationKey(DiskId(new_uuid(RANDOM)), GenerationId(1))


@in_virtual_time
async def test_many_that_ask_at_once_are_one_question() -> None:
    rig, key = Rig(), new_key()
    grants = await asyncio.gather(*(rig.grants.for_batch(key, MACHINE) for _ in range(50)))
    assert rig.asked == 1
    assert {grant.data_key for grant in grants} == {b"\xab" * 32}


@in_virtual_time
async def test_another_machine_gets_nothing_and_learns_no_key() -> None:
    rig, key = Rig(), new_key()
    for _ in range(2):
        with pytest.raises(Refused, match="belongs to another machine"):
            await rig.grants.for_batch(key, STRANGER)
        with pytest.raises(Refused):
            await rig.grants.check_owner(key, STRANGER)
    assert "ab" * 32 not in repr(await rig.grants.for_batch(key, MACHINE))


@in_virtual_time
async def test_known_generations_go_on_without_the_configuration_server() -> None:
    rig, key = Rig(), new_key()
    await rig.grants.for_batch(key, MACHINE)
    rig.failure = PeerUnavailable("cannot reach it")
    await asyncio.sleep(3 * 86400)
    await rig.grants.for_batch(key, MACHINE)
    await rig.grants.check_owner(key, MACHINE)
    with pytest.raises(PeerUnavailable):
        await rig.grants.for_batch(new_key(), MACHINE)


@in_virtual_time
async def test_refusals_and_failures_are_kept_for_a_while_and_no_longer() -> None:
    for failure, kept_s in ((NotFound("cannot find it"), REFUSAL_KEPT_S), (PeerUnavailable("cannot"), FAILURE_KEPT_S)):
        rig, key = Rig(), new_key()
        rig.failure = failure
        for _ in range(20):
            with pytest.raises(type(failure)):
                await rig.grants.for_batch(key, MACHINE)
        assert rig.asked == 1
        rig.failure = None
        await asyncio.sleep(kept_s)
        await rig.grants.for_batch(key, MACHINE)
        assert rig.asked == 2


@pytest.mark.parametrize("failure", [PeerUnavailable("cannot reach it"), Refused("cannot: assigned elsewhere")])
def test_the_owner_is_read_from_the_store_where_the_configuration_server_does_not_say(
    failure: BlockferryError,
) -> None:
    @in_virtual_time
    async def check() -> None:
        rig, key = Rig(), new_key()
        rig.failure, rig.recorded = failure, {key: MACHINE}
        for _ in range(5):
            await rig.grants.check_owner(key, MACHINE)
            with pytest.raises(Refused, match="another machine"):
                await rig.grants.check_owner(key, STRANGER)
        assert rig.records_asked == 1
        with pytest.raises(type(failure)):
            await rig.grants.for_batch(key, MACHINE)

    check()


@in_virtual_time
async def test_who_owns_a_generation_that_nobody_knows_cannot_be_said() -> None:
    rig, key = Rig(), new_key()
    rig.failure = PeerUnavailable("cannot reach it")
    with pytest.raises(PeerUnavailable, match="cannot reach it"):
        await rig.grants.check_owner(key, MACHINE)
    rig.record_failure = PeerUnavailable("cannot reach the store")
    with pytest.raises(PeerUnavailable, match="the store"):
        await rig.grants.check_owner(key, MACHINE)
    rig.failure = NotFound("cannot find it")
    await asyncio.sleep(FAILURE_KEPT_S)
    with pytest.raises(NotFound):
        await rig.grants.check_owner(key, MACHINE)


@in_virtual_time
async def test_the_owner_of_what_is_spooled_is_known_without_a_question() -> None:
    rig, key = Rig(), new_key()
    rig.known[key] = MACHINE
    await rig.grants.check_owner(key, MACHINE)
    assert (rig.asked, rig.records_asked) == (0, 0)


@in_virtual_time
async def test_a_grant_that_is_not_the_one_asked_for_is_refused() -> None:
    for changes, error in (
        ({"generation": 2}, PeerProtocolError),
        ({"disk": new_uuid(RANDOM)}, PeerProtocolError),
        ({"size_bytes": 0}, NotFound),
        ({"data_key": "ab"}, BlockferryError),
    ):
        rig = Rig()
        rig.changes = changes  # type: ignore[assignment]  # of several kinds
        with pytest.raises(error):
            await rig.grants.for_batch(new_key(), MACHINE)


@in_virtual_time
async def test_a_generation_that_is_over_is_asked_about_anew_and_memory_is_bounded() -> None:
    rig, key = Rig(), new_key()
    await rig.grants.for_batch(key, MACHINE)
    rig.grants.forget(key)
    await rig.grants.for_batch(key, MACHINE)
    assert rig.asked == 2
    for _ in range(MAX_GRANTS):
        await rig.grants.for_batch(new_key(), MACHINE)
    await rig.grants.for_batch(key, MACHINE)
    assert rig.asked == MAX_GRANTS + 3
