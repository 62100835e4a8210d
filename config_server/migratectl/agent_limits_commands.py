"""Commands on how much of its server an agent may use: `agent-limits`, `set-agent-limits`. Called by ``cli.py``."""

from __future__ import annotations

from typing import Final

import click
from rich.console import Console

from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.invocation import Invocation, json_option, pass_invocation
from config_server.migratectl.rendering import Cell, duration, size, table
from config_server.migratectl.showing import show
from config_server.migratectl.work_hours_options import HOURS_OPTIONS, changed_hours
from config_server.operator_plane import AgentLimitsStatus
from replication.agent_limits import (
    CPU_RANGE,
    NO_AGENT_LIMITS,
    READ_RANGE,
    AgentLimits,
    AgentLimitsInForce,
    LimitedHours,
    agent_limits_text,
    cores_text,
    read_rate_text,
)
from replication.errors import SettingsError
from replication.settings import parse_byte_rate

_COMMAND: Final = "set-agent-limits"
_HELP: Final = f"`migratectl {_COMMAND} --help` says what each option takes"
_READ_RATES: Final = f"{READ_RANGE}, or off,"
_CORES: Final = f"{CPU_RANGE}, or off,"


def _path(server: str) -> str:
    return f"/servers/{path_part(server)}/agent-limits"


@click.command("agent-limits")
@click.argument("server")
@json_option
@pass_invocation
def agent_limits(invocation: Invocation, server: str, as_json_wanted: bool) -> None:
    """Show how much of SERVER its agent may use for replication, and what it uses."""
    status = invocation.run(lambda connection: connection.get(_path(server), AgentLimitsStatus))
    show(status, as_json_wanted=as_json_wanted, otherwise=lambda console: _tell(console, status))


def _tell(console: Console, status: AgentLimitsStatus) -> None:
    observed = status.in_force
    console.print(f"{status.server}: set: {agent_limits_text(status.limits)}")
    if observed is None:
        if status.limits != NO_AGENT_LIMITS:
            console.print(
                "its agent has not said that it obeys: not heard since, or older than its limits (upgrade the agent)"
            )
        return
    rows: list[list[Cell]] = [
        ["reading", read_rate_text(observed.read_bytes_per_s), read_rate_text(observed.measured_read_bytes_per_s)],
        ["CPU", cores_text(observed.cpu_cores), cores_text(observed.measured_cpu_cores)],
        ["memory", "no limit" if observed.memory_bytes is None else size(observed.memory_bytes), "-"],
    ]
    console.print(table("RESOURCE", "IN FORCE", "MEASURED", rows=rows))
    for line in _rest(status, observed):
        console.print(line)


def _rest(status: AgentLimitsStatus, observed: AgentLimitsInForce) -> list[str]:
    lines = []
    if observed.work_hours:
        lines.append("work hours")
    if observed.changes_in_s is not None:
        lines.append(f"changes in {duration(observed.changes_in_s)}")
    if observed.lifted:
        lines.append("the limits rest: the workload stands still and waits for the agent")
    if observed.file != NO_AGENT_LIMITS:
        lines.append(f"its file asks for {agent_limits_text(observed.file)}; the lower limit counts")
    if (observed.told or NO_AGENT_LIMITS) != status.limits:
        lines.append(f"still obeys what it was told before: {agent_limits_text(observed.told or NO_AGENT_LIMITS)}")
    if observed.problem is not None:
        lines.append(observed.problem)
    return lines


@click.command(_COMMAND)
@click.argument("server")
@click.option(
    "--read-rate", help=f"Of all disks together, at all hours or outside of work hours: {READ_RANGE}, or off."
)
@click.option("--cpu", help=f"Processor time, at all hours or outside of work hours: {CPU_RANGE}, or off.")
@click.option("--work-read-rate", help=f"In work hours: {READ_RANGE}, or off.")
@click.option("--work-cpu", help=f"In work hours: {CPU_RANGE}, or off.")
@click.option(
    "--work-hours", help="Such as 08:00-18:00, or off; 22:00-06:00 ends on the next day.  [default: 08:00-18:00]"
)
@click.option("--work-days", help="Such as mon-fri or mon,wed,sat.  [default: mon-fri]")
@click.option("--time-zone", help="Whose clock counts, such as Europe/Berlin.  [default: UTC]")
@json_option
@pass_invocation
def set_agent_limits(invocation: Invocation, /, server: str, as_json_wanted: bool, **changes: str | None) -> None:
    """Limit what the agent of SERVER reads and how much CPU it uses; what is not given stays. In force within seconds."""
    if all(text is None for text in changes.values()):
        raise SettingsError("cannot set nothing: give at least one option", hint=f"`migratectl {_COMMAND} --help`")

    async def act(connection: ConfigServer) -> AgentLimitsStatus:
        present = await connection.get(_path(server), AgentLimitsStatus)
        limits, if_revision = changed_limits(present.limits, **changes), present.revision or None
        return await connection.send("PUT", _path(server), AgentLimitsStatus, limits, if_revision=if_revision)

    status = invocation.run(act)
    show(
        status,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(f"{status.server}: {agent_limits_text(status.limits)}"),
    )


def changed_limits(
    present: AgentLimits,
    *,
    read_rate: str | None = None,
    cpu: str | None = None,
    work_read_rate: str | None = None,
    work_cpu: str | None = None,
    work_hours: str | None = None,
    work_days: str | None = None,
    time_zone: str | None = None,
) -> AgentLimits:
    """``present`` with what the options say.

    :raises SettingsError: naming the option that cannot be used.
    """
    limits = {"read_bytes_per_s": ("--work-read-rate", _READ_RATES), "cpu_cores": ("--work-cpu", _CORES)}
    in_hours = HOURS_OPTIONS | limits
    values: dict[str, object] = {
        "read_bytes_per_s": present.read_bytes_per_s if read_rate is None else _rate(read_rate, "--read-rate"),
        "cpu_cores": present.cpu_cores if cpu is None else _cores(cpu, "--cpu"),
        "work_hours": changed_hours(
            LimitedHours,
            present.work_hours,
            {
                "read_bytes_per_s": (work_read_rate, lambda text: _rate(text, "--work-read-rate")),
                "cpu_cores": (work_cpu, lambda text: _cores(text, "--work-cpu")),
            },
            work_hours,
            work_days,
            time_zone,
            example="--work-read-rate '100 MB/s', --work-cpu 0.5, or off",
            check=lambda kind, hours: checked(kind, hours, in_hours, hint=_HELP),
        ),
    }
    outside = {"read_bytes_per_s": ("--read-rate", _READ_RATES), "cpu_cores": ("--cpu", _CORES)}
    return checked(AgentLimits, values, outside, hint=_HELP)


def _rate(text: str, option: str) -> int | None:
    return None if text == "off" else parse_byte_rate(text, option)


def _cores(text: str, option: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise SettingsError(f"cannot use {text[:64]!r} for {option}", hint=f"{CPU_RANGE}, or off") from error
