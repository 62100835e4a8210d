"""The parts of building packages that decide: which packages, which glibc, and what the installer's script refuses."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from deploy.packaging.elf import OF_GLIBC, oldest_glibc
from deploy.packaging.failure import PackagingFailure
from deploy.packaging.locked_packages import SERVERS_ONLY, closure, direct_requirements, locked
from tests.harness.little_installer import little_installer
from tests.harness.source_tree import REPOSITORY

LOCK = """\
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:cc
PyYAML==6.0.3 \\
    --hash=sha256:dd
zstandard==0.25.0 \\
    --hash=sha256:ee
"""


def test_lock_is_cut_to_what_is_wanted_with_all_hashes() -> None:
    cut = locked(LOCK, {"numpy", "pyyaml"})
    assert cut == LOCK[: LOCK.index("zstandard")]
    with pytest.raises(PackagingFailure, match="cannot find absent"):
        locked(LOCK, {"numpy", "absent"})


def test_agent_needs_no_database() -> None:
    everything = direct_requirements(REPOSITORY / "pyproject.toml")
    agent = closure(each for each in everything if canonicalize_name(each.name) not in SERVERS_ONLY)
    assert {"cryptography", "cffi", "numpy", "aiohttp", "multidict"} <= agent
    assert not agent & {"sqlalchemy", "alembic", "mako", "aiosqlite", "greenlet", "pytest"}
    assert {"sqlalchemy", "greenlet"} <= closure(everything)


def test_oldest_glibc_is_the_newest_version_that_any_file_asks_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x7fELF\0libc.so.6\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_PRIVATE\0")
    (tmp_path / "b").write_bytes(b"\x7fELF\0GLIBC_2.17\0GLIBC_2.2.5\0said GLIBC_2.99 in a text\0")
    assert oldest_glibc([tmp_path / "a", tmp_path / "b"]) == "2.34"
    with pytest.raises(PackagingFailure):
        oldest_glibc([])


@pytest.mark.parametrize("name", ["libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0"])
def test_c_library_is_the_machine_s_own(name: str) -> None:
    assert OF_GLIBC.fullmatch(name)
    assert not any(map(OF_GLIBC.fullmatch, ("libcrypto.so.3", "libcrypt.so.1", "libz.so.1", "libmpdec.so.3")))


def _run(installer: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", installer, *arguments], capture_output=True, text=True, check=False)


def test_script_unpacks_whole_what_was_packed(tmp_path: Path) -> None:
    installer = little_installer(tmp_path, architecture=platform.machine(), glibc="2.5", content="x" * 100_000)
    assert "it is whole and runs here" in _run(installer, "check").stdout
    assert _run(installer, "unpack", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out" / "file").read_text() == "x" * 100_000
    again = _run(installer, "unpack", str(tmp_path / "out"))
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    assert not list(tmp_path.glob(".unfinished*"))
    assert "usage: sh" in _run(installer, "--help").stdout


@pytest.mark.parametrize(
    ("architecture", "glibc", "words"),
    [("mips", "2.5", "the file is for mips"), (platform.machine(), "99.1", "99.1 or later is needed")],
)
def test_script_refuses_what_does_not_run_here(architecture: str, glibc: str, words: str, tmp_path: Path) -> None:
    refused = _run(little_installer(tmp_path, architecture=architecture, glibc=glibc), "check")
    assert (refused.returncode, words in refused.stderr, "hint:" in refused.stderr) == (1, True, True)


def test_script_refuses_a_file_that_is_not_whole(tmp_path: Path) -> None:
    installer = little_installer(tmp_path, architecture=platform.machine(), glibc="2.5")
    os.truncate(installer, installer.stat().st_size - 1)
    refused = _run(installer, "install")
    assert (refused.returncode, "is damaged" in refused.stderr) == (1, True)


def test_same_programs_give_the_same_file(tmp_path: Path) -> None:
    first = little_installer(tmp_path / "a").read_bytes()
    assert little_installer(tmp_path / "b").read_bytes() == first
