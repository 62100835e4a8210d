"""Commands on the site: login, servers, check, policies, passphrases, events. Called by ``cli.py``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from rich.console import Console

from config_server.core.target_disks import DISK_TYPES, DiskType
from config_server.migratectl.checked_input import checked
from config_server.migratectl.connection import (
    AUTHORITY_NAME,
    CONFIG_NAME,
    ClientSettings,
    ConfigServer,
    Connection,
    as_json,
    config_directory,
    path_part,
    stored_settings_text,
)
from config_server.migratectl.discovery_rendering import tell_discovery
from config_server.migratectl.invocation import EXIT_NOT_READY, Invocation, guarded, json_option, pass_invocation
from config_server.migratectl.rendering import (
    Cell,
    coloured,
    duration,
    health_word,
    heard_ago,
    server_table,
    size,
    table,
)
from config_server.migratectl.showing import show
from config_server.operator_plane import (
    EventStatus,
    Page,
    PassphraseGrant,
    PassphraseRequest,
    PassphraseStatus,
    Policy,
    PolicyStatus,
    ReadinessReport,
    ServerDetail,
    ServerSummary,
    SiteStatus,
)
from replication.config_server_urls import check_standby_urls
from replication.control_plane import ENROLLING_ROLES, EnrollingRole
from replication.durable_file import DurableFile, make_directory_durably
from replication.enrolment import fetch_authority
from replication.errors import PeerUnavailable
from replication.service.console import make_console
from replication.settings import parse_duration
from replication.terminal_text import one_line

FOLLOW_S = 1.0
POLICY_OPTIONS: Final = {
    "name": ("this name for a policy", "up to 100 letters, digits, blanks and . _ -, a letter or a digit first,"),
    "recovery_point_interval_s": ("--recovery-point-interval", "10 s to 24 h"),
    "epoch_interval_s": ("--epoch-interval", "200 ms to 1 h"),
    "app_consistent_interval_s": ("--app-consistent-interval", "1 h to 12 h, or off,"),
    "rpo_threshold_s": ("--rpo-threshold", "10 s or more"),
    "retention_s": ("--retention", "0 to 15 d"),
    "freeze_budget_s": ("--freeze-budget", "a time up to 30 s"),
}
"""Field of ``Policy`` → option, and what it takes."""


@click.command()
@click.option(
    "--url",
    "urls",
    required=True,
    multiple=True,
    help="https://HOST[:PORT] of the configuration server; repeated, those of a site with several.",
)
@click.option("--fingerprint", required=True, help="As `config-server show-fingerprint` prints it on the appliance.")
@click.option(
    "--token-file",
    required=True,
    type=click.Path(path_type=Path),
    help="File with your token, or with the one-time secret of a new site.",
)
def login(urls: tuple[str, ...], fingerprint: str, token_file: Path) -> None:
    """Compare the authority's fingerprint and store address, authority and token file for later commands."""

    async def act() -> SiteStatus:
        if len(urls) > 1:
            check_standby_urls(urls[0], urls[1:])
        authority = await _first_authority(urls, fingerprint)
        directory = config_directory()
        make_directory_durably(directory)
        pem = directory / AUTHORITY_NAME
        DurableFile(pem).replace(authority.public_bytes(serialization.Encoding.PEM))
        async with ConfigServer(Connection.resolve(urls, token, pem)) as server:
            found = await server.get("/site", SiteStatus)
        url, *standby_urls = (url.rstrip("/") for url in urls)
        text = stored_settings_text(ClientSettings(url, tuple(standby_urls), token, pem))
        DurableFile(directory / CONFIG_NAME).replace(text.encode())
        return found

    token = token_file.resolve()
    found = guarded(act)
    click.echo(
        f"logged in at {', '.join(urls)} (version {found.version}); stored in {config_directory() / CONFIG_NAME}"
    )


async def _first_authority(urls: Sequence[str], fingerprint: str) -> x509.Certificate:
    """From the first that can be reached: what it says is compared with ``fingerprint`` anyway."""
    for tried, url in enumerate(urls, start=1):
        try:
            return await fetch_authority(url, fingerprint)
        except PeerUnavailable:
            if tried == len(urls):
                raise
    raise AssertionError("there is at least one address")


