"""The operator's hooks: post always runs, failures tell why, nothing outlives its timeout."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mobility_agent.quiesce.hooks import QuiesceHooks
from replication.errors import InvalidInput, Retryable, Unsupported
from tests.harness.waiting import has_ended, wait_until


def append(path: Path, word: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", f"echo {word} >> '{path}'")


async def test_pre_runs_before_and_post_after(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with QuiesceHooks(append(journal, "pre"), append(journal, "post"), 30).quiesced():
        assert journal.read_text().split() == ["pre"]
    assert journal.read_text().split() == ["pre", "post"]


async def test_post_runs_after_an_error_inside(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with pytest.raises(ZeroDivisionError):
        async with QuiesceHooks((), append(journal, "post"), 30).quiesced():
            raise ZeroDivisionError
    assert journal.read_text().split() == ["post"]


async def test_a_failing_pre_hook_is_told_with_its_output_and_post_runs(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    hooks = QuiesceHooks(("/bin/sh", "-c", "echo no such database; exit 3"), append(journal, "post"), 30)
    with pytest.raises(Retryable, match="ended with 3: no such database"):
        async with hooks.quiesced():
            pytest.fail("it was entered")
    assert journal.read_text().split() == ["post"]


async def test_a_hook_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    hooks = QuiesceHooks(("/bin/sh", "-c", f"sleep 1000 & echo $! > '{started}'; wait"), (), 1.0)
    with pytest.raises(Retryable, match="took longer than 1 s"):
        async with hooks.quiesced():
            pytest.fail("it was entered")
    wait_until(lambda: has_ended(int(started.read_text())))  # the kernel ends what was killed in its own time


async def test_post_runs_to_its_end_when_cancelled(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    entered = asyncio.Event()

    async def hold() -> None:
        async with QuiesceHooks(append(journal, "pre"), append(journal, "post"), 30).quiesced():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(hold())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task], timeout=0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal.read_text().split() == ["pre", "post"]


async def test_a_hook_that_prints_without_end_costs_no_memory() -> None:
    hooks = QuiesceHooks(("/bin/sh", "-c", "head -c 50000000 /dev/zero | tr '\\0' x; exit 1"), (), 30)
    with pytest.raises(Retryable) as caught:
        async with hooks.quiesced():
            pytest.fail("it was entered")
    assert len(caught.value.message) < 3000


async def test_a_command_that_does_not_exist_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="cannot run the pre hook /nowhere"):
        async with QuiesceHooks(("/nowhere",), (), 30).quiesced():
            pytest.fail("it was entered")


def test_no_hook_at_all_is_refused() -> None:
    with pytest.raises(InvalidInput):
        QuiesceHooks((), (), 30)
