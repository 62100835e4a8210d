"""Commands on what process servers may send to the store: `upload-limits`, `set-upload-limits`. Called by ``cli.py``."""

from __future__ import annotations

from typing import Final, cast

import click
from pydantic import ValidationError
from rich.console import Console

from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.invocation import Invocation, json_option, pass_invocation, show
from config_server.migratectl.rendering import Cell, duration, table
from config_server.operator_plane import Page, ProcessServerStatus, UploadLimitsStatus
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
from replication.work_hours import WEEKDAYS, Weekday

WORKING_DAYS: Final[list[Weekday]] = ["mon", "tue", "wed", "thu", "fri"]


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


@click.command("set-upload-limits")
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
        return await server.send("PUT", path, UploadLimitsStatus, changed_limits(present.limits, **changes))

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
        "work_hours": _changed_hours(present.work_hours, work_limit, work_hours, work_days, time_zone),
    }
    return cast("UploadLimits", _checked(UploadLimits, values))


def _changed_hours(
    present: WorkHours | None, limit: str | None, hours: str | None, days: str | None, zone: str | None
) -> WorkHours | None:
    if hours == "off":
        if any(text is not None for text in (limit, days, zone)):
            raise SettingsError(
                "cannot set work hours and take them away at once",
                hint="--work-hours off stands alone, or with --limit and --threads",
            )
        return None
    if limit is hours is days is zone is None:
        return present
    if present is None and limit is None:
        raise SettingsError("cannot have work hours without a limit for them", hint="--work-limit 20 Mbps, or off")
    values: dict[str, object] = (
        {"days": WORKING_DAYS, "start": "08:00", "end": "18:00", "time_zone": "UTC"}
        if present is None
        else present.model_dump()
    )
    if limit is not None:
        values["limit_bits_per_s"] = _rate(limit, "--work-limit")
    if hours is not None:
        start, dash, end = hours.replace(" ", "").partition("-")
        if not dash:
            raise SettingsError(f"cannot use {hours[:64]!r} for --work-hours", hint="such as 08:00-18:00")
        values |= {"start": start.zfill(5), "end": end.zfill(5)}
    if days is not None:
        values["days"] = _days(days)
    if zone is not None:
        values["time_zone"] = zone
    return cast("WorkHours", _checked(WorkHours, values))


def _rate(text: str, option: str) -> int | None:
    return None if text == "off" else parse_rate(text, option)


def _threads(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"cannot use {text[:64]!r} for --threads", hint="a number, or default")
    return int(text)


def _days(text: str) -> list[Weekday]:
    """``mon-fri``, ``mon,wed``, ``fri-mon``; in the order of the week."""
    chosen: set[int] = set()
    names = [str(day) for day in WEEKDAYS]
    for part in text.lower().replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if first not in names or (dash and last not in names):
            raise SettingsError(
                f"cannot use {text[:64]!r} for --work-days", hint=f"such as mon-fri or mon,wed; of {', '.join(names)}"
            )
        begin, end = names.index(first), names.index(last if dash else first)
        chosen |= {number % 7 for number in range(begin, end + 1 if end >= begin else end + 8)}
    return [WEEKDAYS[number] for number in sorted(chosen)]


_OPTIONS: Final = {
    "threads_per_machine": "--threads",
    "start": "--work-hours",
    "end": "--work-hours",
    "time_zone": "--time-zone",
    "days": "--work-days",
}


def _checked(kind: type[UploadLimits | WorkHours], values: dict[str, object]) -> UploadLimits | WorkHours:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        if field == "limit_bits_per_s":
            option, hint = ("--limit" if kind is UploadLimits else "--work-limit"), LIMIT_RANGE
        else:
            option, hint = (
                _OPTIONS.get(field, "these hours"),
                "`migratectl set-upload-limits --help` says what each takes",
            )
        raise SettingsError(f"cannot use {option}: {first['msg']}", hint=hint) from error
