"""``deploy/systemd/install.sh``: what it puts where, a repetition keeps the administrator's work, systemd accepts the result."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.harness.systemd_units import SERVICES, SYSTEMD

ROLES: Final = sorted(name.removeprefix("blockferry-").removesuffix(".service") for name in SERVICES)
TARGET: Final = Path("etc/systemd/system/blockferry-replication-appliance.target")
needs_tools: Final = pytest.mark.requires("root", "systemd-sysusers", "systemd-tmpfiles")


def _install(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SYSTEMD / "install.sh", *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=cwd
    )


def _files(root: Path) -> dict[Path, bytes]:
    """Without the account files and their backups, which are systemd-sysusers' own work."""
    files = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: text for path, text in files.items() if path.parent != Path("etc")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with accounts of its own: nothing of this machine is touched."""
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "root" / "etc" / "group").write_text("root:x:0:\n")
    return tmp_path / "root"


@needs_tools
@pytest.mark.parametrize("role", ROLES)
def test_role_gets_its_unit_its_user_its_directories_and_a_sample(role: str, root: Path) -> None:
    done = _install("--root", root, role)
    assert done.returncode == 0, done.stderr
    files = _files(root)
    assert (
        files.pop(Path(f"etc/systemd/system/blockferry-{role}.service"))
        == (SYSTEMD / f"blockferry-{role}.service").read_bytes()
    )
    for kind in ("sysusers.d", "tmpfiles.d"):
        assert (
            files.pop(Path(f"etc/{kind}/blockferry-{role}.conf"))
            == (SYSTEMD / kind / f"blockferry-{role}.conf").read_bytes()
        )
    assert files.pop(Path(f"etc/blockferry/{role}.yaml")) == (SYSTEMD.parent / "config" / f"{role}.yaml").read_bytes()
    assert (files.pop(TARGET, None) is not None) == (role in ("config-server", "process-server"))
    assert not files
    assert (root / "var" / "lib" / "blockferry" / role).stat().st_mode & 0o777 == 0o700
    assert f"{root}/etc/blockferry/{role}.yaml: a sample" in done.stdout


@needs_tools
def test_configuration_is_for_root_and_the_daemons_only(root: Path) -> None:
    assert _install("--root", root, *ROLES).returncode == 0
    groups = {
        name: int(number)
        for name, _, number, _ in (line.split(":") for line in (root / "etc" / "group").read_text().splitlines())
    }
    for role in ROLES:
        made = (root / "etc" / "blockferry" / f"{role}.yaml").stat()
        assert (made.st_mode & 0o777, made.st_uid, made.st_gid) == (0o640, 0, groups["blockferry"])


@needs_tools
def test_repetition_keeps_the_configuration_and_renews_the_unit(root: Path) -> None:
    assert _install("--root", root, *ROLES).returncode == 0
    configuration = root / "etc" / "blockferry" / "agent.yaml"
    unit = root / "etc" / "systemd" / "system" / "blockferry-agent.service"
    configuration.write_text("config_server: {url: https://mine}\n")
    unit.write_text("of an older version")
    done = _install("--root", root, *ROLES)
    assert (done.returncode, done.stdout) == (0, "")
    assert configuration.read_text() == "config_server: {url: https://mine}\n"
    assert unit.read_bytes() == (SYSTEMD / "blockferry-agent.service").read_bytes()


@needs_tools
def test_root_may_be_relative_to_where_the_caller_is(root: Path) -> None:
    done = _install("--root", "root", "agent", cwd=root.parent)
    assert done.returncode == 0, done.stderr
    assert (root / "etc" / "blockferry" / "agent.yaml").exists()


@needs_tools
@pytest.mark.requires("systemd-analyze")
def test_systemd_accepts_what_was_installed(root: Path) -> None:
    """Units and target together, from where they were put, with programs that are there."""
    assert _install("--root", root, *ROLES).returncode == 0
    programs = root / "usr" / "lib" / "blockferry" / "bin"
    programs.mkdir(parents=True)
    for unit in SERVICES.values():
        program = programs / Path(unit.words("ExecStart")[0]).name
        program.symlink_to("/bin/true")
    units = sorted((root / "etc" / "systemd" / "system").glob("blockferry-*"))
    for path in units:
        path.write_text(path.read_text().replace("/usr/lib/blockferry/bin", str(programs)))
    assert len(units) == len(ROLES) + 1
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_COLORS": "0"},
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "blockferry" in line]) == (0, [])


@pytest.mark.parametrize("roles", [(), ("portal",), ("agent", "../agent"), ("replication-appliance",)])
def test_wrong_role_installs_nothing(roles: tuple[str, ...], root: Path) -> None:
    done = _install("--root", root, *roles)
    assert done.returncode == 2
    assert "agent|azure-sink|config-server|process-server" in done.stderr or "there is no role" in done.stderr
    assert not _files(root)
