"""The workload that does not stop: SQLite transactions with a ledger of acknowledged commits, and files made, overwritten and deleted.

Run as a process of its own: ``python -m deploy.demo.workload --directory ON_THE_DISK --ledger OUTSIDE``. SIGTERM ends it after the present
transaction. The ledger, kept outside the disk, has one line per acknowledged commit: sequence number and Unix nanoseconds when COMMIT had
returned. With ``--raw FILE`` it writes ledger records straight into the blocks of a plain file instead (the demo without root);
SIGUSR1 pauses it after the present record, SIGUSR2 lets it go on: the quiesce hooks.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

TRANSACTIONS_PER_S: Final = 60.0
FILE_ACTIONS_PER_S: Final = 8.0
MAX_FILES: Final = 120
RECORD_BYTES: Final = 4096
_PAYLOAD_BYTES: Final = 2000

_stopping = False
_pausing = False


def _stop(*_: object) -> None:
    global _stopping  # noqa: PLW0603 - a signal handler has nowhere else to say it
    _stopping = True


def _pause(number: int, _frame: object) -> None:
    global _pausing  # noqa: PLW0603 - as above
    _pausing = number == signal.SIGUSR1


class Ledger:
    """Acknowledged commits, outside the disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def acknowledge(self, sequence: int) -> None:
        self._file.write(f"{sequence} {time.time_ns()}\n")


def paused_marker(ledger: Path) -> Path:
    """The file that the workload makes once it has paused."""
    return ledger.with_name("paused")


def read_ledger(path: Path) -> dict[int, int]:
    """Sequence number → Unix nanoseconds of its acknowledgement; an unfinished last line is left out."""
    entries = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 2:
            entries[int(words[0])] = int(words[1])
    return entries


class DatabaseWorkload:
    """Transactions on a SQLite database in WAL mode, fully synchronous."""

    def __init__(self, directory: Path, ledger: Ledger, rng: random.Random) -> None:
        self._ledger, self._rng = ledger, rng
        self._connection = sqlite3.connect(directory / "ledger.sqlite", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS entry (sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL)"
        )
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)"
        )
        self._connection.executemany("INSERT OR IGNORE INTO account VALUES (?, 1000)", [(n,) for n in range(200)])
        self._sequence = int(self._connection.execute("SELECT COALESCE(MAX(sequence), 0) FROM entry").fetchone()[0])

    def step(self) -> None:
        """One transfer between two accounts and one ledger entry, in one transaction."""
        self._sequence += 1
        source, target = self._rng.sample(range(200), 2)
        amount = self._rng.randrange(1, 50)
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, source))
        connection.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, target))
        connection.execute("INSERT INTO entry VALUES (?, ?)", (self._sequence, self._rng.randbytes(_PAYLOAD_BYTES)))
        connection.execute("COMMIT")
        self._ledger.acknowledge(self._sequence)

    def close(self) -> None:
        self._connection.close()


class FileWorkload:
    """Files made, overwritten and deleted; deletions discard their blocks on a file system mounted with ``discard``."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self._directory, self._rng = directory / "churn", rng
        self._directory.mkdir(exist_ok=True)

    def step(self) -> None:
        path = self._directory / f"file-{self._rng.randrange(MAX_FILES)}"
        action = self._rng.random()
        if not path.exists() or action < 0.2:
            path.write_bytes(self._rng.randbytes(self._rng.randrange(1, 64) * 4096))
        elif action < 0.75:
            with path.open("r+b") as file:
                file.seek(self._rng.randrange(max(1, path.stat().st_size)))
                file.write(self._rng.randbytes(self._rng.randrange(512, 65536)))
        else:
            path.unlink()


def run_on_file_system(directory: Path, ledger: Ledger, rng: random.Random) -> None:
    database, files = DatabaseWorkload(directory, ledger, rng), FileWorkload(directory, rng)
    next_transaction_s = next_file_s = time.monotonic()
    while not _stopping:
        now_s = time.monotonic()
        if now_s >= next_transaction_s:
            database.step()
            next_transaction_s = max(next_transaction_s + 1 / TRANSACTIONS_PER_S, now_s - 1)
        if now_s >= next_file_s:
            files.step()
            next_file_s = max(next_file_s + 1 / FILE_ACTIONS_PER_S, now_s - 1)
        time.sleep(max(0.0, min(next_transaction_s, next_file_s) - time.monotonic()))
    database.close()


def record(sequence: int, rng: random.Random) -> bytes:
    """A ledger record for the disk's blocks: sequence number and random content."""
    return sequence.to_bytes(8, "big") + b"BLOCKFERRY-LEDGER" + rng.randbytes(RECORD_BYTES - 25)


def run_on_blocks(disk: Path, ledger: Ledger, paused: Path, rng: random.Random) -> None:
    """Records into the second half of a plain file, one slot after the other, each synced before it is acknowledged."""
    slots = disk.stat().st_size // 2 // RECORD_BYTES
    descriptor = os.open(disk, os.O_WRONLY)
    sequence = 0
    while not _stopping:
        if _pausing:
            paused.touch()
        else:
            sequence += 1
            os.pwrite(descriptor, record(sequence, rng), (slots + sequence % slots) * RECORD_BYTES)
            os.fdatasync(descriptor)
            ledger.acknowledge(sequence)
        time.sleep(1 / TRANSACTIONS_PER_S)
    os.close(descriptor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--directory", type=Path)
    where.add_argument("--raw", type=Path)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _pause)
    signal.signal(signal.SIGUSR2, _pause)
    ledger, rng = Ledger(arguments.ledger), random.Random(arguments.seed)  # noqa: S311 - content, not a secret
    if arguments.raw is not None:
        run_on_blocks(arguments.raw, ledger, paused_marker(arguments.ledger), rng)
    else:
        run_on_file_system(arguments.directory, ledger, rng)
    return 0


if __name__ == "__main__":
    sys.exit(main())