@click.command()
@json_option
@pass_invocation
def site(invocation: Invocation, as_json_wanted: bool) -> None:
    """Version, authority, store, health, webhook, and how many items are in which state."""
    found = invocation.run(lambda server: server.get("/site", SiteStatus))

    def tell(console: Console) -> None:
        console.print(f"version:      {found.version}")
        console.print(f"authority:    {found.authority_fingerprint}")
        console.print(
            f"store:        {'reachable' if found.store_reachable else found.store_problem or 'not asked yet'}"
        )
        raised = ", ".join(f"{count} {severity}" for severity, count in sorted(found.alerts.items()))
        console.print(f"health:       {found.health} ({raised or 'no'} alerts)")
        if found.webhook is not None:
            webhook = found.webhook
            console.print(
                f"webhook:      {webhook.receiver}: {webhook.waiting} waiting, {webhook.given_up} given up, "
                f"last delivered {webhook.last_delivered_at or 'never'}"
                + (f"; {webhook.problem}" if webhook.problem else "")
            )
        console.print(f"servers:      {found.servers}")
        for state, count in sorted(found.items_by_state.items()):
            console.print(f"{count:>4} {state}")
        if found.configuration_servers:
            console.print(server_table(found.configuration_servers))

    show(found, as_json_wanted=as_json_wanted, otherwise=tell)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def servers(context: click.Context, as_json_wanted: bool) -> None:
    """List the servers: those whose agents have enrolled and those that were discovered; see also `servers show`."""
    if context.invoked_subcommand is not None:
        return
    invocation = context.find_object(Invocation)
    if invocation is None:
        raise AssertionError("the group sets it")
    page = invocation.run(_all_servers)
    rows: list[list[Cell]] = [
        [
            server.hostname,
            _state(server),
            health_word(server.item.health if server.item else None),
            f"{server.disk_count} ({size(server.disk_bytes)})",
            server.platform or "-",
            server.operating_system or "-",
            heard_ago(server.heard_age_s, known=server.heard_age_known),
        ]
        for server in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(
            table("SERVER", "STATE", "HEALTH", "DISKS", "PLATFORM", "SYSTEM", "HEARD AGO", rows=rows)
        ),
    )


def _state(server: ServerSummary) -> str:
    if server.item is not None:
        return server.item.state
    found = server.discovery
    if server.enrolled_at is None and found is not None:
        if found.offered_host_key is not None:
            return "host key changed" if found.host_key else "host key not accepted"
        return "discovered"
    return "not protected"


async def _all_servers(server: ConfigServer) -> Page[ServerSummary]:
    items: list[ServerSummary] = []
    after: str | None = None
    while True:
        page = await server.get("/servers", Page[ServerSummary], after=after, limit=1000)
        items += page.items
        if page.next is None:
            return Page[ServerSummary](items=items)
        after = page.next


@servers.command("show")
@click.argument("server")
@json_option
@pass_invocation
def show_server(invocation: Invocation, server: str, as_json_wanted: bool) -> None:
    """A server's inventory: system, trackers, disks with what is on them."""
    found = invocation.run(lambda connection: connection.get(f"/servers/{path_part(server)}", ServerDetail))

    def tell(console: Console) -> None:
        inventory = found.inventory
        if found.server.discovery is not None:
            tell_discovery(console, found)
        if inventory is None:
            if found.discovered is None:
                console.print(f"{found.server.hostname}: no inventory yet")
            return
        console.print(
            f"{inventory.hostname}: {inventory.operating_system}, kernel {inventory.kernel}, {inventory.platform}"
        )
        console.print(f"{inventory.cpu_count} CPUs, {size(inventory.memory_bytes)}, {', '.join(inventory.addresses)}")
        for tracker in inventory.trackers:
            console.print(f"tracker {tracker.kind}: {'available' if tracker.available else tracker.reason}")
        rows = [
            [
                disk.path,
                disk.disk,
                size(disk.size_bytes),
                ", ".join(disk.content),
                disk.not_protectable or "can be protected",
            ]
            for disk in inventory.disks
        ]
        console.print(table("DISK", "IDENTIFIER", "SIZE", "CONTENT", "PROTECTION", rows=rows))

    show(found, as_json_wanted=as_json_wanted, otherwise=tell)


