"""The committer: what is answered is durable, a refusal undoes only itself, a failing device fails those who wait for it."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from azure_sink.blob_store import arenas, containers, schema
from azure_sink.blob_store.arenas import ArenaSet
from azure_sink.blob_store.blob_rows import find_container
from azure_sink.blob_store.committer import MAX_WAITING, Committer
from azure_sink.blob_store.freed_space import FreedSpace
from azure_sink.blob_store.schema import LOG_NAME, open_for_reading, open_for_writing
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import StoredRange
from azure_sink.core.storage_fault import StorageFault
from replication.blob_client.codes import StorageCode
from replication.errors import Permanent, Retryable
from tests.harness.blob_store_tools import SettableClock, data_blocks

WAIT_S = 30.0


class Bench:
    """A committer with everything it needs, and a gate that holds it inside a mutation, so that others gather behind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.connection = open_for_writing(directory)
        self.arenas = ArenaSet(directory / "arenas", reserve_bytes=0)
        self.space = FreedSpace(self.arenas)
        self.clock = SettableClock()
        self.groups: list[int] = []
        self.committer = Committer(self.connection, self.arenas, self.space, self.clock, self.groups.append)
        self._gates: list[threading.Event] = []

    def hold(self) -> Callable[[], None]:
        """Hold the committer's thread until the result is called."""
        entered, gate = threading.Event(), threading.Event()
        self._gates.append(gate)

        def wait(_transaction: Transaction) -> None:
            entered.set()
            gate.wait(WAIT_S)

        self.committer.submit(wait)
        assert entered.wait(WAIT_S)
        return gate.set

    def create(self, name: str) -> Future[object]:
        return self.committer.submit(lambda transaction: containers.create(transaction, name, {}))

    def exists(self, name: str) -> bool:
        reading = open_for_reading(self.directory)
        try:
            find_container(reading, name)
        except StorageFault:
            return False
        finally:
            reading.close()
        return True

    def close(self) -> None:
        for gate in self._gates:
            gate.set()
        self.committer.close()
        self.space.close()
        self.connection.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_what_gathers_during_a_commit_is_committed_together(bench: Bench) -> None:
    let_go = bench.hold()
    answers = [bench.create(f"name-{number}") for number in range(20)]
    let_go()
    for answer in answers:
        answer.result(WAIT_S)
    assert bench.groups == [1, 20]


def test_a_refused_mutation_undoes_only_itself(bench: Bench) -> None:
    def spoil(transaction: Transaction) -> None:
        containers.create(transaction, "spoilt", {})
        raise StorageFault(StorageCode.CONDITION_NOT_MET)

    let_go = bench.hold()
    first, spoilt, last = bench.create("first"), bench.committer.submit(spoil), bench.create("last")
    let_go()
    first.result(WAIT_S)
    last.result(WAIT_S)
    with pytest.raises(StorageFault):
        spoilt.result(WAIT_S)
    assert [bench.exists(name) for name in ("first", "spoilt", "last")] == [True, False, True]


def test_mutations_of_one_group_see_each_other_in_order(bench: Bench) -> None:
    let_go = bench.hold()
    first, second = bench.create("same"), bench.create("same")
    let_go()
    first.result(WAIT_S)
    with pytest.raises(StorageFault) as caught:
        second.result(WAIT_S)
    assert caught.value.storage_code is StorageCode.CONTAINER_ALREADY_EXISTS


def test_a_defect_in_a_mutation_reaches_its_caller_alone(bench: Bench) -> None:
    def defect(_transaction: Transaction) -> None:
        raise KeyError("oops")

    broken = bench.committer.submit(defect)
    with pytest.raises(KeyError):
        broken.result(WAIT_S)
    bench.create("after").result(WAIT_S)


def test_an_answer_cancelled_before_its_group_leaves_no_trace(bench: Bench) -> None:
    let_go = bench.hold()
    place = bench.arenas.allocate(4096)
    bench.arenas.write(place, 0, [b"x" * 4096])
    given_up = bench.committer.submit(lambda transaction: containers.create(transaction, "given-up", {}), (place,))
    assert given_up.cancel()
    let_go()
    bench.create("after").result(WAIT_S)
    assert not bench.exists("given-up")
    assert list(data_blocks(bench.arenas.path(place.arena))) == []


