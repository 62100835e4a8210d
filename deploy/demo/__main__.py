"""``python -m deploy.demo``: the whole road on this machine, with checks. Exit code 0 only if every check held.

Environment: ``KEEP=1`` leaves the site running and says how to look at it and how to stop it; ``DEMO_DIR`` chooses the directory (default
``.demo`` in the working directory); ``PLAIN=1`` takes the way without root (plain file, ``scan`` tracker) even as root.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

from deploy.demo import demo_directory, preflight
from deploy.demo.operator import DemoError
from deploy.demo.remains import Remains, stop_command
from deploy.demo.road import Road
from deploy.demo.source import FileSystemSource, PlainFileSource, Source
from replication.service.console import PLAIN_WIDTH


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _clear(directory: Path, console: Console) -> bool:
    """Remove what an earlier demo left; False, said, if its site still runs or cannot be taken down."""
    remains = Remains.read(directory)
    if remains is not None:
        if remains.alive():
            console.print(f"[red]cannot start:[/red] the site of an earlier demo still runs under {directory}")
            console.print(f"To stop it: {stop_command(directory)}", soft_wrap=True)
            return False
        try:
            remains.end()
        except RuntimeError as error:
            console.print(f"[red]cannot start:[/red] an earlier demo was killed and cannot be cleared away: {error}")
            return False
    try:
        demo_directory.empty(directory)
    except OSError as error:
        console.print(f"[red]cannot start:[/red] what an earlier demo left cannot be removed: {error}")
        return False
    return True


def main() -> int:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)  # a log is not folded at 80 columns
    directory = Path(os.environ.get("DEMO_DIR", ".demo")).resolve()
    ready = preflight.check(directory.parent if not directory.exists() else directory)
    if ready.problems:
        for problem in ready.problems:
            console.print(f"[red]cannot start:[/red] {problem}")
        return 2
    try:
        claim = demo_directory.claim(directory)
    except (demo_directory.DirectoryRefusedError, OSError) as error:
        console.print(f"[red]cannot start:[/red] {error}")
        return 2
    try:
        return _walk(directory, console, is_root=ready.is_root)
    finally:
        os.close(claim)


def _walk(directory: Path, console: Console, *, is_root: bool) -> int:
    """The demo in a directory that is its own; its exit code."""
    if not _clear(directory, console):
        return 2
    keep = os.environ.get("KEEP") == "1"
    source: Source
    if is_root and os.environ.get("PLAIN") != "1":
        source = FileSystemSource(directory / "lab-server")
    else:
        source = PlainFileSource(directory / "lab-server")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    road = Road(directory, source, console, keep=keep)
    failed = True
    try:
        road.walk()
        failed = False
    except (DemoError, RuntimeError) as error:
        console.print(f"\n[red bold]The demo failed:[/red bold] {error}")
        console.print(f"The daemons' logs are in {directory}/*/log")
    except KeyboardInterrupt:
        console.print("\ninterrupted")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        road.end(failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