@servers.command("allow-reenrolment")
@click.argument("server")
@pass_invocation
def allow_reenrolment(invocation: Invocation, server: str) -> None:
    """Let a reinstalled server, or a process server, enrol anew, once, within an hour."""
    invocation.run(lambda connection: connection.order("POST", f"/servers/{path_part(server)}/reenrolment"))
    click.echo(f"{server} may enrol anew once within an hour")


@click.command()
@click.argument("server")
@click.option("--disk", "disks", multiple=True, help="Only these disks (path or identifier); may be repeated.")
@json_option
@pass_invocation
def check(invocation: Invocation, server: str, disks: tuple[str, ...], as_json_wanted: bool) -> None:
    """Say whether protecting SERVER will work, and why not; exits 3 if something stands against it."""
    path = f"/servers/{path_part(server)}/readiness"
    report = invocation.run(
        lambda connection: connection.get(path, ReadinessReport, disks=",".join(disks) if disks else None)
    )
    rows: list[list[Cell]] = [[coloured(item.grade), item.name, item.message, item.remedy] for item in report.checks]

    def tell(console: Console) -> None:
        console.print(table("VERDICT", "CHECK", "FOUND", "REMEDY", rows=rows))
        console.print(
            f"{report.server} can be protected" if report.ready else f"{report.server} cannot be protected yet"
        )

    show(report, as_json_wanted=as_json_wanted, otherwise=tell)
    if not report.ready:
        sys.exit(EXIT_NOT_READY)


@click.command()
@json_option
@pass_invocation
def policies(invocation: Invocation, as_json_wanted: bool) -> None:
    """List the replication policies."""
    page = invocation.run(lambda server: server.get("/policies", Page[PolicyStatus]))
    rows = [
        [
            policy.name,
            duration(policy.recovery_point_interval_s),
            "off" if policy.app_consistent_interval_s is None else duration(policy.app_consistent_interval_s),
            duration(policy.retention_s) if policy.retention_s else "latest only",
            duration(policy.rpo_threshold_s),
            policy.target_disk_type,
        ]
        for policy in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(
            table(
                "POLICY", "CRASH-CONSISTENT", "APP-CONSISTENT", "RETENTION", "RPO THRESHOLD", "TARGET DISKS", rows=rows
            )
        ),
    )


@click.command("set-policy")
@click.argument("name")
@click.option("--recovery-point-interval", help="Such as 5 min; at least 10 s.")
@click.option("--epoch-interval", help="Such as 1 s.")
@click.option("--app-consistent-interval", help="1 h to 12 h, or off.")
@click.option("--rpo-threshold", help="Above it an item is no longer healthy.")
@click.option("--retention", help="Up to 15 d; 0 keeps the latest point only.")
@click.option("--freeze-budget", help="How long a file system may be frozen.")
@click.option("--target-disk-type", type=click.Choice(DISK_TYPES), help="What is to be made of the disks.")
@json_option
@pass_invocation
def set_policy(
    invocation: Invocation,
    /,
    name: str,
    as_json_wanted: bool,
    target_disk_type: DiskType | None,
    **changes: str | None,
) -> None:
    """Make the policy NAME, or change it; what is not given stays (or is the default)."""

    async def act(server: ConfigServer) -> PolicyStatus:
        present = {policy.name: policy for policy in (await server.get("/policies", Page[PolicyStatus])).items}
        values: dict[str, object] = (
            present[name].model_dump(exclude={"revision"}) if name in present else {"name": name}
        )
        for option, text in changes.items():
            if text is not None:
                values[f"{option}_s"] = None if text == "off" else parse_duration(text, f"--{option.replace('_', '-')}")
        if target_disk_type is not None:
            values["target_disk_type"] = target_disk_type
        policy = checked(
            Policy, values, POLICY_OPTIONS, hint="`migratectl set-policy --help` says what each option takes"
        )
        if name in present:
            # With what was read: what another changed meanwhile stays.
            changed = PolicyStatus(**policy.model_dump(), revision=present[name].revision)
            return await server.send("PUT", f"/policies/{path_part(name)}", PolicyStatus, changed)
        return await server.send("POST", "/policies", PolicyStatus, policy)

    policy = invocation.run(act)
    show(policy, as_json_wanted=as_json_wanted, otherwise=lambda console: console.print(f"policy {policy.name} is set"))