def test_the_body_of_a_refused_mutation_is_given_back(bench: Bench) -> None:
    def refuse(_transaction: Transaction) -> None:
        raise StorageFault(StorageCode.CONDITION_NOT_MET)

    place = bench.arenas.allocate(4096)
    bench.arenas.write(place, 0, [b"x" * 4096])
    with pytest.raises(StorageFault):
        bench.committer.submit(refuse, (place,)).result(WAIT_S)
    bench.create("after").result(WAIT_S)
    assert list(data_blocks(bench.arenas.path(place.arena))) == []


def test_a_body_that_was_not_written_back_is_not_acknowledged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    place = bench.arenas.allocate(4096)
    bench.arenas.write(place, 0, [b"x" * 4096])

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    let_go = bench.hold()
    with_body = bench.committer.submit(lambda transaction: containers.create(transaction, "body", {}), (place,))
    without = bench.create("without")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", broken)
        let_go()
        with pytest.raises(Retryable):
            with_body.result(WAIT_S)
    without.result(WAIT_S)
    assert not bench.exists("body")


def test_ticks_never_repeat_even_if_the_clock_goes_back(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    ticks = [first.committer.submit(Transaction.next_tick).result(WAIT_S) for _ in range(3)]
    first.close()
    second = Bench(tmp_path)
    second.clock.now -= 3600
    ticks += [second.committer.submit(Transaction.next_tick).result(WAIT_S) for _ in range(3)]
    second.close()
    assert ticks == sorted(set(ticks))


def test_more_than_the_bound_is_refused_as_busy(bench: Bench) -> None:
    let_go = bench.hold()
    answers = [bench.committer.submit(lambda _transaction: None) for _ in range(MAX_WAITING)]
    with pytest.raises(StorageFault) as caught:
        bench.create("too-many")
    assert caught.value.storage_code is StorageCode.SERVER_BUSY
    let_go()
    for answer in answers:
        answer.result(WAIT_S)


def test_a_damaged_catalog_fails_everything_from_then_on(bench: Bench) -> None:
    bench.create("before").result(WAIT_S)
    let_go = bench.hold()
    bench.connection.execute("ALTER TABLE containers RENAME TO lost")
    doomed = bench.create("doomed")
    let_go()
    with pytest.raises(Permanent):
        doomed.result(WAIT_S)
    assert bench.committer.failure is not None
    with pytest.raises(Permanent):
        bench.create("later").result(WAIT_S)


# -- commits of which nobody knows what became ----------------------------------------------------------------


class CommitFails(sqlite3.Connection):
    """COMMIT fails once with ``code``, without effect in this process; what it left in the log is not modelled."""

    code: int | None = None

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.code is not None:
            error = sqlite3.OperationalError("made to fail")
            error.sqlite_errorcode, self.code = self.code, None
            raise error
        return super().execute(sql, *arguments)


@pytest.fixture
def failing_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=CommitFails))
        made = Bench(tmp_path)
    yield made
    made.close()


def put(bench: Bench, name: str, meanwhile: Callable[[], None] = lambda: None) -> tuple[StoredRange, Future[object]]:
    """Make a container that has a body; ``meanwhile`` is called in its transaction."""
    place = bench.arenas.allocate(4096)
    bench.arenas.write(place, 0, [b"x" * 4096])

    def mutate(transaction: Transaction) -> object:
        meanwhile()
        return containers.create(transaction, name, {})

    return place, bench.committer.submit(mutate, (place,))


def is_kept(bench: Bench, place: StoredRange) -> bool:
    return place.offset // 4096 in data_blocks(bench.arenas.path(place.arena))


