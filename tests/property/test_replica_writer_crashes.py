"""The replica writer dies at every single call to the store, or its network loses, repeats and delays: the outcome is the same.

Called by pytest. What happens is ``tests/harness/writer_story.py``. Receipts and recovery points are held against the model at the moment
they are put.
"""

from __future__ import annotations

import asyncio
import os
from random import Random

import pytest

from azure_sink.replica_writer import epoch_application
from azure_sink.replica_writer.replica_writer import ReplicaWriter
from replication.blob_client.api import BlobClient
from replication.store_documents import WriterRequest
from tests.harness.epochs import new_uuid
from tests.harness.faulty_blob_client import DyingBlobClient, Effect, LossyBlobClient, ProcessDied, StallingBlobClient
from tests.harness.process_memory import bounded_growth
from tests.harness.writer_site import MIB, HandClock, WriterSite
from tests.harness.writer_story import Story, catch_up, is_answered, is_caught_up

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
STEP = 1 if THOROUGH else 5
"""A normal run dies at every fifth call, a thorough one at each."""


async def begun(seed: int) -> Story:
    return Story.begin(await WriterSite.make(seed, segment_slots=2))


async def dying_run(seed: int, at: int | None, effect: Effect) -> DyingBlobClient:
    """Tell the story to writers; the first dies at call ``at``, the next one goes on."""
    story = await begun(seed)
    client = DyingBlobClient(story.site.account, at, effect)
    current: BlobClient | None = client.as_client()
    async for waited_for in story.tell():
        try:
            await catch_up(story, current, waited_for)
        except ProcessDied:
            current = None
            await catch_up(story, current, waited_for)
    await story.check_end()
    return client


@pytest.mark.parametrize(("effect", "start"), [(Effect.LOST, 1), (Effect.HAPPENED, 3)])
async def test_death_at_any_call_changes_nothing(effect: Effect, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", 2)
    calls = (await dying_run(1, None, effect)).calls
    assert calls > 100
    with bounded_growth(256 * MIB):
        for at in range(1 if THOROUGH else start, calls + 1, STEP):
            try:
                client = await dying_run(1, at, effect)
            except Exception as error:
                raise AssertionError(f"died at call {at} of {calls}, effect {effect.value}") from error
            assert client.dead


@pytest.mark.parametrize("seed", range(12))
async def test_lost_repeated_and_late_calls_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", 2)
    story = await begun(seed)
    client = LossyBlobClient(story.site.account, Random(seed), 0.15)
    async for waited_for in story.tell():
        await catch_up(story, client.as_client(), waited_for)
    await client.deliver_late()
    await story.check_end()
    assert client.counts.lost
    assert client.counts.undecided
    assert client.counts.delayed


async def stalled_run(at: int, wake_after: int) -> bool:
    """A writer is stopped inside its call ``at``; another one takes over; the first wakes ``wake_after`` moments of the story later.

    Its clock has stood still: it believes that its lease is good. False if the story has no such call.
    """
    story = await begun(1)
    site = story.site
    other = new_uuid(Random(at))
    sleeper = StallingBlobClient(site.account, at)
    paused = HandClock()
    writer = site.start(sleeper.as_client(), clock=paused.clock)
    working: asyncio.Task[object] | None = None
    moments = 0
    async for waited_for in story.tell():
        if not sleeper.stalled.is_set():
            working = asyncio.create_task(settle_alone(writer, story, waited_for, paused))
            stall = asyncio.create_task(sleeper.stalled.wait())
            await asyncio.wait((working, stall), return_when=asyncio.FIRST_COMPLETED)
            if not sleeper.stalled.is_set():
                stall.cancel()
                await working
                continue
        site.time.advance(61)
        await catch_up(story, None, waited_for, other)
        moments += 1
        if moments == wake_after and working is not None:
            sleeper.go.set()
            await working
    if sleeper.stalled.is_set():
        sleeper.go.set()
        if working is not None:
            await working
        await story.check_end()
    writer.abandon()
    return sleeper.stalled.is_set()


async def settle_alone(
    writer: ReplicaWriter, story: Story, waited_for: WriterRequest | None, paused: HandClock
) -> None:
    """Like ``catch_up``, for a writer that may be stalled and then finds that it is not alone any more."""
    for _ in range(3):
        await writer.settle()
        if (waited_for is None or await is_answered(story.site, waited_for)) and await is_caught_up(story):
            return
        paused.advance(6)


@pytest.mark.parametrize("wake_after", [1, 3])
async def test_stalled_writer_that_wakes_changes_nothing(wake_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_application, "GROUP_SEGMENTS", 2)
    at = wake_after
    while True:
        try:
            if not await stalled_run(at, wake_after):
                break
        except Exception as error:
            raise AssertionError(f"stalled in call {at}") from error
        at += 2 * STEP
    assert at > 100
