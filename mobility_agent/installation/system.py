"""The few changes to the system that installing, upgrading and uninstalling share: links, what systemd reads, the service itself.

Called by ``install``, ``upgrade`` and ``uninstall``. Every call is repeatable and blocks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Final

from mobility_agent.installation.places import COMMAND, CURRENT, PREFIX, PROGRAM, UNIT, Tree
from replication.durable_file import sync_directory
from replication.errors import Conflict, Permanent

START_TIMEOUT_S: Final = 180.0
_SCRIPT_TIMEOUT_S: Final = 120.0
_LAST_WORDS: Final = 5


def use_tree(tree: Tree) -> None:
    """From now on units and commands run ``tree``; whoever runs already goes on as it is. Atomic, and durable on return."""
    _link(CURRENT, tree.version)
    _link(PREFIX / PROGRAM, os.fspath(Path("..", CURRENT.relative_to(PREFIX), PROGRAM)))
    if COMMAND.exists() and not _is_ours(COMMAND):
        raise Conflict(f"cannot make {COMMAND}: it is there and not the agent's", hint="move it away")
    _link(COMMAND, f"../lib/{PREFIX.name}/{PROGRAM}")


def remove_links() -> None:
    if _is_ours(COMMAND):
        COMMAND.unlink()
    for link in (PREFIX / PROGRAM, CURRENT):
        link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (PREFIX / PROGRAM).parent.rmdir()


def _is_ours(command: Path) -> bool:
    return command.is_symlink() and PREFIX.name in os.readlink(command)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and os.readlink(path) == target:
        return
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(path)
    sync_directory(path.parent)


def install_system_files(tree: Tree) -> None:
    """Unit, group, directories and, where there is none, a sample configuration: what ``deploy/systemd/install.sh`` does."""
    _run([os.fspath(tree.install_script), "agent"], "install what systemd needs", _SCRIPT_TIMEOUT_S)


def enable_and_start() -> None:
    """Returns when the agent has told systemd that it is ready.

    :raises Permanent: if it does not; the message has its last words.
    """
    _run(["systemctl", "enable", "--quiet", UNIT], "enable the agent", _SCRIPT_TIMEOUT_S)
    restart()


def restart() -> None:
    """As ``enable_and_start``."""
    try:
        _run(["systemctl", "restart", UNIT], "start the agent", START_TIMEOUT_S)
    except Permanent as error:
        raise Permanent(
            f"{error.message}: {last_words()}", hint=f"journalctl -u {UNIT}; mobility-agent doctor"
        ) from error


def stop_and_disable() -> None:
    """The agent is stopped on return, and stays so after a boot; no unit at all is fine too."""
    if is_known():
        _run(["systemctl", "disable", "--now", "--quiet", UNIT], "stop the agent", START_TIMEOUT_S)


def reload() -> None:
    _run(["systemctl", "daemon-reload"], "have systemd read its units", _SCRIPT_TIMEOUT_S)


def is_active() -> bool:
    """Whether the agent runs or is about to."""
    return _says("is-active") in ("active", "activating", "reloading")


def is_known() -> bool:
    return _says("show", "--property=LoadState", "--value") == "loaded"


def last_words() -> str:
    """The newest lines of the agent's journal, as one."""
    done = subprocess.run(
        ["journalctl", "--unit", UNIT, "--lines", str(_LAST_WORDS), "--no-pager", "--output", "cat"],
        capture_output=True, text=True, check=False, timeout=_SCRIPT_TIMEOUT_S,
    )  # fmt: skip
    return " | ".join(done.stdout.split("\n")).strip(" |") or "its journal says nothing"


def _says(*words: str) -> str:
    command = ["systemctl", *words, UNIT]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_SCRIPT_TIMEOUT_S
    ).stdout.strip()


def _run(command: list[str], what: str, timeout_s: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Permanent(f"cannot {what}: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Permanent(f"cannot {what}: {said[-1] if said else f'{command[0]} failed with {done.returncode}'}")
