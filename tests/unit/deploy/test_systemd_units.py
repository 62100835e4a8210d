"""The systemd units: what they start exists, users and directories are declared, and the agent sees the machine that it protects."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

import azure_sink.config
import config_server.config
import mobility_agent.config
import process_server.config
from mobility_agent.quiesce.freeze_guard import MAX_BUDGET_S
from tests.harness.documentation import program_commands
from tests.harness.source_tree import REPOSITORY
from tests.harness.systemd_units import AGENT, PROGRAMS, SERVICES, SYSTEMD, Unit

SCRIPTS: Final = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
TARGET: Final = Unit.read(SYSTEMD / "blockferry-replication-appliance.target")
CONFIGURATIONS: Final = {
    "blockferry-agent.service": (mobility_agent.config.DEFAULT_CONFIG_PATH, mobility_agent.config.DEFAULT_STATE_DIR),
    "blockferry-azure-sink.service": (
        azure_sink.config.DEFAULT_CONFIG,
        azure_sink.config.DEFAULT_BLOB_STATE_DIR.parent,
    ),
    "blockferry-config-server.service": (config_server.config.DEFAULT_CONFIG, config_server.config.DEFAULT_STATE_DIR),
    "blockferry-process-server.service": (
        process_server.config.DEFAULT_CONFIG,
        process_server.config.DEFAULT_STATE_DIR,
    ),
}
SERVERS: Final = sorted(SERVICES.keys() - {AGENT.name})
MOST_EXPOSED: Final = 30
"""`systemd-analyze security` on a scale of 0 to 100, for the daemons that need no root."""

# systemd.exec(5), systemd 257: each of these gives the service a mount namespace of its own.
_MOUNT_NAMESPACE: Final = re.compile(
    r"(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|ProcSubset"
    r"|Private(Tmp|Devices|Mounts|Users|PIDs)|DynamicUser|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths"
    r"|Bind(ReadOnly)?Paths|TemporaryFileSystem|Root(Directory|Image|Ephemeral)|MountAPIVFS|MountFlags"
    r"|MountImages|ExtensionImages|ExtensionDirectories|LogNamespace)"
)


@pytest.mark.parametrize("name", SERVICES)
def test_service_starts_a_command_that_exists_with_the_default_configuration(name: str) -> None:
    path, *words = SERVICES[name].words("ExecStart")
    program = Path(path).name
    assert Path(path).parent == Path(PROGRAMS)
    *commands, option, configuration = words
    assert option == "--config"
    assert configuration == str(CONFIGURATIONS[name][0])
    known = {command.words for command in program_commands(program, SCRIPTS[program])}
    assert (program, *commands) in known


def test_there_is_one_service_for_each_daemon() -> None:
    started = {Path(unit.words("ExecStart")[0]).name for unit in SERVICES.values()}
    assert started == SCRIPTS.keys() - {"migratectl"}
    assert SERVICES.keys() == CONFIGURATIONS.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_watched_and_started_again(name: str) -> None:
    unit = SERVICES[name]
    assert unit.one("Type") == "notify"
    assert unit.one("Restart") == "on-failure"
    assert unit.one("StartLimitIntervalSec") == "0"
    assert unit.seconds("WatchdogSec") >= 60
    assert unit.one("NoNewPrivileges") == "yes"
    assert "multi-user.target" in unit.words("WantedBy")


@pytest.mark.parametrize("name", SERVERS)
def test_server_runs_as_its_own_declared_user_without_capabilities_but_for_low_ports(name: str) -> None:
    unit = SERVICES[name]
    user = name.removesuffix(".service")
    assert (unit.one("User"), unit.one("Group")) == (user, user)
    assert {*unit.words("CapabilityBoundingSet"), *unit.words("AmbientCapabilities")} <= {"CAP_NET_BIND_SERVICE"}
    listens_low = name != "blockferry-process-server.service"
    assert ("CAP_NET_BIND_SERVICE" in unit.words("AmbientCapabilities")) == listens_low
    declared = (SYSTEMD / "sysusers.d" / f"{user}.conf").read_text()
    assert re.search(rf"^u {user} ", declared, re.MULTILINE)
    assert re.search(rf"^m {user} blockferry$", declared, re.MULTILINE)


@pytest.mark.parametrize("name", SERVICES)
def test_state_directory_is_the_default_one_and_there_before_the_first_start(name: str) -> None:
    state_dir = CONFIGURATIONS[name][1]
    unit = SERVICES[name]
    if unit is AGENT:
        written_by_systemd = [key for key in unit.directives if key.endswith("Directory")]
        assert not written_by_systemd, "the start would wait for what only the start thaws"
    else:
        assert Path("/var/lib") / unit.one("StateDirectory") == Path(state_dir)
        assert unit.one("StateDirectoryMode") == "0700"
    owner = unit.directives.get("User", ["root"])[0]
    made = (SYSTEMD / "tmpfiles.d" / f"{name.removesuffix('.service')}.conf").read_text()
    assert f"d {state_dir} 0700 {owner} {owner} -\n" in made


def test_agent_lives_in_the_mount_namespace_of_its_machine() -> None:
    assert not [name for name in AGENT.directives if _MOUNT_NAMESPACE.fullmatch(name)]
    server = SERVICES[SERVERS[0]]
    assert [name for name in server.directives if _MOUNT_NAMESPACE.fullmatch(name)], "the pattern finds nothing"


def test_agent_may_lock_its_memory_and_is_not_killed_in_a_freeze() -> None:
    assert AGENT.one("LimitMEMLOCK") == "infinity"
    assert AGENT.one("KillMode") == "control-group"
    assert AGENT.one("WatchdogSignal") == "SIGTERM", "the freeze watchdog ignores no other signal"
    assert AGENT.seconds("TimeoutStopSec") > MAX_BUDGET_S
    # it feeds the watchdog at half of its time, and a freeze may hold the event loop right before that
    assert AGENT.seconds("WatchdogSec") / 2 > MAX_BUDGET_S


def test_every_capability_of_the_agent_is_justified() -> None:
    text = (SYSTEMD / AGENT.name).read_text()
    capabilities = AGENT.words("CapabilityBoundingSet")
    assert capabilities
    for capability in capabilities:
        assert re.search(rf"^#.*\b{capability}\b.* \w+", text, re.MULTILINE), capability


def test_appliance_is_configuration_server_and_process_server() -> None:
    members = ["blockferry-config-server.service", "blockferry-process-server.service"]
    assert TARGET.words("Wants") == members
    for name in SERVICES:
        assert (TARGET.name in SERVICES[name].words("PartOf")) == (name in members)
    assert "blockferry-config-server.service" in SERVICES["blockferry-process-server.service"].words("After")


@pytest.fixture
def unit_files(tmp_path: Path) -> list[Path]:
    """The units, with programs that are there: verify looks for them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for script in SCRIPTS:
        (programs / script).symlink_to("/bin/true")
    copies = []
    for path in [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.target")]:
        copies.append(tmp_path / path.name)
        copies[-1].write_text(path.read_text().replace(PROGRAMS, str(programs)))
    return sorted(copies)


def _analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_PAGER": "cat", "SYSTEMD_COLORS": "0", "COLUMNS": "200"},
    )


