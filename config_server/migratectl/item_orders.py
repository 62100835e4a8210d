"""Orders about protected items: protect, cut a point, test, migrate, complete, pause, resync. Called by ``cli.py``.

An order is on its way before what reads its answer is imported: the API's documents and the tables are two thirds of what a command takes
to start. So its body is written here as it is sent; the configuration server, which reads it strictly, refuses what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from config_server.migratectl.connection import ConfigServer, path_part
from config_server.migratectl.invocation import (
    Invocation,
    confirm_option,
    confirmed,
    json_option,
    pass_invocation,
    start_job,
    wait_options,
)
from config_server.migratectl.login_options import login_options
from replication.settings import parse_duration

Body = Mapping[str, object]


def _item(server: str, verb: str) -> str:
    return f"/protected-items/{path_part(server)}{verb}"


def _start(
    invocation: Invocation,
    server: str,
    verb: str,
    body: Body | None,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    start_job(
        invocation,
        lambda connection: connection.ask("POST", _item(server, verb), body),
        wait=wait,
        timeout=timeout,
        as_json_wanted=as_json_wanted,
    )


def _change(invocation: Invocation, server: str, verb: str, body: Body | None, as_json_wanted: bool) -> None:
    answer = invocation.run(lambda connection: connection.ask("POST", _item(server, verb), body))
    from config_server.migratectl import ordered_job  # noqa: PLC0415 -- after the order is sent

    ordered_job.tell_changed(answer, as_json_wanted=as_json_wanted)


@click.command()
@click.argument("server")
@click.option("--disk", "disks", multiple=True, help="Only these disks (path or identifier); may be repeated.")
@click.option("--policy", default="default", show_default=True)
@click.option("--user", default=None, help="Log in as this user; by default the one that it was discovered with.")
@login_options
@click.option("--process-server", default=None, help="Install from this process server.")
@wait_options
@json_option
@pass_invocation
def protect(
    invocation: Invocation,
    /,
    server: str,
    disks: tuple[str, ...],
    policy: str,
    user: str | None,
    process_server: str | None,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
    **login: Path | None,
) -> None:
    """Enable replication of SERVER; with --wait until initial replication is over.

    A discovered server gets its agent first, installed over SSH, if it is said how to log in (--key-file, --password-file).
    """
    path = f"/servers/{path_part(server)}"
    if any(login.values()):
        from config_server.migratectl import installation_commands  # noqa: PLC0415 -- where an agent is installed, nobody is in a hurry

        request = installation_commands.installation_request(disks, policy, user, process_server, **login)
        if not wait:
            installation_commands.begin_installation(invocation, server, request, as_json_wanted=as_json_wanted)
            return

    async def order(connection: ConfigServer) -> bytes:
        if not any(login.values()):
            return await connection.ask("POST", f"{path}/protection", {"disks": list(disks) or None, "policy": policy})
        timeout_s = None if timeout is None else parse_duration(timeout, "--timeout")
        return await installation_commands.installed_and_protected(
            connection, server, request, timeout_s, quiet=as_json_wanted
        )

    start_job(invocation, order, wait=wait, timeout=timeout, as_json_wanted=as_json_wanted)


@click.command("create-recovery-point")
@click.argument("server")
@click.option("--consistency", type=click.Choice(["crash", "app"]), default="crash", show_default=True)
@wait_options
@json_option
@pass_invocation
def create_recovery_point(
    invocation: Invocation, server: str, consistency: str, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Cut a recovery point of SERVER now."""
    _start(invocation, server, "/recovery-points", {"consistency": consistency}, wait, timeout, as_json_wanted)


