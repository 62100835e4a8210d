"""One disk's supervisor over a real file, the scan tracker and a memory sink: generations, retries, and what is closed when."""

from __future__ import annotations

import asyncio
import shutil
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mobility_agent.core import sink_standing
from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.protection import disk_supervisor, receipt_intake
from mobility_agent.protection.ledger_opening import open_ledger
from replication.errors import Conflict, Retryable
from tests.harness.supervisor_rig import DISK, GRANULARITY_BYTES, SIZE_BYTES, Rig, write_at


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(disk_supervisor, "backoff_s", lambda *_: 0.001)
    rig = Rig(tmp_path)
    yield rig
    await rig.stop()


async def test_a_disk_is_seeded_and_followed(rig: Rig) -> None:
    rig.start()
    await rig.replicated(1)
    assert rig.supervisor.begins_from_nothing
    with rig.path.open("r+b") as stream:
        stream.write(b"changed")
    await rig.replicated(1)
    assert rig.supervisor.problem is None
    assert len(rig.grants.asked) == 1


async def test_a_resync_order_is_obeyed_once_and_sends_only_what_differs(rig: Rig) -> None:
    task = rig.start()
    await rig.replicated(1)
    order = str(uuid.uuid4())
    assert await rig.supervisor.order_resync(order, "the operator asked")
    task.cancel()
    await asyncio.wait([task])
    with rig.path.open("r+b") as stream:
        stream.write(b"changed")
    rig.start()
    await rig.replicated(2)
    assert not await rig.supervisor.order_resync(order, "the operator asked")
    assert not rig.supervisor.begins_from_nothing
    assert rig.grants.asked[-1].reason == "the operator asked"
    assert rig.sinks.all[2].received_data_bytes == GRANULARITY_BYTES


async def test_an_order_that_distrusts_the_digests_repairs_what_was_changed_at_the_sink(rig: Rig) -> None:
    """Bytes of the replica were changed behind everybody's back: the digest table says what was applied, not what is there."""
    write_at(rig.path, 3, bytes(2 * GRANULARITY_BYTES))
    task = rig.start()
    await rig.replicated(1)
    replica = rig.sinks.all[1].replica
    for granule in (3, 7):  # where the source is zero, too
        replica[granule * GRANULARITY_BYTES] ^= 0xFF
    assert await rig.supervisor.order_resync(str(uuid.uuid4()), "trusting")
    task.cancel()
    await asyncio.wait([task])
    task = rig.start()
    await rig.until(
        lambda: (
            (found := rig.supervisor.session) is not None
            and found.ledger.generation == 2
            and not found.ledger.is_seeding
        )
    )
    assert rig.sinks.all[2].replica != rig.path.read_bytes(), "equal digests are not sent"
    assert await rig.supervisor.order_resync(str(uuid.uuid4()), "distrusting", distrust_digests=True)
    task.cancel()
    await asyncio.wait([task])
    rig.start()
    await rig.replicated(3)
    assert [request.distrust_digests for request in rig.grants.asked] == [False, False, True]
    assert rig.sinks.all[3].received_data_bytes == SIZE_BYTES - 2 * GRANULARITY_BYTES


