"""Listings: held against sorted names for any names, prefixes, delimiters and page sizes."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from azure_sink.blob_store import blob_rows, containers
from azure_sink.blob_store.listing import ListQuery, list_page
from azure_sink.blob_store.schema import open_for_writing
from azure_sink.blob_store.transaction import Transaction
from azure_sink.blob_store.values import BlobRecord
from replication.blob_client.api import BlobType

NAMES = st.text(st.sampled_from("ab/\ud7ff\ue000\U0010ffffé "), min_size=1, max_size=6)


def filled(names: set[str], snapshots: int = 0) -> sqlite3.Connection:
    directory = tempfile.TemporaryDirectory()
    connection = open_for_writing(Path(directory.name))
    transaction = Transaction(connection, 0.0, 0)
    container = containers.create(transaction, "lab", {}).number
    for name in names:
        for snapshot in [f"2026-01-0{number + 1}T00:00:00.0000000Z" for number in range(snapshots)] + [None]:
            blob_rows.insert(
                transaction, BlobRecord(0, container, name, snapshot, BlobType.BLOCK, 0, 0, 0, "0x1", 0, 0)
            )
    directory.cleanup()  # the connection keeps the file
    return connection


def pages(connection: sqlite3.Connection, query: ListQuery) -> Iterator[tuple[list[tuple[str, str | None]], list[str]]]:
    marker = ""
    while True:
        found = list_page(connection, "lab", replace(query, marker=marker))
        assert len(found.blobs) + len(found.prefixes) <= query.limit
        yield [(record.name, record.snapshot) for record in found.blobs], found.prefixes
        if not found.next_marker:
            return
        assert found.next_marker != marker
        marker = found.next_marker


@given(st.sets(NAMES, max_size=12), st.text(st.sampled_from("ab/"), max_size=2), st.integers(1, 5))
def test_all_names_with_the_prefix_come_once_and_in_order(names: set[str], prefix: str, limit: int) -> None:
    connection = filled(names)
    found = [name for blobs, _ in pages(connection, ListQuery(prefix=prefix, limit=limit)) for name, _snapshot in blobs]
    connection.close()
    assert found == sorted(name for name in names if name.startswith(prefix))


@given(st.sets(NAMES, max_size=12), st.text(st.sampled_from("ab/"), max_size=2), st.integers(1, 4))
def test_a_delimiter_folds_what_follows_it(names: set[str], prefix: str, limit: int) -> None:
    connection = filled(names)
    found = list(pages(connection, ListQuery(prefix=prefix, delimiter="/", limit=limit)))
    connection.close()
    matching = [name for name in names if name.startswith(prefix)]
    folded = {name[: name.index("/", len(prefix)) + 1] for name in matching if "/" in name[len(prefix) :]}
    assert [prefix for _, prefixes in found for prefix in prefixes] == sorted(folded)
    plain = sorted(name for name in matching if "/" not in name[len(prefix) :])
    assert [name for blobs, _ in found for name, _snapshot in blobs] == plain


@given(st.sets(NAMES, max_size=5), st.integers(1, 4))
def test_snapshots_come_before_their_blob_whatever_the_page_size(names: set[str], limit: int) -> None:
    connection = filled(names, snapshots=2)
    found = [entry for blobs, _ in pages(connection, ListQuery(limit=limit, include_snapshots=True)) for entry in blobs]
    connection.close()
    moments = ["2026-01-01T00:00:00.0000000Z", "2026-01-02T00:00:00.0000000Z", None]
    assert found == [(name, moment) for name in sorted(names) for moment in moments]
