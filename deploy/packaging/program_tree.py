"""The tree of files that runs anywhere: an interpreter, the libraries it needs, third-party packages, our own, and what starts them.

Called by ``agent_installer`` and ``debian_packages``. The interpreter is Debian 12's, from a bare root
(``deploy/setup/bare-debian.sh``), so that it does not matter what it is built on. It finds its standard library beside itself, wherever
the tree lies, and its libraries by the one path that is written into it; nothing is set in the environment, which the agent's quiesce
hooks would inherit. Third-party packages are wheels of ``requirements.lock``, hashes checked. Everything is compiled beforehand: a
program never writes into its own tree.

    bin/python3, bin/PROGRAM   lib/*.so*   lib/python3.11/…   lib/python3/dist-packages/…   libexec/PROGRAM   share/…
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from deploy.packaging.elf import OF_GLIBC, elf_files, needed_libraries, oldest_glibc
from deploy.packaging.failure import PackagingFailure
from deploy.packaging.locked_packages import SERVERS_ONLY, closure, direct_requirements, locked
from packaging.utils import canonicalize_name

REPOSITORY: Final = Path(__file__).parents[2]
OUR_PACKAGES: Final = ("azure_sink", "config_server", "mobility_agent", "process_server", "replication")
AGENT_PACKAGES: Final = ("mobility_agent", "replication")
BARE_PACKAGES: Final = "ca-certificates,git,make,python3,python3-venv"
"""The root of prove-fresh-debian.sh: one cached file serves both."""
PYTHON: Final = "python3.11"

_STANDARD_LIBRARY_LEFT_OUT: Final = (
    "__pycache__", "test", "idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "ensurepip", "pydoc_data", "distutils", "venv",
    "config-*", "sitecustomize.py", "dist-packages", "EXTERNALLY-MANAGED", "_tkinter*", "readline*", "_curses*", "_dbm*", "_gdbm*", "nis*",
    "ossaudiodev*", "_test*", "_xxtestfuzz*", "xx*", "_ctypes_test*", "_crypt.*", "crypt.py",
)  # fmt: skip
_WHEELS_LEFT_OUT: Final = (
    "__pycache__", "tests", "*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.a", "bin", "include", "_cffi.*.so", "backend_cffi.py",
)  # fmt: skip
_VERSION_LINE: Final = r'^__version__ = "([^"]+)"$'
_STARTER: Final = """#!/bin/sh
# -I: neither the environment nor the user's own packages change what is run. -B: nothing is written beside the modules.
here=$(dirname -- "$(readlink -f -- "$0")")
exec "$here/python3" -IB "$here/../libexec/{program}" "$@"
"""
_ENTRY: Final = """from {module} import {function}