async def test_an_order_that_comes_while_a_generation_is_opened_on_the_table_is_not_forgotten_with_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The duty that it adds to was asked for before; its generation has looked at the digests already."""
    ordered: list[str] = []

    def opened(*arguments: Any, **named: Any) -> EpochLedger:
        ledger = open_ledger(*arguments, **named)
        if not ordered:
            ordered.append(str(uuid.uuid4()))
            asyncio.run(rig.supervisor.order_resync(ordered[0], "distrusting", distrust_digests=True))
        return ledger

    monkeypatch.setattr(disk_supervisor, "open_ledger", opened)
    task = rig.start()
    await rig.replicated(1)
    task.cancel()  # as the item's session does once the order is persisted
    await asyncio.wait([task])
    rig.start()
    await rig.replicated(2)
    assert [request.distrust_digests for request in rig.grants.asked] == [False, True]
    assert not await rig.supervisor.order_resync(ordered[0], "distrusting", distrust_digests=True)


async def test_a_disk_that_another_agent_of_the_machine_replicates_is_left_alone_until_it_does_not(rig: Rig) -> None:
    rig.others = True
    task = rig.start()
    await rig.until(lambda: rig.supervisor.problem is not None)
    assert rig.supervisor.problem is not None
    assert rig.supervisor.problem.code == "refused"
    assert not rig.grants.asked
    assert not rig.readers
    rig.others = False
    await rig.replicated(1)
    assert rig.held == 1
    task.cancel()
    await asyncio.wait([task])
    assert rig.held == 0


async def test_a_torn_generation_is_sent_again_where_nobody_knows_what_was_written(rig: Rig) -> None:
    task = rig.start()
    await rig.replicated(1)
    await rig.supervisor.order_resync(str(uuid.uuid4()), "the operator asked")
    task.cancel()
    await asyncio.wait([task])
    rig.grants.changes = {"torn": True}
    rig.sinks.all[1].replica[:] = bytes(SIZE_BYTES)  # what a half-applied epoch may do
    rig.start()
    await rig.replicated(2)
    assert rig.sinks.all[2].received_data_bytes == SIZE_BYTES


async def test_a_reverted_machine_trusts_no_digests_if_the_sink_applied_another_epoch_of_the_same_number(
    rig: Rig, tmp_path: Path
) -> None:
    """It has sealed an epoch of its own under that number, and the generation is closed before a receipt shows the difference."""
    task = rig.start()
    await rig.replicated(1)
    task.cancel()
    await asyncio.wait([task])
    shutil.copytree(tmp_path / "disks", tmp_path / "backup")
    reverted = rig.path.read_bytes()
    write_at(rig.path, 3, b"forgotten")
    task = rig.start()
    await rig.replicated(1)
    task.cancel()
    await asyncio.wait([task])
    sink = rig.sinks.all[1]
    applied_epoch = sink.applied_epoch

    rig.path.write_bytes(reverted)
    shutil.rmtree(tmp_path / "disks")
    shutil.copytree(tmp_path / "backup", tmp_path / "disks")
    rig.restart_supervisor()
    rig.sinks.mute = True
    sink.batches.clear()  # collected once they were applied
    write_at(rig.path, 5, b"written after the revert")
    task = rig.start()
    await rig.until(
        lambda: (found := rig.supervisor.session) is not None and found.ledger.sealed_epoch == applied_epoch
    )
    assert await rig.supervisor.order_resync(str(uuid.uuid4()), "the operator asked")
    task.cancel()
    await asyncio.wait([task])
    rig.sinks.mute = False
    rig.start()
    await rig.replicated(2)


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_standing, "REVERTED_AFTER_S", 0.05)
    monkeypatch.setattr(receipt_intake, "_BEHIND_PAUSE_S", 0.01)


@pytest.mark.usefixtures("short_deadlines")
async def test_a_store_put_back_to_an_older_state_is_compared_anew_and_no_digest_is_trusted(rig: Rig) -> None:
    _, older, _ = await rig.fall_behind()
    await rig.replicated(2)
    assert rig.grants.asked[-1].reason.startswith(f"cannot go on: the sink is at epoch {older['applied_epoch']}")
    assert rig.sinks.all[2].received_data_bytes == SIZE_BYTES, "everything, as if nothing were known"


async def test_a_store_that_is_behind_is_a_problem_at_once_and_none_when_the_newer_one_is_back(rig: Rig) -> None:
    sink, _, newer = await rig.fall_behind()
    problem = rig.supervisor.problem
    assert problem is not None
    assert problem.code == "sink-behind"
    await sink.put_back(newer)
    write_at(rig.path, 4, b"goes on")
    await rig.until(lambda: rig.supervisor.problem is None)
    await rig.replicated(1)
    assert len(rig.grants.asked) == 1


async def test_an_order_that_cannot_be_persisted_is_obeyed_as_soon_as_it_can(rig: Rig, tmp_path: Path) -> None:
    """The item's session gives it again with its next look."""
    rig.start()
    await rig.replicated(1)
    order, record = str(uuid.uuid4()), tmp_path / "disks" / DISK / "protection.json"
    kept = record.read_bytes()
    record.unlink()
    record.mkdir()
    assert not await rig.supervisor.order_resync(order, "the operator asked")
    assert rig.supervisor.problem is not None
    record.rmdir()
    record.write_bytes(kept)
    assert await rig.supervisor.order_resync(order, "the operator asked")


