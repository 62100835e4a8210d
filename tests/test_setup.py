"""The set-up scripts where things go wrong: interrupted, run twice, moved, offline, without root, with an odd pip.conf.

``make-venv.sh`` runs in a miniature repository whose lock is empty, so that no test needs a package index. The road with the real lock
on a bare Debian is ``tests/e2e/test_fresh_debian.py``.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.harness.source_tree import REPOSITORY

SETUP: Final = REPOSITORY / "deploy" / "setup"
BASE_PYTHON: Final = Path(sys.base_prefix) / "bin" / "python3"
UNAVAILABLE: Final = "not-to-be-found==1 --hash=sha256:" + "0" * 64 + "\n"
NO_INDEX: Final = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}

PYPROJECT: Final = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "miniature"
version = "0"
"""
BACKEND: Final = """
import zipfile
def build_editable(directory, settings=None, metadata=None):
    info = "miniature-0.dist-info/"
    with zipfile.ZipFile(f"{directory}/miniature-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: miniature\\nVersion: 0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "miniature-0-py3-none-any.whl"
"""


def _miniature(root: Path) -> Path:
    """A repository with the real script, an empty lock and a project that needs nothing to be built."""
    (root / "deploy" / "setup").mkdir(parents=True)
    shutil.copy(SETUP / "make-venv.sh", root / "deploy" / "setup")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "requirements.lock").write_text("")
    return root


