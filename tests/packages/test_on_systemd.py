"""Installer and Debian packages on a Debian that boots with systemd: from nothing to a proved migration, and back to nothing.

One machine carries all roles: the appliance and the sink from Debian packages, the agent from its installer. The tests run in order on it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.harness import walk_plan
from tests.harness.booted_debian import BootedDebian, booted_debian
from tests.harness.built_packages import Built
from tests.harness.loop_disk import LoopDisk, loop_disk, run
from tests.harness.walked_pages import walk

pytestmark = [
    pytest.mark.heavy("installer and packages, built twice, on a Debian that boots with systemd"),
    pytest.mark.requires(
        "root", "loop", "mount", "ebpf", "debootstrap", "patchelf", "dpkg-deb", "systemd-nspawn", "nsenter", "mkfs.ext4"
    ),
    pytest.mark.timeout(900),
]

HOST: Final = "appliance.example.internal"
URL: Final = f"https://{HOST}"
DISK_BYTES: Final = 64 * 1024 * 1024
SERVERS: Final = ("azure-sink", "config-server", "process-server")
WAIT_S: Final = 120.0


@dataclass
class Site:
    """``before``: every file of the machine, and every pin of its kernel, before anything was installed."""

    machine: BootedDebian
    disk: LoopDisk
    built: Built
    before: frozenset[str]

    def give_installer(self, version: str) -> str:
        path = self.built.installer(version)
        self.machine.give(path, f"/root/{path.name}")
        return f"/root/{path.name}"

    def install_packages(self, version: str, *, agent: bool) -> None:
        packages = self.machine.root / "root" / "packages"
        shutil.rmtree(packages, ignore_errors=True)
        for path in self.built.packages(version):
            if agent or not path.name.startswith("blockferry-agent"):
                self.machine.give(path, f"/root/packages/{path.name}")
        self.machine.run("dpkg --force-unsafe-io --install /root/packages/*.deb")

    def generation(self) -> int:
        (record,) = (self.machine.root / "var/lib/blockferry/agent/disks").glob("*/protection.json")
        return int(json.loads(record.read_text())["grant"]["generation"])

    def read_bytes(self) -> float:
        """What the agent has read of its disk since it was started."""
        text = self.machine.run("curl --silent --fail http://127.0.0.1:9881/metrics")
        found = re.search(r"^blockferry_agent_disk_read_bytes_total(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
        return 0.0 if found is None else float(found[1])

    def processes(self, services: list[str]) -> frozenset[str]:
        """The main process of each that has one."""
        shown = self.machine.run(f"systemctl show --property=MainPID --value {' '.join(services)}")
        return frozenset(shown.split()) - {"0"}

    def status(self) -> dict[str, Any]:
        (item,) = json.loads(self.machine.run("migratectl status debian --json"))["items"]
        answer: dict[str, Any] = item
        return answer

    def write_and_await_point(self, name: str) -> None:
        """What is written now is in a recovery point on return: only that proves that replication goes on."""
        self.machine.run(f"head -c 1000000 /dev/urandom > /srv/{name}; sync /srv/{name}")
        self.machine.run("migratectl create-recovery-point debian --wait --timeout '150 s'")

    def await_health(self, *, but: frozenset[str] = frozenset()) -> None:
        """Until nothing is wrong, but for conditions that the test has brought about."""
        until(
            lambda: {each["code"] for each in self.status()["conditions"] if each["health"] != "healthy"} <= but,
            lambda: json.dumps(self.status(), indent=1),
        )

    def files(self) -> frozenset[str]:
        found = run("find", self.machine.root, "-xdev", "-printf", "/%P\\n").splitlines()
        # Mounted inside of it, so not seen from outside: of /run the agent's own; all pins, but not what the kernel puts there.
        inside = self.machine.try_to(
            "find /run/blockferry; find /sys/fs/bpf -mindepth 1 ! -name '*.debug'"
        ).stdout.splitlines()
        return frozenset([path for path in found if not _PASSING.match(path)] + inside)


_PASSING: Final = re.compile(
    r"/(root|run|tmp|srv|dev|proc|sys|var/(log|tmp|cache|lib/(apt|dpkg|systemd|private)))(/|$)|/etc/(\.pwd\.lock|\w+-$)"
)
"""What Debian itself writes while it runs, and what the tests put there."""


def until(holds: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.25)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("systemd")
    with (
        loop_disk(directory / "disk.img", DISK_BYTES) as disk,
        booted_debian(directory / "debian", [disk.device]) as machine,
    ):
        run("mkfs.ext4", "-q", disk.device)
        machine.be_called("debian", {"127.0.0.1": f"localhost debian {HOST} sink.example.internal"})
        site = Site(machine, disk, built, frozenset())
        site.before = site.files()
        machine.run(f"mount {disk.device} /srv")
        machine.let_agents_lock_memory()
        try:
            yield site
        finally:
            machine.try_to("fsfreeze --unfreeze /srv")  # a test that failed left it so: its disk could not be detached


def test_packages_install_an_appliance_that_runs_without_pythons_of_the_machine(site: Site) -> None:
    for path in site.built.packages(site.built.version):
        site.machine.give(path, f"/root/packages/{path.name}")
    for stop in walk_plan.APPLIANCE:
        walk(site.machine, stop)
    site.machine.run("systemctl enable --now blockferry-replication-appliance.target")
    for role in SERVERS:
        process = site.machine.run(f"systemctl show --property=MainPID --value blockferry-{role}")
        program = site.machine.run(f"readlink /proc/{process}/exe")
        assert program == f"/usr/lib/blockferry/{site.built.version}/bin/python3.11"
        assert (
            site.machine.try_to(f"systemd-analyze security --no-pager --threshold=30 blockferry-{role}").returncode == 0
        )
        assert f" {role}[" in site.machine.run(f"journalctl --unit blockferry-{role} --lines 20 --output short")


def test_installer_tells_what_does_not_fit_before_it_changes_anything(site: Site) -> None:
    installer = site.give_installer(site.built.version)
    assert "it is whole and runs here" in site.machine.run(f"sh {installer} check")
    files = site.files()
    damaged = site.machine.root / installer.lstrip("/")
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = site.machine.try_to(f"sh {installer} install --appliance {URL}")
    assert (refused.returncode, "is damaged" in refused.stderr) == (1, True)
    damaged.write_bytes(content.replace(b"oldest_glibc=", b"oldest_glibc=9", 1))
    refused = site.machine.try_to(f"sh {installer} install --appliance {URL}")
    assert (refused.returncode, "or later is needed" in refused.stderr) == (1, True)
    damaged.write_bytes(content)
    assert site.files() == files


def test_agent_is_installed_unattended_and_its_server_protected(site: Site) -> None:
    machine, installer = site.machine, f"/root/{site.built.installer(site.built.version).name}"
    options = f"--unattended --appliance {URL} --fingerprint $(cat /root/fingerprint)"
    refused = machine.try_to(f"sh {installer} install {options}")
    assert (refused.returncode, "--passphrase-file" in refused.stderr) == (2, True)
    machine.run(f"cp {installer} /var/tmp")
    for stop in walk_plan.AGENT_BY_HAND:
        walk(machine, stop)
    assert "enrolled already" in machine.run(f"sh {installer} {options}"), "it may be repeated"
    machine.run(f"migratectl protect debian --disk {site.disk.device} --wait --timeout '150 s'")
    site.write_and_await_point("first")
    site.await_health()
    assert list((machine.root / "var/lib/blockferry/agent/disks").iterdir())
    assert machine.run("find /sys/fs/bpf/blockferry -name 'link_*'"), "it tracks in the kernel"


def test_doctor_finds_everything_well_and_names_what_is_not(site: Site) -> None:
    well = json.loads(site.machine.run("mobility-agent doctor --json"))
    verdicts = {finding["check"]: finding["verdict"] for finding in well["findings"] if finding["check"] != "disks"}
    assert set(verdicts.values()) == {"ok"}, well
    assert verdicts.keys() >= {"kernel", "privileges", "service", "state", "certificate", "clock", "process server"}
    site.machine.run("systemctl stop blockferry-process-server")
    ill = site.machine.try_to("mobility-agent doctor")
    site.machine.run("systemctl start blockferry-process-server")
    assert ill.returncode == 1
    assert re.search(r"process server +failed", ill.stdout), ill.stdout


def test_paths_are_those_that_are_used(site: Site) -> None:
    folders = {each["path"]: each["exists"] for each in json.loads(site.machine.run("mobility-agent paths --json"))}
    assert not folders.pop("/var/lib/blockferry-install")  # but while an installation runs
    assert all(folders.values()), folders
    made = {
        path for path in site.files() - site.before if "blockferry" in path and (site.machine.root / path[1:]).is_file()
    }
    elsewhere = {path for path in made if not any(path.startswith(f"{folder}/") for folder in folders)}
    assert elsewhere
    assert all(
        re.match(
            r"/(usr/(bin|share|lib/(sysusers|tmpfiles)\.d)|lib/systemd|usr/lib/systemd|etc/(systemd|sysusers|tmpfiles))",
            path,
        )
        for path in elsewhere
    ), elsewhere


def test_upgrade_keeps_tracking_and_one_that_cannot_start_is_undone(site: Site) -> None:
    machine, following = site.machine, site.give_installer(site.built.next_version)
    generation = site.generation()
    machine.run(
        "head -c 1000000 /dev/urandom > /srv/before-upgrade; sync /srv/before-upgrade; systemctl stop blockferry-agent"
    )
    machine.run(
        "head -c 1000000 /dev/urandom > /srv/without-agent; sync /srv/without-agent; systemctl start blockferry-agent"
    )
    assert f"{site.built.next_version} runs" in machine.run(f"mobility-agent upgrade {following}")
    assert machine.run("mobility-agent --version").endswith(site.built.next_version)
    site.write_and_await_point("after-upgrade")
    assert site.generation() == generation, "it was resynchronized"
    assert site.read_bytes() < DISK_BYTES / 4, "the disk was read again"
    refused = machine.try_to(f"mobility-agent upgrade /root/{site.built.installer(site.built.version).name}")
    assert (refused.returncode, "--allow-downgrade" in refused.stderr) == (1, True)
    broken = machine.root / f"usr/lib/blockferry/agent/{site.built.version}/libexec/mobility-agent"
    text = broken.read_text()
    broken.write_text("import sys\nif 'run' in sys.argv: sys.exit('broken on purpose')\n" + text)
    failed = machine.try_to(f"sh /root/{site.built.installer(site.built.version).name} upgrade --allow-downgrade")
    broken.write_text(text)
    assert (failed.returncode, f"{site.built.next_version} runs again" in failed.stderr) == (1, True), failed
    site.write_and_await_point("after-undone-upgrade")
    assert site.generation() == generation


@pytest.mark.parametrize("signal", ["restart", "SIGKILL"])
def test_every_service_comes_back_and_replication_goes_on(site: Site, signal: str) -> None:
    generation = site.generation()
    services = [f"blockferry-{role}" for role in (*SERVERS, "agent")]
    if signal == "restart":
        site.machine.run(f"systemctl restart {' '.join(services)}")
    else:
        before = site.processes(services)
        site.machine.run(f"systemctl kill --kill-whom=main --signal=KILL {' '.join(services)}")
        until(lambda: not before & site.processes(services), lambda: "they were not killed")
        running = f"systemctl is-active {' '.join(services)}"
        until(
            lambda: site.machine.try_to(running).stdout.split() == ["active"] * 4,
            lambda: site.machine.try_to(running).stdout,
        )
    site.write_and_await_point(f"after-{signal}")
    assert site.generation() == generation


def test_key_encryption_key_may_be_a_credential_that_the_daemon_s_user_cannot_read(site: Site) -> None:
    """And it is still found after the reboot that comes next."""
    drop_in = site.machine.root / "etc/systemd/system/blockferry-config-server.service.d/credential.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nLoadCredential=key-encryption-key:/etc/blockferry/key-encryption-key\n")
    site.machine.run(
        "mv /var/lib/blockferry/config-server/key-encryption-key /etc/blockferry/; cd /etc/blockferry; "
        "chown root:root key-encryption-key; chmod 600 key-encryption-key; "
        "systemctl daemon-reload; systemctl restart blockferry-config-server; migratectl site; "
        "install -d -m 700 -o blockferry-config-server /var/backups/blockferry; "
        "install -m 400 -o blockferry-config-server /dev/null /etc/blockferry/backup-passphrase; "
        "echo five words drawn at random > /etc/blockferry/backup-passphrase"
    )
    in_a_shell = "runuser -u blockferry-config-server -- config-server"
    backup = "backup --out /var/backups/blockferry/one --passphrase-file /etc/blockferry/backup-passphrase"
    for command in ("init", backup):
        refused = site.machine.try_to(f"{in_a_shell} {command}")
        assert (refused.returncode, "systemd-run" in refused.stderr) == (2, True), refused
    site.machine.run(
        "systemd-run --pipe --wait --collect -p User=blockferry-config-server "
        f"-p LoadCredential=key-encryption-key:/etc/blockferry/key-encryption-key config-server {backup}; "
        f"{in_a_shell} restore --check {backup.replace('backup --out ', '')}; "
        "rm -r /var/backups/blockferry"
    )


def test_store_s_key_may_be_a_credential_that_no_daemon_s_user_can_read(site: Site) -> None:
    for role in SERVERS:
        drop_in = site.machine.root / f"etc/systemd/system/blockferry-{role}.service.d/store-key.conf"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text("[Service]\nLoadCredential=store-key:/etc/blockferry/store.key\n")
    services = " ".join(f"blockferry-{role}" for role in SERVERS)
    site.machine.run(
        "cd /etc/blockferry; sed -i '/^ *key_file:/d' config-server.yaml process-server.yaml azure-sink.yaml; "
        f"chown root:root store.key; chmod 600 store.key; systemctl daemon-reload; systemctl restart {services}"
    )
    site.write_and_await_point("with-credentials")


def test_everything_is_there_again_after_a_reboot(site: Site) -> None:
    generation = site.generation()
    site.machine.reboot()
    site.machine.run(f"mount {site.disk.device} /srv")
    # What was written while nothing tracked is found by a resync (and so it is after a reboot of a real machine).
    until(lambda: site.generation() > generation, lambda: "no resync has begun")
    until(lambda: site.status()["state"] == "replicating", lambda: json.dumps(site.status(), indent=1))
    site.write_and_await_point("after-reboot")
    # A point that was made right before the reboot, after the last look at the tracker, is rightly suspect.
    site.await_health(but=frozenset({"points-suspect"}))


def test_packages_are_upgraded_under_running_replication(site: Site) -> None:
    site.install_packages(site.built.next_version, agent=False)
    assert site.machine.run("config-server --version").endswith(site.built.next_version)
    services = [f"blockferry-{role}" for role in SERVERS]
    active = f"systemctl is-active {' '.join(services)}"
    until(
        lambda: site.machine.try_to(active).stdout.split() == ["active"] * 3, lambda: site.machine.try_to(active).stdout
    )
    site.write_and_await_point("after-packages")


def test_migration_is_proved_and_equal_to_the_disk(site: Site) -> None:
    machine = site.machine
    machine.run("umount /srv")
    machine.run("migratectl migrate debian --wait --timeout '150 s'")
    machine.run(
        "cd /var/tmp; azure-sink export --raw --endpoint "
        "https://sink.example.internal:10443/blockferry --account blockferry --key-file /etc/blockferry/store.key "
        "--ca-file /etc/blockferry/authorities.pem disks/debian-disk1 /var/tmp/migrated.img"
    )
    assert run("cmp", machine.root / "var/tmp/migrated.img", site.disk.device) == ""
    machine.run("migratectl complete debian --yes --wait --timeout '150 s'")


def leave_remains_of_a_killed_installation(machine: BootedDebian) -> None:
    machine.run(
        "install -d -m 700 /var/lib/blockferry-install/killed; echo x > /var/lib/blockferry-install/killed/passphrase"
    )


def leave_frozen(site: Site) -> None:
    """As an agent that was killed in a freeze together with its watchdog."""
    site.machine.run(f"mount {site.disk.device} /srv")
    device = site.disk.device.stat().st_rdev
    mount = {"mount_point": "/srv", "fs_type": "ext4", "source": "-", "device": [os.major(device), os.minor(device)]}
    boot = site.machine.run("cat /proc/sys/kernel/random/boot_id").strip()  # a container's is its own
    record = json.dumps({"boot": boot, "mounts": [mount]})
    site.machine.run(
        f"mkdir -p /run/blockferry; echo '{record}' > /run/blockferry/agent-{uuid.uuid4()}.frozen; fsfreeze --freeze /srv"
    )


def assert_thawed(site: Site) -> None:
    assert site.machine.try_to("fsfreeze --unfreeze /srv").returncode != 0
    site.machine.run("umount /srv")


def test_uninstall_keeps_what_purge_removes(site: Site) -> None:
    machine = site.machine
    machine.run("migratectl set-agent-limits debian --read-rate '50 MB/s'")
    remembered = machine.root / "var/lib/blockferry/agent/limits.json"
    until(remembered.exists, lambda: machine.try_to("migratectl agent-limits").stdout)
    machine.run("mobility-agent uninstall --yes")
    assert remembered.exists()
    assert (machine.root / "var/lib/blockferry/agent/identity").exists()
    assert machine.try_to("mobility-agent --version").returncode != 0
    installer = f"/root/{site.built.installer(site.built.next_version).name}"
    machine.run(f"sh {installer} --unattended --appliance {URL} --fingerprint $(cat /root/fingerprint)")
    leave_remains_of_a_killed_installation(machine)
    leave_frozen(site)
    assert "thawed /srv" in machine.run("mobility-agent uninstall --purge --yes")
    assert_thawed(site)
    left = [
        path
        for path in site.files() - site.before
        if re.search("agent|install/|^/run/|^/sys/", path) and "process" not in path
    ]
    of_others = ("/usr/lib/blockferry/", "/var/lib/blockferry/config-server/downloads/")
    assert [path for path in left if not path.startswith(of_others)] == []
    assert [path for path in left if path.startswith(("/run/", "/sys/"))] == []


def test_purged_packages_leave_nothing(site: Site) -> None:
    site.install_packages(site.built.next_version, agent=True)
    leave_remains_of_a_killed_installation(site.machine)
    site.machine.run("mobility-agent --version; systemctl cat blockferry-agent > /dev/null")
    leave_frozen(site)
    site.machine.run("dpkg --purge $(dpkg-query --showformat '${Package} ' --show 'blockferry-*')")
    assert_thawed(site)
    assert site.files() - site.before == frozenset()
    assert "blockferry" not in site.machine.run("getent passwd; getent group")
