"""Waiting for a job with ``--wait``: a progress bar (bytes, rate, ETA) on a terminal, a line at each change otherwise.

Called by the commands that start jobs. Interrupting the wait leaves the job running.
"""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from config_server.migratectl.connection import ConfigServer, WaitTimedOut
from config_server.migratectl.rendering import duration, rate, size
from config_server.operator_plane import JobStatus

POLL_S: Final = 0.5
QUIET_POLL_S: Final = 20.0
"""Between two looks while nothing is to be shown: the server answers at once when the job has ended."""

PLAIN_LINE_EVERY_S: Final = 10.0
_OPEN: Final = ("in-progress", "waiting-for-input")


class _Figures(ProgressColumn):
    """Bytes, rate and ETA as the server tells them."""

    def render(self, task: Task) -> Text:
        job = task.fields.get("job")
        return Text("" if job is None else figures(job))


def figures(job: JobStatus) -> str:
    """``1.2 GiB of 2.0 GiB, 80 MiB/s, ETA 10 s``; empty while there is nothing to count."""
    if not job.total_bytes:
        return ""
    parts = [f"{size(job.done_bytes)} of {size(job.total_bytes)}"]
    if job.rate_bytes_per_s:
        parts.append(rate(job.rate_bytes_per_s))
    if job.eta_s is not None:
        parts.append(f"ETA {duration(job.eta_s)}")
    return ", ".join(parts)


async def wait_for_job(
    server: ConfigServer, job: JobStatus, console: Console, *, timeout_s: float | None, quiet: bool
) -> JobStatus:
    """Look until the job has ended; returns it. ``quiet``: show nothing (``--json``).

    :raises WaitTimedOut: if it has not ended after ``timeout_s``; the job goes on.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Figures(),
        console=console,
        transient=False,
        disable=quiet or not console.is_terminal,
    )
    lines = None if quiet or console.is_terminal else _Lines(console)
    with bar:
        task = bar.add_task(_description(job), total=None, job=job)
        while job.state in _OPEN:
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimedOut(
                    f"cannot wait longer for job {job.id}: it is {job.state} ({job.step})",
                    hint="the job goes on; `migratectl jobs` shows it",
                )
            wait_s = QUIET_POLL_S if quiet else POLL_S
            if deadline is not None:
                wait_s = min(wait_s, max(0.0, deadline - time.monotonic()))
            job = await server.get(f"/jobs/{job.id}", JobStatus, wait_s=str(wait_s))
            bar.update(
                task,
                description=_description(job),
                total=job.total_bytes or None,
                completed=job.done_bytes,
                job=job,
            )
            if lines is not None:
                lines.show(job)
    return job


def _description(job: JobStatus) -> str:
    return f"{job.kind} {job.server}: {job.step}" + (f" ({job.message})" if job.message else "")


class _Lines:
    """One line at each change of state, step or message, and now and then the figures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ("", "", "")
        self._at_s = 0.0

    def show(self, job: JobStatus) -> None:
        now = (job.state, job.step, job.message)
        if now == self._shown and time.monotonic() - self._at_s < PLAIN_LINE_EVERY_S:
            return
        self._shown, self._at_s = now, time.monotonic()
        counted = figures(job)
        self._console.print(f"{_description(job)}{': ' + counted if counted else ''}")
