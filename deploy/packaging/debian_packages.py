"""The Debian packages: ``blockferry-runtime`` with the programs, and one package for each daemon with its unit, user and directories.

Called by ``__main__``. The runtime depends on nothing but glibc: neither Debian's Python nor its libraries. A version's programs lie in a
directory of their own, ``/usr/lib/blockferry/VERSION``; ``current`` is the one that is used. A daemon's package does what
``deploy/systemd/install.sh`` does, the Debian way: dpkg owns the files, the maintainer scripts make user, directories and the sample
configuration, and restart the daemon. Purging leaves nothing: configuration, state, the user, and of the agent its tracking in the kernel,
wherever its configuration had them. Purging has no programs any more, so they note it when they are removed
(``mobility_agent/installation/remains.py``). What others put into the agent's state directory stays if that is not the usual one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.packaging.failure import PackagingFailure
from deploy.packaging.program_tree import REPOSITORY, ProgramTree

SYSTEMD: Final = REPOSITORY / "deploy" / "systemd"
CONFIG: Final = REPOSITORY / "deploy" / "config"
SCRIPTS: Final = Path(__file__).with_name("debian")
PREFIX: Final = Path("usr/lib/blockferry")
MAINTAINER: Final = "Blockferry <maintainers@blockferry.invalid>"
TARGET: Final = "blockferry-replication-appliance.target"


@dataclass(frozen=True, slots=True)
class Role:
    """One daemon: ``programs`` is what its package puts on PATH."""

    name: str
    programs: tuple[str, ...]
    summary: str


ROLES: Final = (
    Role("agent", ("mobility-agent",), "agent of a server to be migrated"),
    Role("azure-sink", ("azure-sink",), "sink: Blob service and replica writer"),
    Role("config-server", ("config-server", "migratectl"), "configuration server of the replication appliance"),
    Role("process-server", ("process-server",), "process server of the replication appliance"),
)


def debian_architecture(architecture: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[architecture]


def make_packages(tree: ProgramTree, out: Path, compression: int) -> list[Path]:
    """Writes all packages into the directory ``out`` and returns their paths."""
    staging = out / ".packages"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        made = [_make_runtime(tree, staging / "blockferry-runtime", out, compression)]
        made += [_make_role(role, tree, staging / f"blockferry-{role.name}", out, compression) for role in ROLES]
        made.append(_make_appliance(tree, staging / "blockferry-replication-appliance", out, compression))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return made


def _make_runtime(tree: ProgramTree, root: Path, out: Path, compression: int) -> Path:
    shutil.copytree(tree.directory, root / PREFIX / tree.version, symlinks=True)
    (root / PREFIX / "current").symlink_to(tree.version)
    _documented(root, "blockferry-runtime")
    control = _control(
        tree,
        "blockferry-runtime",
        f"libc6 (>= {tree.oldest_glibc})",
        "programs of Blockferry, with all that they need",
        f"The interpreter (Python {tree.interpreter}), libraries and packages that the daemons run on. Nothing of it is on PATH.",
    )
    return _build(root, control, {}, out, compression)


def _make_role(role: Role, tree: ProgramTree, root: Path, out: Path, compression: int) -> Path:
    package = f"blockferry-{role.name}"
    for program in role.programs:
        _link(root / PREFIX / "bin" / program, f"../current/bin/{program}")
        _link(root / "usr" / "bin" / program, f"../lib/blockferry/bin/{program}")
    _copy(SYSTEMD / f"{package}.service", root / "lib" / "systemd" / "system" / f"{package}.service")
    for kind in ("sysusers.d", "tmpfiles.d"):
        _copy(SYSTEMD / kind / f"{package}.conf", root / "usr" / "lib" / kind / f"{package}.conf")
    _copy(CONFIG / f"{role.name}.yaml", root / "usr" / "share" / "blockferry" / f"{role.name}.yaml")
    _documented(root, package)
    control = _control(tree, package, f"blockferry-runtime (= {tree.version}), systemd", role.summary, "")
    scripts = {
        name: (SCRIPTS / name).read_text().replace("@ROLE@", role.name)
        for name in ("preinst", "postinst", "prerm", "postrm")
    }
    return _build(root, control, scripts, out, compression)


def _make_appliance(tree: ProgramTree, root: Path, out: Path, compression: int) -> Path:
    """Configuration server and process server on one machine, the default: the target that starts and stops both."""
    package = "blockferry-replication-appliance"
    _copy(SYSTEMD / TARGET, root / "lib" / "systemd" / "system" / TARGET)
    _documented(root, package)
    daemons = ", ".join(f"blockferry-{name} (= {tree.version})" for name in ("config-server", "process-server"))
    control = _control(tree, package, daemons, "replication appliance: configuration and process server", "")
    reload = "if [ -d /run/systemd/system ]; then systemctl --system daemon-reload || true; fi\n"
    disable = f'if [ "$1" = remove ]; then systemctl disable {TARGET} || true; fi\n'
    scripts = {
        name: f"#!/bin/sh\nset -e\n{text}"
        for name, text in (("postinst", reload), ("prerm", disable), ("postrm", reload))
    }
    return _build(root, control, scripts, out, compression)


def _control(tree: ProgramTree, package: str, depends: str, summary: str, description: str) -> str:
    text = (
        description
        or "Agent-based block-level server migration: replicates live disks near-continuously and cuts over with proof."
    )
    return (
        f"Package: {package}\nVersion: {tree.version}\nArchitecture: {debian_architecture(tree.architecture)}\n"
        f"Maintainer: {MAINTAINER}\nSection: admin\nPriority: optional\nDepends: {depends}\n"
        f"Description: Blockferry: {summary}\n {text}\n"
    )


def _build(root: Path, control: str, scripts: dict[str, str], out: Path, compression: int) -> Path:
    size_kib = sum(path.lstat().st_size for path in root.rglob("*")) // 1024
    directory = root / "DEBIAN"
    directory.mkdir()
    head, _, description = control.partition("Description:")
    (directory / "control").write_text(f"{head}Installed-Size: {size_kib}\nDescription:{description}")
    for name, text in scripts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    for path in (root, *root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    path = out / f"{fields['Package']}_{fields['Version']}_{fields['Architecture']}.deb"
    done = subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", f"-z{compression}", root, path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "0")},
    )
    if done.returncode != 0:
        raise PackagingFailure(f"cannot build {path.name}: {done.stderr.strip()}", hint="is dpkg-deb there?")
    return path


def _documented(root: Path, package: str) -> None:
    _copy(REPOSITORY / "LICENSE", root / "usr" / "share" / "doc" / package / "copyright")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