@click.command("delete-policy")
@click.argument("name")
@pass_invocation
def delete_policy(invocation: Invocation, name: str) -> None:
    """Delete the policy NAME, unless something is protected under it."""
    invocation.run(lambda server: server.order("DELETE", f"/policies/{path_part(name)}"))
    click.echo(f"policy {name} is deleted")


@click.command("create-enrolment-passphrase")
@click.option("--valid-for", default="5 d", show_default=True, help="Such as 8 h; at most 30 d.")
@click.option(
    "--role",
    type=click.Choice(ENROLLING_ROLES),
    default=ENROLLING_ROLES[0],
    show_default=True,
    help="What may enrol with it: servers to be protected, or process servers.",
)
@json_option
@pass_invocation
def create_enrolment_passphrase(
    invocation: Invocation, valid_for: str, role: EnrollingRole, as_json_wanted: bool
) -> None:
    """Print a new passphrase with which agents enrol, or process servers; it is told this once."""
    values = {"valid_for_s": parse_duration(valid_for, "--valid-for"), "role": role}
    request = checked(PassphraseRequest, values, {"valid_for_s": ("--valid-for", "a time up to 30 d")})
    grant = invocation.run(lambda server: server.send("POST", "/enrolment-passphrases", PassphraseGrant, request))
    show(grant, as_json_wanted=as_json_wanted, otherwise=lambda _console: click.echo(grant.passphrase))


@click.command("enrolment-passphrases")
@json_option
@pass_invocation
def enrolment_passphrases(invocation: Invocation, as_json_wanted: bool) -> None:
    """List the valid enrolment passphrases, without their text."""
    page = invocation.run(lambda server: server.get("/enrolment-passphrases", Page[PassphraseStatus]))
    rows = [
        [row.id, row.role, row.created_at, row.created_by, row.expires_at, str(row.used_count)] for row in page.items
    ]
    show(
        page,
        as_json_wanted=as_json_wanted,
        otherwise=lambda console: console.print(table("ID", "ROLE", "CREATED", "BY", "EXPIRES", "USED", rows=rows)),
    )


@click.command("revoke-enrolment-passphrase")
@click.argument("identifier")
@pass_invocation
def revoke_enrolment_passphrase(invocation: Invocation, identifier: str) -> None:
    """Revoke a passphrase by its public identifier."""
    invocation.run(lambda server: server.order("DELETE", f"/enrolment-passphrases/{path_part(identifier)}"))
    click.echo(f"passphrase {identifier} is revoked")


@click.command()
@click.option("--server", default=None, help="Only of this server.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--follow", is_flag=True, help="Go on printing new events.")
@json_option
@pass_invocation
def events(invocation: Invocation, server: str | None, limit: int, follow: bool, as_json_wanted: bool) -> None:
    """What happened, when and through whom, oldest first."""
    console = make_console()

    async def act(connection: ConfigServer) -> None:
        page = await connection.get("/events", Page[EventStatus], server=server, limit=limit)
        if as_json_wanted and not follow:
            click.echo(as_json(page))
            return
        while True:
            for event in page.items:
                if as_json_wanted:
                    click.echo(event.model_dump_json())
                else:
                    line = one_line(f"{event.at}  {event.actor}  {event.kind}: {event.message}")
                    console.print(line, soft_wrap=True)
            if not follow:
                return
            await asyncio.sleep(FOLLOW_S)
            page = await connection.get(
                "/events", Page[EventStatus], server=server, limit=limit, after=page.next or "0"
            )

    invocation.run(act)
