"""The compose site's scripts, without a container engine: the preparation twice, and the lab server's hooks around its workload."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509

from tests.harness.source_tree import REPOSITORY

COMPOSE: Final = REPOSITORY / "deploy" / "compose"
USERS: Final = ("SINK", "CONFIG_SERVER", "PROCESS_SERVER", "AGENT", "OPERATOR")
OURSELVES: Final = {f"{user}_USER": "0" for user in USERS} | {"DAEMONS_GROUP": "0"}
ENROLLING: Final = ("process-server-1", "process-server-2", "lab-server-1", "lab-server-2")
DEADLINE_S: Final = 60.0


class Site:
    """The volumes of a site in one directory, and the configurations that name them."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "site"
        self.config = directory / "config"
        self.root.mkdir()
        self.config.mkdir()
        for path in (COMPOSE / "config").glob("*.yaml"):
            (self.config / path.name).write_text(path.read_text().replace("/site/", f"{self.root}/"))

    def prepare(self) -> str:
        environment = {**os.environ, **OURSELVES, "BLOCKFERRY_BIN": str(Path(sys.executable).parent)}
        done = subprocess.run(
            [COMPOSE / "prepare-site.sh", self.root, self.config],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def content(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.name.startswith("state.sqlite")
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("compose"))
    made.prepare()
    return made


needs_root = pytest.mark.requires("root", "setpriv")
OF_A_SITE: Final = pytest.mark.heavy(
    "the containers' site prepared again and again, each daemon's commands in processes of their own"
)


@needs_root
@OF_A_SITE
def test_preparation_makes_what_each_daemon_needs(site: Site) -> None:
    expected = {
        *("store/store.key", "store/writer.pub", "store/authorities.pem"),
        *("operator/token", "operator/authorities.pem"),
        *("sink-tls/key.pem", "sink-tls/certificate.pem", "sink-tls/authorities.pem"),
        *("config-server/authority/key.pem", "config-server/key-encryption-key"),
        *(f"{name}-enrolment/{file}" for name in ENROLLING for file in ("fingerprint", "passphrase")),
    }
    content = site.content()
    assert expected <= content.keys()
    assert not [name for name, text in content.items() if not text]
    assert not [name for name in content if name.endswith((".unfinished", "first-token")) or "issued" in name]


@needs_root
@OF_A_SITE
def test_secrets_are_for_their_daemons_only(site: Site) -> None:
    for name in site.content():
        mode = (site.root / name).stat().st_mode & 0o777
        readable_by_all_daemons = name.startswith("store/")
        assert mode & 0o007 == 0 or "key" not in name, name
        assert readable_by_all_daemons or (site.root / name.split("/")[0]).stat().st_mode & 0o077 == 0, name
    assert (site.root / "store" / "store.key").stat().st_mode & 0o777 == 0o640
    passphrases = {site.content()[f"{name}-enrolment/passphrase"] for name in ENROLLING}
    assert len(passphrases) == len(ENROLLING)


@needs_root
@OF_A_SITE
def test_sink_certificate_is_for_the_name_that_the_others_use(site: Site) -> None:
    certificate = x509.load_pem_x509_certificate((site.root / "sink-tls" / "certificate.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["sink"]
    ssl.create_default_context(cafile=str(site.root / "store" / "authorities.pem"))
    authority = x509.load_pem_x509_certificate((site.root / "store" / "authorities.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)


@needs_root
@OF_A_SITE
def test_second_preparation_changes_nothing_and_prints_no_secret(site: Site) -> None:
    before = site.content()
    printed = site.prepare()
    assert site.content() == before
    for name in ("operator/token", "store/store.key", "lab-server-1-enrolment/passphrase"):
        assert before[name].decode().strip() not in printed


@needs_root
@OF_A_SITE
def test_passphrase_is_made_anew_when_it_is_about_to_expire_but_not_for_who_has_enrolled(site: Site) -> None:
    before = site.content()
    old_s = time.time() - 4.5 * 86400
    for name in ("lab-server-1", "process-server-1"):
        os.utime(site.root / f"{name}-enrolment" / "passphrase", (old_s, old_s))
    identity = site.root / "lab-server-1" / "identity"
    identity.mkdir()
    (identity / "certificate.pem").touch()
    site.prepare()
    (identity / "certificate.pem").unlink()
    assert site.content()["process-server-1-enrolment/passphrase"] != before["process-server-1-enrolment/passphrase"]
    assert site.content()["lab-server-1-enrolment/passphrase"] == before["lab-server-1-enrolment/passphrase"]


# -- the lab server -------------------------------------------------------------------------------------------------------


def _lab(directory: Path, verb: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([COMPOSE / "lab-server.sh", verb], env={**os.environ, "BLOCKFERRY_LAB": str(directory)})


def _hook(directory: Path, verb: str) -> None:
    assert _lab(directory, verb).wait(DEADLINE_S) == 0


@pytest.fixture
def workload(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = _lab(tmp_path, "workload")
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def _wait_for_change(disk: Path) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not disk.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    before = disk.stat().st_mtime_ns
    while disk.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_nothing_is_written_between_hold_and_release(tmp_path: Path, workload: subprocess.Popen[bytes]) -> None:
    disk = tmp_path / "disk.img"
    _wait_for_change(disk)
    _hook(tmp_path, "hold")
    held = disk.stat()
    _wait_until_it_waits(workload)
    assert (disk.stat().st_mtime_ns, disk.stat().st_size) == (held.st_mtime_ns, 256 * 2**20)
    _hook(tmp_path, "release")
    _wait_for_change(disk)


def _wait_until_it_waits(workload: subprocess.Popen[bytes]) -> None:
    """Until it has gone through its waiting loop again: its only child is a sleep."""
    children = Path(f"/proc/{workload.pid}/task/{workload.pid}/children")
    deadline_s = time.monotonic() + DEADLINE_S
    seen: set[str] = set()
    while len(seen) < 4:
        assert time.monotonic() < deadline_s
        seen |= set(children.read_text().split())


def test_hold_does_not_wait_for_a_workload_that_has_ended(tmp_path: Path) -> None:
    process = _lab(tmp_path, "workload")
    _wait_for_change(tmp_path / "disk.img")
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    _hook(tmp_path, "hold")
    _hook(tmp_path, "release")


def test_unknown_verb_is_wrong_use(tmp_path: Path) -> None:
    assert _lab(tmp_path, "dance").wait(DEADLINE_S) == 2