@pytest.mark.requires("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(unit_files: list[Path]) -> None:
    done = _analyze("verify", "--man=no", *unit_files)
    about_ours = [line for line in done.stderr.splitlines() if "blockferry" in line]
    assert (done.returncode, about_ours) == (0, []), done.stderr


@pytest.mark.requires("systemd-analyze")
def test_systemd_does_find_what_is_wrong_with_a_unit(unit_files: list[Path]) -> None:
    service = next(path for path in unit_files if path.name == AGENT.name)
    service.write_text(service.read_text().replace("KillMode=control-group", "KillMode=gently"))
    assert "gently" in _analyze("verify", "--man=no", service).stderr


@pytest.mark.requires("systemd-analyze")
@pytest.mark.parametrize("name", SERVICES)
def test_exposure_of_the_service(name: str, unit_files: list[Path]) -> None:
    """Printed for everyone, held to a threshold where there is no root."""
    threshold = MOST_EXPOSED if name in SERVERS else 100
    unit_file = next(path for path in unit_files if path.name == name)
    done = _analyze("security", "--offline=true", f"--threshold={threshold}", unit_file)
    print(done.stdout)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot judge a unit that is not loaded (systemd 250 can)")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.requires("root", "systemd-sysusers", "systemd-tmpfiles")
def test_users_and_directories_are_made_as_the_daemons_need_them(tmp_path: Path) -> None:
    """In a root directory of their own; twice, since packages do it at every upgrade."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\n")
    for _ in range(2):
        for tool, options in (("systemd-sysusers", []), ("systemd-tmpfiles", ["--create"])):
            files = sorted((SYSTEMD / f"{tool.removeprefix('systemd-')}.d").glob("*.conf"))
            done = subprocess.run(
                [tool, f"--root={tmp_path}", *options, *files], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert "rror" not in done.stderr
    users = dict(line.split(":")[::2][:2] for line in (tmp_path / "etc" / "passwd").read_text().splitlines())
    groups = {fields[0]: fields for fields in map(_fields, (tmp_path / "etc" / "group").read_text().splitlines())}
    for name in SERVERS:
        user = name.removesuffix(".service")
        made = os.stat(tmp_path / str(CONFIGURATIONS[name][1]).lstrip("/"))
        assert (made.st_mode & 0o777, str(made.st_uid)) == (0o700, users[user])
        assert user in groups["blockferry"][3].split(",")
    etc = os.stat(tmp_path / "etc" / "blockferry")
    assert (etc.st_mode & 0o777, etc.st_uid, str(etc.st_gid)) == (0o750, 0, groups["blockferry"][2])


def _fields(line: str) -> list[str]:
    return line.split(":")