async def test_the_log_tells_what_was_decided_and_nothing_of_single_epochs(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mobility_agent")
    rig.start()
    await rig.replicated(1)
    for granule in range(3):
        write_at(rig.path, granule, b"an epoch of its own")
        await rig.replicated(1)
    await rig.sinks.all[1].say(closed=True)
    await rig.replicated(2)

    def told() -> list[str]:
        return [record.message for record in caplog.records if record.name == disk_supervisor.__name__]

    await rig.until(lambda: "resync has ended" in told())
    assert told() == [
        "tracker opened",
        "generation begins",
        "initial replication begins",
        "initial replication has ended",
        "resync is required",
        "tracker opened",
        "generation begins",
        "resync begins",
        "resync has ended",
    ]


async def test_a_closed_generation_is_followed_by_another(rig: Rig) -> None:
    rig.start()
    await rig.replicated(1)
    await rig.sinks.all[1].say(closed=True)
    await rig.replicated(2)
    assert "closed" in rig.grants.asked[-1].reason


async def test_a_disk_that_was_resized_begins_a_new_generation(rig: Rig) -> None:
    rig.start()
    await rig.replicated(1)
    with rig.path.open("r+b") as stream:
        stream.truncate(SIZE_BYTES - GRANULARITY_BYTES)
    await rig.until(lambda: len(rig.grants.granted) == 2)
    assert rig.grants.asked[-1].size_bytes == SIZE_BYTES - GRANULARITY_BYTES


async def test_while_no_generation_is_granted_the_disk_says_why_and_asks_under_the_same_name(rig: Rig) -> None:
    rig.grants.answers = [Retryable("cannot open a new generation yet: not closed")] * 3
    rig.start()
    await rig.until(lambda: rig.supervisor.problem is not None)
    await rig.replicated(1)
    assert len({request.request for request in rig.grants.asked}) == 1
    assert rig.supervisor.problem is None


async def test_a_request_whose_generation_is_closed_is_asked_under_another_name(rig: Rig) -> None:
    rig.grants.answers = [Conflict("cannot grant: its generation is closed")]
    rig.start()
    await rig.replicated(1)
    assert len({request.request for request in rig.grants.asked}) == 2


@pytest.mark.parametrize(
    "changes",
    [{"disk": str(uuid.uuid4())}, {"item": str(uuid.uuid4())}, {"size_bytes": 4096}, {"granularity_bytes": 8192}],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_grant_for_something_else_is_refused(rig: Rig, changes: dict[str, object]) -> None:
    rig.grants.changes = changes
    rig.start()
    await rig.until(lambda: len(rig.grants.asked) > 2)
    assert rig.supervisor.session is None
    problem = rig.supervisor.problem
    assert problem is not None
    assert problem.code == "protocol"
    assert rig.sinks.all[1].received_data_bytes == 0


async def test_a_disk_that_is_not_there_is_waited_for(rig: Rig) -> None:
    away = rig.path.rename(rig.path.with_suffix(".away"))
    rig.start()
    await rig.until(lambda: rig.supervisor.problem is not None and rig.supervisor.problem.code == "not-found")
    away.rename(rig.path)
    await rig.replicated(1)


async def test_what_a_session_worked_with_is_closed_only_after_what_still_uses_it(rig: Rig) -> None:
    """A point or a cutover reads in the disk's executor while the session ends: its descriptor must not become another file's."""
    task = rig.start()
    await rig.replicated(1)
    session = rig.supervisor.session
    assert session is not None
    reader, entered, leave = rig.readers[-1], threading.Event(), threading.Event()

    def read_slowly() -> bool:
        entered.set()
        assert leave.wait(10)
        return reader.fileno() >= 0

    async with session.gap, session.held_still():
        using = asyncio.create_task(session.in_executor_interruptibly(read_slowly))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        await asyncio.sleep(0.02)
        assert session.has_ended
        assert session.parts.interruption.is_interrupted()
        assert not task.done()
        leave.set()
        assert await using
        await asyncio.wait([task])
        assert reader.fileno() < 0
        with pytest.raises(Retryable, match="has ended"):
            await session.in_executor_interruptibly(read_slowly)


async def test_a_state_directory_that_cannot_be_written_is_stated_and_tried_again(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "disks").write_bytes(b"in the way")
    rig.start()
    await rig.until(lambda: rig.supervisor.problem is not None and rig.supervisor.problem.code == "operating-system")
    assert not await rig.supervisor.order_resync(str(uuid.uuid4()), "why")
    (tmp_path / "disks").unlink()
    await rig.replicated(1)
