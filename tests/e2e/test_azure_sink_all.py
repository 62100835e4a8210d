"""``azure-sink all`` as a process: epochs put over HTTPS become replicas, over SIGKILL and restart; disks are made and exported.

Called by pytest. The test plays agent, process server and configuration server through an HTTPS client; bytes are compared with its model.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from replication.blob_client.api import BlobClient
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.documents import WriterPublicKey
from replication.errors import Retryable
from replication.identifiers import GenerationId, GenerationKey
from replication.store_documents import HashDisk, MakeDiskItem, MakeDisks, Receipt, WriterAnswer
from replication.store_layout import REPLICATION_CONTAINER, answer_name, receipt_name, request_name
from tests.harness.blob_site import ACCOUNT, KEY, write_server_certificate
from tests.harness.epochs import DiskHistory, make_containers, new_uuid

MIB = 2**20
DEADLINE_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sink:
    """A configured sink below ``directory``; ``start`` and ``stop`` as often as one likes."""

    def __init__(self, directory: Path) -> None:
        self.port, self.observability_port = free_port(), free_port()
        ca_file, certificate, key = write_server_certificate(directory)
        key_file = directory / "account.key"
        key_file.write_text(base64.b64encode(KEY).decode())
        self.config = directory / "azure-sink.yaml"
        url = f"https://127.0.0.1:{self.port}/{ACCOUNT}"
        self.config.write_text(
            f"""
blob:
  listen: 127.0.0.1:{self.port}
  account: {ACCOUNT}
  key_file: {key_file}
  tls_cert: {certificate}
  tls_key: {key}
  state_dir: {directory / "blob"}
  reserve_bytes: 0
writer:
  state_dir: {directory / "writer"}
  store: {{url: "{url}", account: {ACCOUNT}, key_file: {key_file}, ca_file: {ca_file}}}
observability: {{listen: "127.0.0.1:{self.observability_port}"}}
"""
        )
        self.endpoint = BlobEndpointSettings(url, ACCOUNT, key_file, ca_file)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "azure_sink", *words, "--config", str(self.config)]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.command(*words), check=True, capture_output=True, text=True, timeout=DEADLINE_S)
        return done.stdout

    def start(self) -> None:
        self._process = subprocess.Popen(self.command("all"))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(DEADLINE_S)
        self._process = None
        return code

    def observed(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.observability_port}{path}", timeout=10) as answer:
            content: bytes = answer.read()
        return content.decode()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    made = Sink(tmp_path)
    yield made
    made.end()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(Retryable):
                if await condition():
                    return
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def connected(sink: Sink) -> AsyncIterator[BlobClient]:
    async with HttpBlobClient(sink.endpoint) as client:

        async def answers() -> bool:
            await make_containers(client)
            return True

        await until(answers)
        yield client


async def applied(client: BlobClient, writer: WriterPublicKey, disk: DiskHistory) -> None:
    name = receipt_name(GenerationKey(disk.disk, GenerationId(disk.generation)))

    async def check() -> bool:
        items = [item.name async for item in client.list_blobs(REPLICATION_CONTAINER, name)]
        if not items:
            return False
        found = await client.get_blob(REPLICATION_CONTAINER, name, max_bytes=2**20)
        assert found is not None
        return writer.open_signed(Receipt, found.content).epoch == disk.epoch

    await until(check)


async def asked(client: BlobClient, writer: WriterPublicKey, request: MakeDisks | HashDisk) -> WriterAnswer:
    await client.put_blob(REPLICATION_CONTAINER, request_name(request.request), request.encode())
    answers: list[WriterAnswer] = []

    async def check() -> bool:
        items = [item async for item in client.list_blobs(REPLICATION_CONTAINER, answer_name(request.request))]
        if not items:
            return False
        found = await client.get_blob(REPLICATION_CONTAINER, answer_name(request.request), max_bytes=2**20)
        assert found is not None
        answers.append(writer.open_signed(WriterAnswer, found.content))
        return answers[-1].state != "in-progress"

    await until(check)
    return answers[-1]


async def test_replica_made_disk_and_export_are_the_source(sink: Sink, tmp_path: Path) -> None:
    line = (await asyncio.to_thread(sink.run, "init")).strip()
    writer = WriterPublicKey.decode(line)
    assert (await asyncio.to_thread(sink.run, "show-writer-key")).strip() == line
    random = Random(1)
    sink.start()
    async with connected(sink) as client:
        disk = DiskHistory(client, writer, random, 20 * MIB + 512)
        await disk.open_generation()
        for _ in range(4):
            await disk.put(disk.random_batches(4, 8, 512 * 1024))
        await applied(client, writer, disk)
        for _ in range(6):
            await disk.put(disk.random_batches(4, 8, 512 * 1024))
        assert await asyncio.to_thread(sink.stop, signal.SIGKILL) == -signal.SIGKILL
        sink.start()
        await applied(client, writer, disk)
        cut = disk.cut()

        async def put_point() -> None:
            await disk.put(disk.random_batches(2, 4), cut=cut)
            await disk.put(disk.random_batches(2, 4))

        await put_point()
        await applied(client, writer, disk)
        make = MakeDisks(
            request=new_uuid(random),
            item=disk.item,
            cut=cut.cut,
            disks=[MakeDiskItem(disk=disk.disk, name="web01-Test")],
        )
        assert (await asked(client, writer, make)).state == "succeeded"
        hashed = HashDisk(request=new_uuid(random), name="web01-Test", size_bytes=disk.size_bytes)
        answer = await asked(client, writer, hashed)
        expected = hashlib.sha256(disk.cuts[cut.cut]).hexdigest()
        assert answer.sha256 == expected
        health = json.loads(await asyncio.to_thread(sink.observed, "/healthz"))
        assert health["status"] == "ok", health
        metrics = await asyncio.to_thread(sink.observed, "/metrics")
        assert "blockferry_writer_epochs_applied_total" in metrics
        raw, vhd = tmp_path / "web01.raw", tmp_path / "web01.vhd"
        said = await asyncio.to_thread(sink.run, "export", "disks/web01-Test", str(raw), "--raw", "--sha256")
        assert f"sha256: {expected}" in said
        await asyncio.to_thread(sink.run, "export", "disks/web01-Test", str(vhd))
        assert (await asyncio.to_thread(vhd.read_bytes))[: disk.size_bytes] == disk.cuts[cut.cut]
    assert await asyncio.to_thread(sink.stop) == 0
    assert raw.read_bytes() == disk.cuts[cut.cut]


async def test_second_writer_on_a_state_directory_is_refused(sink: Sink) -> None:
    await asyncio.to_thread(sink.run, "init")
    sink.start()

    async def serves() -> bool:
        with contextlib.suppress(OSError):
            return bool(json.loads(await asyncio.to_thread(sink.observed, "/healthz"))["status"] == "ok")
        return False

    await until(serves)
    second = await asyncio.to_thread(
        subprocess.run, sink.command("writer"), check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert second.returncode == 2
    assert "another replica writer" in second.stderr
    assert await asyncio.to_thread(sink.stop) == 0


def test_configuration_is_checked(sink: Sink) -> None:
    for command in ("writer", "all", "blob"):
        assert "can be used" in sink.run(command, "--check-config")
    sink.config.write_text(sink.config.read_text().replace("state_dir: ", "lease_s: 5\n  state_dir: ", 2))
    failed = subprocess.run(sink.command("all", "--check-config"), check=False, capture_output=True, text=True)
    assert failed.returncode == 2
