"""Commands on what process servers may send to the store: `upload-limits`, `set-upload-limits`. Called by ``cli.py``."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console

from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.invocation import Invocation, json_option, pass_invocation
from config_server.migratectl.rendering import Cell, duration, table
from config_server.migratectl.showing import show
from config_server.migratectl.work_hours_options import HOURS_OPTIONS, changed_hours
from config_server.operator_plane import Page, ProcessServerStatus, UploadLimitsStatus
from config_server.revisions import revision_of
from replication.errors import SettingsError
from replication.settings import parse_rate
from replication.upload_limits import (
    LIMIT_RANGE,
    MAX_THREADS_PER_MACHINE,
    MIN_THREADS_PER_MACHINE,
    UploadInForce,
    UploadLimits,
    WorkHours,
    limits_text,
    rate_text,
)

_COMMAND: Final = "set-upload-limits"
_HELP: Final = f"`migratectl {_COMMAND} --help` says what each option takes"
_LIMITS: Final = f"{LIMIT_RANGE}, or off,"


def limit_cells(server: ProcessServerStatus) -> list[Cell]:
    """Of the list of process servers: what is sent, and the limit that holds."""
    observed = None if server.observation is None else server.observation.upload
    if observed is None:
        return ["-", "-"]
    return [rate_text(observed.sent_bits_per_s), _in_force(observed)]


def _in_force(observed: UploadInForce) -> str:
    text = rate_text(observed.limit_bits_per_s)
    if observed.work_hours:
        text += " (work hours)"
    return text + (" (!)" if observed.problem else "")


@click.command("upload-limits")
@json_option
@pass_invocation
def upload_limits(invocation: Invocation, as_json_wanted: bool) -> None:
    """Show what each process server may send to the store, and what it sends."""
    page = invocation.run(lambda server: server.get("/process-servers", Page[ProcessServerStatus]))
    found = Page[UploadLimitsStatus](
        items=[
            UploadLimitsStatus(
                process_server=server.hostname,
                limits=server.upload_limits,
                revision=revision_of(server.upload_limits),
                in_force=None if server.observation is None else server.observation.upload,
            )
            for server in page.items
        ]
    )

    def tell(console: Console) -> None:
        rows = [_row(status) for status in found.items]
        console.print(table("PROCESS SERVER", "SET", "IN FORCE", "CHANGES IN", "SENDING", "THREADS", rows=rows))
        for status in found.items:
            if status.in_force is not None:
                _tell_rest(console, status, status.in_force)

    show(found, as_json_wanted=as_json_wanted, otherwise=tell)


def _row(status: UploadLimitsStatus) -> list[Cell]:
    observed = status.in_force
    if observed is None:
        return [status.process_server, limits_text(status.limits), *["-"] * 4]
    return [
        status.process_server,
        limits_text(status.limits),
        _in_force(observed),
        duration(observed.changes_in_s),
        rate_text(observed.sent_bits_per_s),
        str(observed.threads_per_machine),
    ]


def _tell_rest(console: Console, status: UploadLimitsStatus, observed: UploadInForce) -> None:
    if observed.file.limit_bits_per_s is not None or observed.file.work_hours is not None:
        console.print(
            f"{status.process_server}: its file asks for {limits_text(observed.file)}; the lower limit counts"
        )
    if observed.told is not None and observed.told != status.limits:
        console.print(f"{status.process_server}: still obeys what it was told before: {limits_text(observed.told)}")
    if observed.problem is not None:
        console.print(f"{status.process_server}: {observed.problem}")


@click.command(_COMMAND)
@click.argument("process_server")
@click.option("--limit", help=f"At all hours, or outside of work hours: {LIMIT_RANGE}, or off.")
@click.option("--work-limit", help=f"In work hours: {LIMIT_RANGE}, or off.")
@click.option(
    "--work-hours", help="Such as 08:00-18:00, or off; 22:00-06:00 ends on the next day.  [default: 08:00-18:00]"
)
@click.option("--work-days", help="Such as mon-fri or mon,wed,sat.  [default: mon-fri]")
@click.option("--time-zone", help="Whose clock counts, such as Europe/Berlin.  [default: UTC]")
@click.option(
    "--threads",
    help=f"Parallel uploads per machine: {MIN_THREADS_PER_MACHINE} to {MAX_THREADS_PER_MACHINE}, or default.",
)
@json_option
@pass_invocation
def set_upload_limits(
    invocation: Invocation, /, process_server: str, as_json_wanted: bool, **changes: str | None
) -> None:
    """Limit what PROCESS_SERVER sends to the store; what is not given stays. In force within seconds."""
    if all(text is None for text in changes.values()):
        raise SettingsError(
            "cannot set nothing: give at least one option", hint="`migratectl set-upload-limits --help`"
        )
    path = f"/process-servers/{path_part(process_server)}/upload-limits"

    async def act(server: ConfigServer) -> UploadLimitsStatus:
        present = await server.get(path, UploadLimitsStatus)
        limits = changed_limits(present.limits, **changes)
        return await server.send("PUT", path, UploadLimitsStatus, limits, if_revision=present.revision or None)

    status = invocation.run(act)
    show(
        status,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{status.process_server}: {limits_text(status.limits)}"),
    )


def changed_limits(
    present: UploadLimits,
    *,
    limit: str | None = None,
    work_limit: str | None = None,
    work_hours: str | None = None,
    work_days: str | None = None,
    time_zone: str | None = None,
    threads: str | None = None,
) -> UploadLimits:
    """``present`` with what the options say.

    :raises SettingsError: naming the option that cannot be used.
    """
    values: dict[str, object] = {
        "limit_bits_per_s": present.limit_bits_per_s if limit is None else _rate(limit, "--limit"),
        "threads_per_machine": present.threads_per_machine if threads is None else _threads(threads),
        "work_hours": changed_hours(
            WorkHours,
            present.work_hours,
            {"limit_bits_per_s": (work_limit, lambda text: _rate(text, "--work-limit"))},
            work_hours,
            work_days,
            time_zone,
            example="--work-limit 20 Mbps, or off",
            check=lambda kind, hours: checked(
                kind, hours, {**HOURS_OPTIONS, "limit_bits_per_s": ("--work-limit", _LIMITS)}, hint=_HELP
            ),
        ),
    }
    options = {
        "limit_bits_per_s": ("--limit", _LIMITS),
        "threads_per_machine": ("--threads", f"{MIN_THREADS_PER_MACHINE} to {MAX_THREADS_PER_MACHINE}, or default,"),
    }
    return checked(UploadLimits, values, options, hint=_HELP)


def _rate(text: str, option: str) -> int | None:
    return None if text == "off" else parse_rate(text, option)


def _threads(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"cannot use {text[:64]!r} for --threads", hint="a number, or default")
    return int(text)
