"""The operators' pages, walked from nothing to a migrated server; in between, agents are pushed and the pushes broken off.

One Debian is sink, appliance and server: the packages as they are built, the real installer from the real ``/downloads``, Debian's sshd.
What is done comes from the pages themselves (``tests/harness/walk_plan.py``); the tests run in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness import pushed_agent, walk_plan
from tests.harness.booted_debian import BootedDebian, booted_debian
from tests.harness.built_packages import Built
from tests.harness.loop_disk import LoopDisk, loop_disk, run
from tests.harness.waiting import wait_until
from tests.harness.walked_pages import Stop, walk

pytestmark = [
    pytest.mark.heavy("the operators' pages, walked on a Debian that boots with systemd, packages and installer built"),
    pytest.mark.requires(
        *("root", "loop", "mount", "ebpf", "debootstrap", "patchelf", "dpkg-deb", "systemd-nspawn", "nsenter"),
        *("mkfs.ext4", "ip"),
    ),
    pytest.mark.timeout(900),
]

DISK_BYTES = 64 * 1024 * 1024
LOGINS = r"""
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
useradd --create-home --groups sudo --shell /bin/bash admin
for home in ~root ~admin; do mkdir -p $home/.ssh; cp /root/.ssh/id_ed25519.pub $home/.ssh/authorized_keys; done
chown -R admin: ~admin/.ssh
printf 'root:the password of root\nadmin:the password of admin\n' | chpasswd
printf 'Port 22\nPort 2222\nPermitRootLogin yes\n' > /etc/ssh/sshd_config.d/pages.conf
systemctl restart ssh
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the pages are walked."""

    machine: BootedDebian
    disk: LoopDisk


def walk_all(ground: Ground, plan: tuple[Stop, ...]) -> None:
    for stop in plan:
        walk(ground.machine, stop)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, built: Built) -> Iterator[Ground]:
    directory = tmp_path_factory.mktemp("pages")
    with (
        loop_disk(directory / "disk.img", DISK_BYTES) as disk,
        booted_debian(directory / "debian", [disk.device]) as machine,
    ):
        run("mkfs.ext4", "-q", disk.device)
        machine.be_called("web-1", walk_plan.ADDRESSES)
        machine.run(f"mount {disk.device} /srv; {LOGINS}")
        machine.let_agents_lock_memory()
        for path in built.packages(built.version):
            where = "agent-package" if path.name.startswith("blockferry-agent") else "packages"
            machine.give(path, f"/root/{where}/{path.name}")
        for version in (built.version, built.next_version):
            machine.give(built.installer(version), f"/var/tmp/{built.installer(version).name}")
        yield Ground(machine, disk)


def test_appliance_is_installed(ground: Ground) -> None:
    walk_all(ground, walk_plan.APPLIANCE)
    walk_all(ground, walk_plan.AGENT_BY_HAND[:1])


def test_servers_are_discovered(ground: Ground) -> None:
    walk_all(ground, walk_plan.DISCOVERY)
    # One that hangs, since nobody answers behind the open port, is ended.
    ground.machine.run(
        "systemctl kill --kill-whom=main --signal=STOP ssh; trap 'systemctl kill --kill-whom=main --signal=CONT ssh' EXIT; cd /root; "
        "migratectl discover web-1 --key-file .ssh/id_ed25519 > discovery 2>&1 & asking=$!; tries=200; "
        "until begun=$(grep -o '[0-9a-f-]\\{36\\}' discovery); do tries=$((tries - 1)); [ $tries -gt 0 ]; sleep 0.1; done; "
        "migratectl cancel-discovery $(echo $begun | cut -d ' ' -f 1); ! wait $asking"
    )


def test_cancelled_push_leaves_nothing(ground: Ground) -> None:
    pushed_agent.cancel_while_copying(ground.machine, "web-1")
    assert pushed_agent.newest(ground.machine)["state"] == "cancelled"
    wait_until(lambda: pushed_agent.left(ground.machine) == set())


def test_push_whose_installer_is_killed_leaves_what_the_next_one_removes(ground: Ground) -> None:
    failed = pushed_agent.kill_installer(ground.machine, "web-1")
    assert (failed["state"], failed["problem"]["code"]) == ("failed", "installer-failed")
    (unfinished,) = pushed_agent.left(ground.machine)
    assert unfinished.startswith(f"{pushed_agent.PROGRAMS}/.unfinished-")


def test_push_goes_on_after_its_connection_was_cut_and_ends_with_a_recovery_point(ground: Ground, built: Built) -> None:
    (ground.machine.root / "var/lib/blockferry-install/of-a-killed-one").mkdir(parents=True)
    temporary = ground.machine.run("ls -A /tmp")
    walk_all(ground, walk_plan.BROKEN_OFF_PUSH)
    walk_all(ground, walk_plan.PUSH)
    assert pushed_agent.left(ground.machine) == set()
    assert ground.machine.run("ls -A /tmp") == temporary
    assert ground.machine.run("mobility-agent --version").endswith(built.version)
    again = ground.machine.try_to("migratectl protect web-1 --key-file /root/.ssh/id_ed25519")
    assert (again.returncode, "has one that has enrolled" in again.stderr) == (1, True), again


@pytest.mark.parametrize("stop", walk_plan.UNPROTECTED, ids=str)
def test_server_is_measured_and_protected(ground: Ground, stop: Stop) -> None:
    walk(ground.machine, stop)


@pytest.mark.parametrize("stop", walk_plan.PROTECTED, ids=str)
def test_site_is_operated(ground: Ground, stop: Stop) -> None:
    walk(ground.machine, stop)


def test_site_is_moved_to_another_account(ground: Ground) -> None:
    machine = ground.machine

    def generation() -> int:
        (item,) = json.loads(machine.run("migratectl status web-1 --json"))["items"]
        return int(item["disks"][0]["observation"]["generation"])

    before = generation()
    machine.run("head -c 1000000 /dev/urandom > /srv/before-the-move; sync /srv/before-the-move")
    *stopping, starting, pointing = walk_plan.ANOTHER_ACCOUNT
    walk_all(ground, tuple(stopping))
    machine.run("head -c 1000000 /dev/urandom > /srv/during-the-move; sync /srv/during-the-move")
    walk_all(ground, (starting, pointing))
    assert generation() > before
    points = json.loads(machine.run("migratectl recovery-points web-1 --json"))["items"]
    assert points, "there is a point in the new account"
    assert all(point["suspect"] is None for point in points)
    machine.run("head -c 1000000 /dev/urandom > /srv/after-the-move; sync /srv/after-the-move")


def test_server_is_migrated_and_its_disk_equal(ground: Ground) -> None:
    walk_all(ground, walk_plan.MIGRATION)
    assert run("cmp", ground.machine.root / "root/web-1.raw", ground.disk.device) == ""


def test_agent_is_upgraded_removed_installed_as_a_package_and_the_process_server_drained(
    ground: Ground, built: Built
) -> None:
    machine = ground.machine
    (server,) = json.loads(machine.run("migratectl servers --json"))["items"]
    (machine.root / "root/agent-id").write_text(server["id"])
    following = f"/var/tmp/{built.installer(built.next_version).name}"
    machine.run(f"runuser -u blockferry-config-server -- config-server add-installer {following}")
    upgrade, *others = walk_plan.AFTERWARDS
    walk(machine, upgrade)
    assert machine.run("mobility-agent --version").endswith(built.next_version)
    walk_all(ground, tuple(others))
