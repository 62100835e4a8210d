"""``mobility-agent uninstall``: the programs go; with ``--purge`` also configuration, identity, state and the tracking in the kernel.

Called by ``installation_commands``. Without ``--purge`` the tracking goes on, so that an agent that is installed again goes on as well. The
state directory may be anywhere and hold things of others: only what the agent puts there is removed, and the directory if that was all.
"""

from __future__ import annotations

import contextlib
import grp
import shutil
import subprocess
from pathlib import Path
from typing import Final

from mobility_agent import limits_in_force
from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, read_machine_facts
from mobility_agent.change_tracker.ebpf.pins import Pins
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.config import DEFAULT_STATE_DIR, AgentSettings, TrackerSettings
from mobility_agent.disk_memory import DISKS_DIRECTORY, DiskMemory
from mobility_agent.installation import system
from mobility_agent.installation.install import Say
from mobility_agent.installation.places import (
    CONFIGURATION,
    DROP_INS,
    GROUP,
    PREFIX,
    SYSTEM_FILES,
    TREES,
    installed_trees,
)
from mobility_agent.inventory import locate_disk
from mobility_agent.quiesce.freeze_record import RUN_DIRECTORY
from mobility_agent.quiesce.left_frozen import thaw_all_left
from replication.durable_file import DurableFile
from replication.errors import BlockferryError
from replication.identifiers import DiskId, parse_uuid
from replication.remote_access import INSTALLATIONS_DIRECTORY
from replication.settings import load_settings

STATE_ENTRIES: Final = (
    "identity",
    "desired.json",
    DISKS_DIRECTORY,
    "lock",
    limits_in_force.FILE_NAME,
    MACHINE_ID_FILE,
)
"""All that the agent keeps in its state directory."""
INSTALLER_REMAINS: Final = Path(INSTALLATIONS_DIRECTORY)
"""Of installations from the appliance that were killed; a passphrase may be in them."""
_MOST_NAMED: Final = 5


def uninstall(say: Say, *, purge: bool) -> None:
    """Nothing of the programs is left on return, and with ``purge`` nothing of the agent at all. What is gone already is no error."""
    thaw_what_was_left(say)  # first: stopping and removing write, and would wait for a thaw that nobody is left to do
    system.stop_and_disable()
    thaw_what_was_left(say)  # the agent that was stopped
    if purge:
        state_dir, tracker = configured(CONFIGURATION, say)
        discard_all_tracking(tracker, state_dir)
        remove_state(state_dir, say)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(INSTALLER_REMAINS)
        CONFIGURATION.unlink(missing_ok=True)
        shutil.rmtree(DROP_INS, ignore_errors=True)
    for path in SYSTEM_FILES:
        path.unlink(missing_ok=True)
        _remove_if_empty(path.parent)
    system.remove_links()
    for tree in list(installed_trees()):
        shutil.rmtree(tree.directory)
    for unfinished in TREES.glob(".*"):  # of an installation or download that was cut off
        shutil.rmtree(unfinished, ignore_errors=True)
    _remove_if_empty(TREES)
    _remove_if_empty(PREFIX)
    if purge:
        _leave_shared_places()
    system.reload()
    say(
        "nothing of the agent is left" if purge else "the programs are gone; configuration, state and tracking are kept"
    )


def thaw_what_was_left(say: Say, run_directory: Path = RUN_DIRECTORY) -> None:
    for mount_point in thaw_all_left(run_directory):
        say(f"thawed {mount_point}, which an agent that was killed left frozen")


def configured(configuration: Path, say: Say) -> tuple[Path, TrackerSettings]:
    """Where the state is, and how it tracks: by the configuration; where it cannot be read, which is said, by default."""
    try:
        settings = load_settings(AgentSettings, configuration)
    except BlockferryError as error:
        say(f"{error.message}: state and tracking are looked for where they are by default")
        return DEFAULT_STATE_DIR, TrackerSettings()
    return settings.state_dir, settings.tracker


def discard_all_tracking(settings: TrackerSettings, state_dir: Path) -> None:
    """No pin is left below the pin root, and I/O statistics that were switched on for tracking are off again."""
    pin_root = settings.pin_root
    for directory in sorted(pin_root.iterdir()) if pin_root.is_dir() else ():
        with contextlib.suppress(BlockferryError, OSError):
            _discard_whole(DiskId(parse_uuid(directory.name, "disk id")), settings, state_dir)
        pins = Pins(directory)
        if pins.exist():
            pins.remove()
    with contextlib.suppress(OSError):
        pin_root.rmdir()


def _discard_whole(disk: DiskId, settings: TrackerSettings, state_dir: Path) -> None:
    """By the tracker itself, which knows what to restore; only for a disk that is still there."""
    facts = read_machine_facts(substitute=state_dir / MACHINE_ID_FILE)
    found = locate_disk(disk, facts, (), DiskMemory(state_dir / DISKS_DIRECTORY).known())
    EbpfTracker.attach(
        found.path, granularity_bytes=settings.granularity_bytes, pin_directory=settings.pin_root / disk
    ).discard()


def remove_state(state_dir: Path, say: Say) -> None:
    """Nothing of the agent is in it on return, nor is the directory unless there are things of others in it, which is said."""
    for name in STATE_ENTRIES:
        path = state_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            DurableFile(path).remove()
    _remove_if_empty(state_dir)
    of_others = sorted(path.name for path in state_dir.iterdir()) if state_dir.is_dir() else []
    if of_others:
        say(f"{state_dir} stays, for what others put there: {', '.join(of_others[:_MOST_NAMED])}")


def _leave_shared_places() -> None:
    """What all daemons of a machine share goes with the last of them."""
    _remove_if_empty(CONFIGURATION.parent)
    _remove_if_empty(DEFAULT_STATE_DIR.parent)
    if CONFIGURATION.parent.exists():
        return
    with contextlib.suppress(KeyError):
        if not grp.getgrnam(GROUP).gr_mem:
            subprocess.run(["groupdel", GROUP], check=False, capture_output=True, timeout=30)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
