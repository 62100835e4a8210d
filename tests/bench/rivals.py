"""The same image with tools that everybody has: ``zstd | openssl``, the floor of compressing and encrypting, and restic over TLS.

Called by ``__main__``. restic (Debian's) backs up to ``rclone serve restic`` on loopback: a process of its own behind TLS, as the
product's store is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deploy.demo.preflight import lasting_ports
from tests.bench.images import Delta
from tests.bench.measure import Figures, children_cpu_s, measured

_READY_S: Final = 20.0


def compress_and_encrypt(image: Path) -> Figures:
    """``zstd -1 -T2 | openssl enc -aes-256-ctr``: it stores nothing and proves nothing."""
    before_s, started_s = children_cpu_s(), time.monotonic()
    pipeline = f"zstd -1 -T2 -q -c '{image}' | openssl enc -aes-256-ctr -pbkdf2 -pass pass:bench > /dev/null"
    subprocess.run(["bash", "-o", "pipefail", "-c", pipeline], check=True)
    return {"floor_wall_s": time.monotonic() - started_s, "floor_cpu_s": children_cpu_s() - before_s}


def restic(directory: Path, image: Path, *, delta_bytes: int, seed: int) -> Figures:
    """A first backup and one of a delta, each as a whole command."""
    directory.mkdir(parents=True)
    try:
        with _rest_server(directory) as (server, environment):
            _restic(environment, "init")
            figures = _backup(image, server, environment, "restic")
            delta = Delta(image.stat().st_size, delta_bytes, seed)
            try:
                delta.apply(image)
                figures |= _backup(image, server, environment, "restic_delta")
            finally:
                delta.undo(image)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return figures


def _backup(image: Path, server: int, environment: dict[str, str], name: str) -> Figures:
    before_s = children_cpu_s()
    with measured(lambda: {"rclone": server}) as usage:
        _restic(environment, "backup", str(image))
    return {f"{name}_wall_s": usage.wall_s, f"{name}_cpu_s": usage.cpu_s + children_cpu_s() - before_s}


def _restic(environment: dict[str, str], *arguments: str) -> None:
    _run(["restic", "--cacert", environment["RESTIC_CACERT"], *arguments], environment)


@contextlib.contextmanager
def _rest_server(directory: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A TLS server for restic; its process id and restic's environment."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
        *names,
    ]
    _run([*made, "-keyout", str(key), "-out", str(certificate)], dict(os.environ))
    (port,) = lasting_ports(1)
    command = [
        "rclone",
        "serve",
        "restic",
        "--addr",
        f"127.0.0.1:{port}",
        "--cert",
        str(certificate),
        "--key",
        str(key),
    ]
    with (directory / "rclone.log").open("wb") as log:
        server = subprocess.Popen([*command, str(directory / "repository")], stdout=log, stderr=log)
    try:
        _wait_for(port)
        environment = {
            **os.environ,
            "RESTIC_REPOSITORY": f"rest:https://127.0.0.1:{port}/",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACERT": str(certificate),
            "RESTIC_CACHE_DIR": str(directory / "cache"),
        }
        yield server.pid, environment
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    until_s = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