@click.command("test-migrate")
@click.argument("server")
@click.option(
    "--point", default="latest", show_default=True, help="latest (cut now), latest-processed, or a cut's identifier."
)
@click.option("--allow-suspect", is_flag=True, help="Accept a point that may miss writes.")
@wait_options
@json_option
@pass_invocation
def test_migrate(
    invocation: Invocation,
    server: str,
    point: str,
    allow_suspect: bool,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """Make isolated test disks from a recovery point; replication goes on. Clean up afterwards."""
    body = {"point": point, "allow_suspect": allow_suspect}
    _start(invocation, server, "/test-migration", body, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@wait_options
@json_option
@pass_invocation
def cleanup(invocation: Invocation, server: str, wait: bool, timeout: str | None, as_json_wanted: bool) -> None:
    """Delete the disks of the test migration; the drill counts after that."""
    _start(invocation, server, "/test-migration/clean-up", None, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@click.option(
    "--mode",
    type=click.Choice(["offline-disk", "live-root-disk", "writers-running"]),
    default="offline-disk",
    show_default=True,
    help="offline-disk: the disks are unmounted and claimed until the end; identity is proved.",
)
@wait_options
@json_option
@pass_invocation
def migrate(
    invocation: Invocation, server: str, mode: str, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Cut SERVER over: ship the final epoch, make the final disks, prove that they are identical."""
    _start(invocation, server, "/migration", {"mode": mode}, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@click.option("--delete-disks", is_flag=True, help="Also delete the disks that a finished migration made.")
@confirm_option
@json_option
@pass_invocation
def cancel(invocation: Invocation, server: str, delete_disks: bool, yes: bool, as_json_wanted: bool) -> None:
    """Go back to the source: it is released and replication goes on; the replica is kept."""
    if delete_disks:
        confirmed(f"Delete the final disks of {server}?", yes=yes)
    _change(invocation, server, "/migration/cancel", {"delete_disks": delete_disks}, as_json_wanted)


@click.command()
@click.argument("server")
@click.option(
    "--discard-source-changes",
    is_flag=True,
    help="Also if the source was, or may have been, written to since the proof, or its agent has been silent for hours.",
)
@confirm_option
@wait_options
@json_option
@pass_invocation
def complete(
    invocation: Invocation,
    server: str,
    discard_source_changes: bool,
    yes: bool,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """End the migration of SERVER: replica and recovery points are deleted, the final disks stay."""
    confirmed(f"Delete the replica and all recovery points of {server}? The final disks stay.", yes=yes)
    body = {"discard_source_changes": discard_source_changes}
    _start(invocation, server, "/migration/complete", body, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@json_option
@pass_invocation
def pause(invocation: Invocation, server: str, as_json_wanted: bool) -> None:
    """Ship nothing more; changes go on being tracked."""
    _change(invocation, server, "/pause", None, as_json_wanted)


@click.command()
@click.argument("server")
@json_option
@pass_invocation
def resume(invocation: Invocation, server: str, as_json_wanted: bool) -> None:
    """Go on where it was paused."""
    _change(invocation, server, "/resume", None, as_json_wanted)


@click.command("stop-replication")
@click.argument("server")
@confirm_option
@wait_options
@json_option
@pass_invocation
def stop_replication(
    invocation: Invocation, server: str, yes: bool, wait: bool, timeout: str | None, as_json_wanted: bool
) -> None:
    """Give the protection of SERVER up: replica, recovery points and keys are deleted."""
    confirmed(f"Delete the replica and all recovery points of {server}?", yes=yes)
    _start(invocation, server, "/stop", None, wait, timeout, as_json_wanted)


@click.command()
@click.argument("server")
@click.option("--disk", "disks", multiple=True, help="Only these disks (path or identifier); may be repeated.")
@click.option("--reason", default="asked for by the operator")
@click.option("--distrust-digests", is_flag=True, help="Send every block, not only what differs by its digest.")
@wait_options
@json_option
@pass_invocation
def resync(
    invocation: Invocation,
    server: str,
    disks: tuple[str, ...],
    reason: str,
    distrust_digests: bool,
    wait: bool,
    timeout: str | None,
    as_json_wanted: bool,
) -> None:
    """Compare SERVER's disks with the replica by digests and repair what differs."""

    async def order(connection: ConfigServer) -> bytes:
        chosen = list(disks)
        if chosen:
            from config_server.operator_plane import ServerDetail  # noqa: PLC0415 -- only where disks are to be found by their paths

            found = await connection.get(f"/servers/{path_part(server)}", ServerDetail)
            known = {disk.path: disk.disk for disk in found.inventory.disks} if found.inventory else {}
            chosen = [known.get(name, name) for name in chosen]
        body = {"disks": chosen, "reason": reason, "distrust_digests": distrust_digests}
        return await connection.ask("POST", _item(server, "/resync"), body)

    start_job(invocation, order, wait=wait, timeout=timeout, as_json_wanted=as_json_wanted)