{function}()
"""


@dataclass(frozen=True, slots=True)
class ProgramTree:
    """A finished tree. ``oldest_glibc`` is what all its files together need."""

    directory: Path
    version: str
    architecture: str
    oldest_glibc: str
    interpreter: str


def source_version() -> str:
    text = (REPOSITORY / "replication" / "__init__.py").read_text()
    match = re.search(_VERSION_LINE, text, re.MULTILINE)
    if match is None:
        raise PackagingFailure("cannot find the version in replication/__init__.py")
    return match[1]


def make_tree(directory: Path, version: str) -> ProgramTree:
    """The tree of all programs; ``directory`` must not exist."""
    directory.mkdir(parents=True)
    with_bare = directory.with_name(directory.name + ".bare")
    try:
        _unpack_bare(with_bare)
        _copy_interpreter(with_bare, directory)
        _gather_libraries(directory, with_bare)
        _install_wheels(directory)
        for package in OUR_PACKAGES:
            shutil.copytree(
                REPOSITORY / package, _packages(directory) / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        _copy_shared_files(directory)
        _write_starters(directory)
        _gather_libraries(directory, with_bare)
    finally:
        shutil.rmtree(with_bare, ignore_errors=True)
    return _finished(directory, version, OUR_PACKAGES)


def make_agent_tree(whole: ProgramTree, directory: Path) -> ProgramTree:
    """What of the ``whole`` tree a protected server needs."""
    shutil.copytree(whole.directory, directory, symlinks=True)
    wanted = closure(
        r for r in direct_requirements(REPOSITORY / "pyproject.toml") if canonicalize_name(r.name) not in SERVERS_ONLY
    )
    packages = _packages(directory)
    for installed in importlib.metadata.distributions(path=[str(packages)]):
        if canonicalize_name(installed.metadata["Name"]) not in wanted:
            _remove_distribution(packages, installed)
    for package in set(OUR_PACKAGES) - set(AGENT_PACKAGES):
        shutil.rmtree(packages / package)
    for program in _programs().keys() - {"mobility-agent"}:
        (directory / "bin" / program).unlink()
        (directory / "libexec" / program).unlink()
    return _finished(directory, whole.version, AGENT_PACKAGES)


def with_version(tree: ProgramTree, version: str) -> ProgramTree:
    """The same tree, in place, with another version: what it says of itself, and where it is installed."""
    path = _packages(tree.directory) / "replication" / "__init__.py"
    text = path.read_text()
    if version != tree.version or f'"{version}"' not in text:
        path.write_text(re.sub(_VERSION_LINE, f'__version__ = "{version}"', text, count=1, flags=re.MULTILINE))
        _compile(tree.directory, path)
    return replace(tree, version=version)


def _compile(directory: Path, what: Path) -> None:
    _run_inside(
        directory, "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(directory), str(what)
    )  # fmt: skip


def _finished(directory: Path, version: str, packages: Sequence[str]) -> ProgramTree:
    _compile(directory, directory / "lib")
    _check_imports(directory, packages)
    interpreter = _run_inside(directory, "-c", "import platform; print(platform.machine(), platform.python_version())")
    architecture, python_version = interpreter.split()
    return ProgramTree(directory, version, architecture, oldest_glibc(elf_files(directory)), python_version)


def _packages(directory: Path) -> Path:
    return directory / "lib" / "python3" / "dist-packages"


def _run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise PackagingFailure(
            f"cannot run {' '.join(map(str, command[:6]))} …: {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


def _run_inside(directory: Path, *arguments: str) -> str:
    return _run(directory / "bin" / "python3", "-I", *arguments)


# ---- the interpreter, and the libraries of the machine it comes from


def _unpack_bare(into: Path) -> None:
    tar = _run(REPOSITORY / "deploy" / "setup" / "bare-debian.sh", BARE_PACKAGES).strip()
    into.mkdir()
    wanted = [f"./usr/bin/{PYTHON}", f"./usr/lib/{PYTHON}", "./usr/lib/*-linux-gnu"]
    left_out = ["*/gconv", "*/perl*", "*/git-core"]
    _run("tar", "-C", into, "-xzf", tar, "--wildcards", *(f"--exclude={each}" for each in left_out), *wanted)


def _copy_interpreter(bare: Path, directory: Path) -> None:
    (directory / "bin").mkdir()
    (directory / "lib").mkdir()
    shutil.copy2(bare / "usr" / "bin" / PYTHON, directory / "bin" / PYTHON)
    (directory / "bin" / "python3").symlink_to(PYTHON)
    shutil.copytree(
        bare / "usr" / "lib" / PYTHON,
        directory / "lib" / PYTHON,
        ignore=shutil.ignore_patterns(*_STANDARD_LIBRARY_LEFT_OUT),
        ignore_dangling_symlinks=True,
    )
    # DT_RPATH of the program counts for every module that it loads; nothing is inherited by what it starts.
    _run("patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/../lib", directory / "bin" / PYTHON)


def _gather_libraries(directory: Path, bare: Path) -> None:
    """Beside the interpreter: every library that something in the tree needs and that neither glibc nor its own wheel brings."""
    available = {path.name: path for path in (bare / "usr" / "lib").glob("*-linux-gnu/*.so*")}
    brought = {path.name for path in directory.rglob("*.so*")}
    waiting = list(elf_files(directory))
    while waiting:
        for name in needed_libraries(waiting.pop()):
            if name in brought or OF_GLIBC.fullmatch(name):
                continue
            if name not in available:
                raise PackagingFailure(f"cannot find the library {name} in the bare Debian")
            shutil.copy2(available[name].resolve(), directory / "lib" / name)
            brought.add(name)
            waiting.append(directory / "lib" / name)


# ---- packages


def _install_wheels(directory: Path) -> None:
    names = closure(direct_requirements(REPOSITORY / "pyproject.toml"))
    requirements = directory.with_name(directory.name + ".requirements")
    requirements.write_text(locked((REPOSITORY / "requirements.lock").read_text(), names))
    wheels = _cache() / f"wheels-{PYTHON}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    packages = _packages(directory)
    # Hashes are checked at both: what lies in the cache is believed no more than what an index sends.
    checked = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(requirements))
    try:
        if not wheels.is_dir():
            unfinished = wheels.with_name(f"{wheels.name}.new.{os.getpid()}")
            _pip(directory, "download", "--dest", str(unfinished), *checked)
            unfinished.replace(wheels)
        _pip(
            directory,
            "install",
            "--no-compile",
            "--no-index",
            f"--find-links={wheels}",
            "--target",
            str(packages),
            *checked,
        )
    finally:
        requirements.unlink()
    left_out = shutil.ignore_patterns(*_WHEELS_LEFT_OUT)
    for parent, directories, files in os.walk(packages):
        for name in left_out(parent, [*directories, *files]):
            path = Path(parent, name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        directories[:] = [name for name in directories if Path(parent, name).exists()]


def _pip(directory: Path, *arguments: str) -> None:
    """The pip of the virtual environment, on the tree's interpreter, whose wheels it then chooses."""
    environment = {**os.environ, "PYTHONPATH": str(_directory_of_pip()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = (
        str(directory / "bin" / "python3"),
        "-s",
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        *arguments,
    )
    _run(*command, env=environment)


def _cache() -> Path:
    """As in deploy/setup/bare-debian.sh."""
    home = os.environ.get("HOME", "/root")
    named = os.environ.get("BLOCKFERRY_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or home + '/.cache'}/blockferry"
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)


def _remove_distribution(packages: Path, installed: importlib.metadata.Distribution) -> None:
    for entry in installed.files or ():
        path = packages / entry
        if path.is_file():
            path.unlink()
    for top in {entry.parts[0] for entry in installed.files or () if ".." not in entry.parts}:
        if (packages / top).is_dir() and not any(
            path.suffix != ".pyc" for path in (packages / top).rglob("*") if path.is_file()
        ):
            shutil.rmtree(packages / top)


def _check_imports(directory: Path, packages: Sequence[str]) -> None:
    """Every module of ours imports, with nothing but what is in the tree."""
    roots = [str(_packages(directory) / package) for package in packages]
    _run_inside(
        directory, "-B", "-c",
        "import importlib, pkgutil, sys\n"
        "for root in sys.argv[1:]:\n"
        "    name = root.rpartition('/')[2]\n"
        "    for module in pkgutil.walk_packages([root], name + '.'):\n"
        "        if '.migrations.' not in module.name: importlib.import_module(module.name)\n",
        *roots,
    )  # fmt: skip


# ---- what starts them, and what systemd needs


def _programs() -> dict[str, str]:
    scripts: dict[str, str] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    return scripts


def _write_starters(directory: Path) -> None:
    (directory / "libexec").mkdir()
    for program, entry in _programs().items():
        module, _, function = entry.partition(":")
        (directory / "libexec" / program).write_text(_ENTRY.format(module=module, function=function))
        starter = directory / "bin" / program
        starter.write_text(_STARTER.format(program=program))
        starter.chmod(0o755)


def _copy_shared_files(directory: Path) -> None:
    share = directory / "share"
    shutil.copytree(REPOSITORY / "deploy" / "systemd", share / "systemd")
    shutil.copytree(REPOSITORY / "deploy" / "config", share / "config", ignore=shutil.ignore_patterns("invalid"))
    shutil.copy2(REPOSITORY / "LICENSE", share / "LICENSE")


def _directory_of_pip() -> Path:
    """Where this environment's pip lies, which the other interpreter runs."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise PackagingFailure("cannot install packages: there is no pip in this environment", hint="run `make venv`")
    return Path(found.origin).parents[1]