@pytest.mark.parametrize(
    ("code", "kept", "failure"),
    [
        (sqlite3.SQLITE_FULL, False, False),
        (sqlite3.SQLITE_IOERR_SHMSIZE, True, False),
        (sqlite3.SQLITE_IOERR_WRITE, True, False),
        (sqlite3.SQLITE_IOERR_FSYNC, True, True),
    ],
    ids=["full", "shared-memory", "write", "sync"],
)
def test_bodies_of_an_undecided_commit_are_kept_until_a_later_one_decides(
    failing_bench: Bench, code: int, kept: bool, failure: bool
) -> None:
    bench = failing_bench
    assert isinstance(bench.connection, CommitFails)
    place, refused = put(bench, "undecided", lambda: setattr(bench.connection, "code", code))
    with pytest.raises(Permanent if failure else Retryable):
        refused.result(WAIT_S)
    changes = bench.connection.total_changes
    assert is_kept(bench, place) is kept
    assert (bench.committer.failure is not None) is failure
    if failure:
        with pytest.raises(Permanent):
            bench.create("later").result(WAIT_S)
        assert is_kept(bench, place)
    else:
        bench.committer.submit(lambda _transaction: None).result(WAIT_S)
        assert not is_kept(bench, place)
        assert not kept or bench.connection.total_changes > changes, "even a commit without a change of its own writes"
        assert not bench.exists("undecided")


def test_an_arena_that_a_failed_commit_would_have_removed_is_removed_by_the_next_one(failing_bench: Bench) -> None:
    bench = failing_bench
    assert bench.committer.wait_until_quiet(WAIT_S)
    emptied = bench.arenas.allocate(4096)
    bench.arenas._current.clear()  # what comes goes into another arena
    bench.arenas.abandon(emptied)
    _, refused = put(bench, "refused", lambda: setattr(bench.connection, "code", sqlite3.SQLITE_FULL))
    with pytest.raises(Retryable):
        refused.result(WAIT_S)
    assert bench.arenas.path(emptied.arena).exists()
    bench.committer.submit(lambda _transaction: None).result(WAIT_S)
    bench.space.settle()
    assert not bench.arenas.path(emptied.arena).exists()


def test_an_exception_after_the_commit_gives_no_body_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_commit: int, _freed: object) -> None:
        raise RuntimeError("oops")

    place, answer = put(bench, "committed", lambda: monkeypatch.setattr(bench.space, "release", broken))
    with pytest.raises(Permanent, match="oops"):
        answer.result(WAIT_S)
    assert bench.exists("committed")
    assert is_kept(bench, place)
    assert bench.committer.failure is not None


def test_room_that_cannot_be_given_back_costs_the_others_of_its_group_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int, _offset: int, _length: int) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def refuse(_transaction: Transaction) -> None:
        raise StorageFault(StorageCode.CONDITION_NOT_MET)

    monkeypatch.setattr(arenas, "punch_hole", broken)
    let_go = bench.hold()
    refused = bench.committer.submit(refuse, (bench.arenas.allocate(4096),))
    place, stored = put(bench, "stored")
    let_go()
    with pytest.raises(StorageFault):
        refused.result(WAIT_S)
    stored.result(WAIT_S)
    assert is_kept(bench, place)
    bench.create("after").result(WAIT_S)


def test_a_log_that_cannot_be_written_again_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync the page cache shows what the device may not have; only what is written again is synced again."""
    first = open_for_writing(tmp_path)
    written = (tmp_path / LOG_NAME).read_bytes()
    assert written
    copied = tmp_path / "killed"
    shutil.copytree(tmp_path, copied)
    first.close()
    calls: list[str] = []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        calls.append("write")
        return real_pwrite(descriptor, data, offset)

    def broken(_descriptor: int) -> None:
        calls.append("sync")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    real_pwrite = os.pwrite
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        patched.setattr(os, "fsync", broken)
        with pytest.raises(Permanent, match="cannot use the catalog's log"):
            open_for_writing(copied)
    assert calls == ["write", "sync"]
    assert (copied / LOG_NAME).read_bytes() == written
    open_for_writing(copied).close()


def test_a_catalog_whose_name_cannot_be_synced_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 makes a file's name durable with the file; that is no promise of every file system."""

    def failing(directory: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(directory))

    with monkeypatch.context() as patched:
        patched.setattr(schema, "sync_directory", failing)
        with pytest.raises(OSError, match="Input/output error"):
            open_for_writing(tmp_path)
    open_for_writing(tmp_path).close()
