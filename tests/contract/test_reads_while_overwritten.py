"""A small blob that is replaced all the time (a receipt) can be read at any time, whole and in one state. Called by pytest."""

from __future__ import annotations

import asyncio
from pathlib import Path

from replication.blob_client.http_client import HttpBlobClient
from tests.harness.blob_site import blob_site


async def test_reads_of_a_blob_that_is_replaced_all_the_time_succeed(tmp_path: Path) -> None:
    async with blob_site(tmp_path) as site, HttpBlobClient(site.endpoint()) as client:
        await client.create_container("lab")
        await client.put_blob("lab", "receipt", b"0" * 700)
        stop = asyncio.Event()

        async def replace() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await client.put_blob("lab", "receipt", b"%d" % (number % 10) * 700)

        async def read() -> None:
            for _ in range(150):
                found = await client.get_blob("lab", "receipt", max_bytes=4096)
                assert found is not None
                assert found.content == found.content[:1] * 700

        async with asyncio.TaskGroup() as tasks:
            replacing = tasks.create_task(replace())
            try:
                async with asyncio.TaskGroup() as readers:
                    for _ in range(3):
                        readers.create_task(read())
            finally:
                stop.set()
                await replacing
