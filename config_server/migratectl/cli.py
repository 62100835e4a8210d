"""The command ``migratectl``: its global options and its commands. Called by ``__main__.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from config_server.migratectl import (
    access_commands,
    agent_limits_commands,
    alert_commands,
    discovery_commands,
    installation_commands,
    item_commands,
    process_server_commands,
    site_commands,
    sizing_commands,
    upload_limits_commands,
)
from config_server.migratectl.invocation import Invocation, fail
from replication.errors import BlockferryError
from replication.service.cli import version_option

EPILOG = (
    "Exit codes: 0 done; 1 failed or refused; 2 wrong use; 3 the check found a blocker; 4 the wait timed out; "
    "5 the job failed; 6 the server cannot be reached; 10, 11 `health`: a warning, critical."
)


class _Group(click.Group):
    """Says an error of the tree as such, wherever in a command it comes from."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BlockferryError as error:
            fail(error)


@click.group(epilog=EPILOG, cls=_Group)
@click.option("--url", envvar="BLOCKFERRY_URL", help="https://HOST[:PORT] of the configuration server.")
@click.option(
    "--token-file",
    envvar="BLOCKFERRY_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help="File with your token, or with the one-time secret, which is exchanged there.",
)
@click.option(
    "--authority",
    envvar="BLOCKFERRY_AUTHORITY",
    type=click.Path(path_type=Path),
    help="File with the site's authority (PEM), as `config-server show-authority` prints it.",
)
@version_option("migratectl")
@click.pass_context
def main(context: click.Context, url: str | None, token_file: Path | None, authority: Path | None) -> None:
    """Protect servers, test their migration, migrate them."""
    context.obj = Invocation(url, token_file, authority)


for command in (
    site_commands.login,
    site_commands.site,
    discovery_commands.discover,
    discovery_commands.cancel_discovery,
    site_commands.servers,
    site_commands.check,
    item_commands.protect,
    installation_commands.installations,
    installation_commands.cancel_installation,
    item_commands.status,
    item_commands.recovery_points,
    item_commands.create_recovery_point,
    item_commands.test_migrate,
    item_commands.cleanup,
    item_commands.migrate,
    item_commands.cancel,
    item_commands.complete,
    item_commands.pause,
    item_commands.resume,
    item_commands.stop_replication,
    item_commands.resync,
    item_commands.jobs,
    site_commands.events,
    site_commands.policies,
    site_commands.set_policy,
    site_commands.delete_policy,
    process_server_commands.process_servers,
    process_server_commands.drain_process_server,
    process_server_commands.undrain_process_server,
    process_server_commands.remove_process_server,
    process_server_commands.switch_process_server,
    sizing_commands.size_site,
    sizing_commands.plan,
    upload_limits_commands.upload_limits,
    upload_limits_commands.set_upload_limits,
    agent_limits_commands.agent_limits,
    agent_limits_commands.set_agent_limits,
    site_commands.create_enrolment_passphrase,
    site_commands.enrolment_passphrases,
    site_commands.revoke_enrolment_passphrase,
    *alert_commands.COMMANDS,
    access_commands.certificates,
    access_commands.revoke_certificate,
    access_commands.tokens,
    access_commands.create_token,
    access_commands.revoke_token,
    access_commands.audit,
):
    main.add_command(command)
for command in (discovery_commands.accept_host_key, discovery_commands.forget):
    site_commands.servers.add_command(command)