def _make_venv(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / "deploy" / "setup" / "make-venv.sh"],
        env={**os.environ, **NO_INDEX, "PYTHON3": str(BASE_PYTHON), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def _python(root: Path, code: str) -> str:
    done = subprocess.run([root / ".venv" / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _has_project(root: Path) -> bool:
    return _python(root, "import importlib.metadata as m; print(m.version('miniature'))") == "0"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return _miniature(tmp_path / "repository")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = _miniature(tmp_path_factory.mktemp("made") / "repository")
    done = _make_venv(root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("venv: ready\n")
    return root


@pytest.fixture
def made(made_once: Path) -> Iterator[Path]:
    """A repository whose environment is up to date, and is so again after the test."""
    stamp = made_once / ".venv" / ".made-from"
    content = stamp.read_text()
    assert _has_project(made_once)
    yield made_once
    (made_once / "requirements.lock").write_text("")
    (made_once / ".venv" / ".unfinished").unlink(missing_ok=True)
    stamp.write_text(content)


def test_second_run_does_nothing_in_silence(made: Path) -> None:
    done = _make_venv(made, PYTHON3="/nonexistent")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_two_at_the_same_time_bring_one_environment_up_to_date(made: Path) -> None:
    kept = made / ".venv" / "lib" / "kept"
    kept.write_text("")
    (made / "requirements.lock").write_text("# another lock\n")
    both = [
        subprocess.Popen(
            [made / "deploy" / "setup" / "make-venv.sh"],
            env={**os.environ, **NO_INDEX, "PYTHON3": "/nonexistent"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(outputs).count("venv: ready") == 1
    assert kept.exists(), "brought up to date, not made anew"


def test_settings_of_pip_that_lead_astray_are_not_followed(made: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        f"[global]\nuser = true\ntarget = {tmp_path}/elsewhere\nconstraint = {tmp_path}/nowhere.txt\ndry-run = true\n"
        f"require-virtualenv = true\n[install]\nuser = true\nprefix = {tmp_path}/elsewhere\n"
    )
    (made / "requirements.lock").write_text("# so that there is something to do\n")
    done = _make_venv(
        made, PIP_CONFIG_FILE=str(configuration), PYTHONPATH=str(tmp_path), PIP_USER="1", PIP_ROOT="/none"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "elsewhere").exists()
    assert _has_project(made)


def test_settings_of_pip_by_which_the_index_is_reached_are_followed(made: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        "[global]\nindex-url = http://127.0.0.1:9/first\nretries = 9\n"
        "[install]\nindex-url = http://127.0.0.1:9/second\nretries = 1\n"
    )
    (made / "requirements.lock").write_text(UNAVAILABLE)
    environment = {
        "PIP_CONFIG_FILE": str(configuration),
        "PIP_NO_INDEX": "0",
        "PIP_INDEX_URL": "http://127.0.0.1:9/third",
    }
    done = _make_venv(made, **environment)
    assert done.stderr.count("/third/not-to-be-found/") == 1


def test_failure_of_pip_is_shown_with_a_hint(made: Path) -> None:
    (made / "requirements.lock").write_text(UNAVAILABLE)
    done = _make_venv(made)
    assert done.returncode == 1
    assert "not-to-be-found" in done.stderr
    assert "error: cannot make .venv: pip failed" in done.stderr
    assert "hint:  is the package index reachable" in done.stderr
    assert not (made / ".venv" / ".made-from").exists()


def test_wheel_that_does_not_match_its_hash_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "tampered-1-py3-none-any.whl").write_bytes(b"PK\x05\x06" + bytes(18))
    (made / "requirements.lock").write_text("tampered==1 --hash=sha256:" + "0" * 64 + "\n")
    done = _make_venv(made, PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Makes a small program for a PATH of the test's own."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def make(name: str, script: str) -> Path:
        path = directory / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def _begins_from_nothing(root: Path, program: Callable[[str, str], Path]) -> bool:
    """Whether the script decides to make the environment anew; it is not let: that takes seconds."""
    fake = program(
        "python3", '[[ $2 == venv ]] && echo "venv $*" && exit 1; [[ $1 == --version ]] && echo Python 3.11; exit 0'
    )
    done = _make_venv(root, PYTHON3=str(fake))
    begun = f"venv -m venv --clear {root}/.venv\n" in done.stdout
    assert done.returncode == (1 if begun else 0)
    return begun


def test_interrupted_installation_is_made_from_nothing(made: Path, program: Callable[[str, str], Path]) -> None:
    (made / ".venv" / ".made-from").unlink()
    unfinished = made / ".venv" / ".unfinished"
    unfinished.touch()
    assert _begins_from_nothing(made, program)
    assert unfinished.exists()
    unfinished.unlink()
    assert not _begins_from_nothing(made, program)


def test_broken_interpreter_is_noticed(made: Path, program: Callable[[str, str], Path]) -> None:
    python = made / ".venv" / "bin" / "python"
    target = python.readlink()
    python.unlink()
    python.symlink_to("/nonexistent")
    assert _begins_from_nothing(made, program)
    python.unlink()
    python.symlink_to(target)


def test_environment_of_a_moved_or_copied_checkout_is_made_anew(
    made: Path, tmp_path: Path, program: Callable[[str, str], Path]
) -> None:
    copy = shutil.copytree(made, tmp_path / "copy", symlinks=True)
    assert _begins_from_nothing(copy, program)


@pytest.mark.parametrize(
    ("script", "reason", "remedy"),
    [
        ('[[ $1 == --version ]] && echo "Python 3.9.2"; exit 1', "Python 3.9.2 is too old", "3.11 or later"),
        ("[[ $2 == *ensurepip* ]] && exit 1; exit 0", "has no venv module", "apt-get install -y python3-venv"),
        ("[[ $2 == venv ]] && exit 1; exit 0", "python3 -m venv failed", "disk full"),
    ],
)
def test_unsuitable_python_is_refused_with_a_remedy(
    repository: Path, program: Callable[[str, str], Path], script: str, reason: str, remedy: str
) -> None:
    done = _make_venv(repository, PYTHON3=str(program("python3", script)))
    assert done.returncode == 1
    assert f"error: cannot make .venv: {reason}" in done.stderr.replace(str(program("python3", script)) + " ", "")
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_python_is_refused_with_a_remedy(repository: Path) -> None:
    done = _make_venv(repository, PYTHON3="python3-that-is-not-there")
    assert done.returncode == 1
    assert "there is no python3-that-is-not-there" in done.stderr
    assert "apt-get install -y python3 python3-venv" in done.stderr


# -- Debian packages of the tests -----------------------------------------------------------------------------------


def _install_packages(path: Path, *, as_root: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with ``path`` before everything else on PATH; ``as_root`` is what it takes itself for."""
    script = (SETUP / "install-debian-packages.sh").read_text().replace("((EUID != 0))", str(not as_root).lower())
    copy = path.parent / "setup" / "install-debian-packages.sh"
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(script)
    (copy.parent / "debian-packages.txt").write_text("# why\nfio   # load\n\nsqlite3 # a database\n")
    return subprocess.run(
        ["bash", copy],
        env={**os.environ, "PATH": f"{path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


FIO_IS_MISSING: Final = "[[ ${@: -1} == fio ]] && exit 1; printf installed"
RECORDS: Final = 'echo "$DEBIAN_FRONTEND: $*" >>"$CALLS"; '


def _calls(environment: Mapping[str, str]) -> list[str]:
    path = Path(environment["CALLS"])
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        "update" if line.split()[-1] == "update" else line.rpartition("--no-install-recommends ")[2] for line in lines
    ]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"CALLS": str(tmp_path / "calls")}


def test_nothing_is_asked_of_apt_when_all_is_there(
    program: Callable[[str, str], Path], environment: dict[str, str]
) -> None:
    program("dpkg-query", "printf installed")
    path = program("apt-get", RECORDS).parent
    done = _install_packages(path, as_root=True, **environment)
    assert (done.returncode, done.stdout, done.stderr, _calls(environment)) == (0, "", "", [])


def test_only_what_is_missing_is_installed_without_questions(
    program: Callable[[str, str], Path], environment: dict[str, str]
) -> None:
    program("dpkg-query", FIO_IS_MISSING)
    path = program("apt-get", RECORDS).parent
    done = _install_packages(path, as_root=True, **environment)
    assert (done.returncode, done.stdout) == (0, "packages: installing fio\n")
    assert _calls(environment) == ["fio"]
    recorded = Path(environment["CALLS"]).read_text()
    assert recorded.startswith("noninteractive: ")
    assert "DPkg::Lock::Timeout=" in recorded


def test_package_lists_are_fetched_only_when_the_installation_fails(
    program: Callable[[str, str], Path], environment: dict[str, str]
) -> None:
    program("dpkg-query", FIO_IS_MISSING)
    lists_are_stale = '[[ $* == *update ]] || [[ $(grep -c . "$CALLS") -gt 1 ]]'
    path = program("apt-get", RECORDS + lists_are_stale).parent
    done = _install_packages(path, as_root=True, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert _calls(environment) == ["fio", "update", "fio"]


def test_apt_that_fails_is_told_and_leaves_the_tests_to_skip(
    program: Callable[[str, str], Path], environment: dict[str, str]
) -> None:
    program("dpkg-query", FIO_IS_MISSING)
    path = program("apt-get", RECORDS + 'echo "E: no network" >&2; exit 100').parent
    done = _install_packages(path, as_root=True, **environment)
    assert done.returncode == 0
    assert "E: no network" in done.stderr
    assert "cannot install them" in done.stderr


def test_without_root_it_says_what_is_missing(program: Callable[[str, str], Path], environment: dict[str, str]) -> None:
    program("dpkg-query", FIO_IS_MISSING)
    path = program("apt-get", RECORDS).parent
    done = _install_packages(path, as_root=False, **environment)
    assert done.returncode == 0
    assert "As root: apt-get install -y fio" in done.stdout
    assert _calls(environment) == []


def test_every_package_of_the_list_has_a_reason() -> None:
    lines = [line for line in (SETUP / "debian-packages.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines == sorted(lines)
    assert not [line for line in lines if len(line.partition("#")[2].split()) < 2]


# -- make and CI ------------------------------------------------------------------------------------------------------


def test_make_alone_lists_the_targets() -> None:
    done = subprocess.run(["make", "-C", REPOSITORY], capture_output=True, text=True, check=True)
    assert "make demo " in done.stdout
    assert "make test " in done.stdout


def test_ci_runs_the_tests_and_lets_none_be_skipped() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert "make test" in text
    assert "BLOCKFERRY_NO_SKIPS=1" in text


def _shell_scripts() -> list[Path]:
    shipped = (REPOSITORY / "process_server").rglob("*.sh")
    candidates = [*(REPOSITORY / "deploy").rglob("*"), *shipped, REPOSITORY / ".ci" / "run"]
    return [
        path
        for path in candidates
        if path.is_file() and path.read_bytes()[:20].split(b"\n")[0].endswith((b"bash", b"/sh"))
    ]


@pytest.mark.requires("shellcheck")
@pytest.mark.parametrize("script", _shell_scripts(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_shell_scripts_pass_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)
