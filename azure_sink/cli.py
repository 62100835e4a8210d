"""The command ``azure-sink``: ``blob`` serves the Blob service. Called by ``__main__.py``.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong use or unusable configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import click

from azure_sink import daemon
from azure_sink.config import DEFAULT_CONFIG, BlobSettings, Settings
from replication.errors import SettingsError
from replication.service.cli import daemon_options, fail, load_or_exit, version_option
from replication.service.logs import configure_logging
from replication.service.observability import ObservabilitySettings
from replication.service.runtime import run_daemon

PROGRAM = "azure-sink"
_file = functools.partial(click.Path, path_type=Path)


@click.group()
@version_option(PROGRAM)
def main() -> None:
    """Azure side of the replication: the Blob service and the replica writer."""


@main.command()
@daemon_options(DEFAULT_CONFIG)
@click.option("--listen", help="ADDRESS:PORT of the service.")
@click.option("--account", help="Name of the storage account.")
@click.option("--key-file", type=_file(), help="File with the account's key (base64).")
@click.option(
    "--key", help="The key itself; everyone on the machine can see it in the process list. Prefer --key-file."
)
@click.option("--state", "state_dir", type=_file(), help="State directory.")
@click.option("--tls-cert", type=_file(), help="Certificate chain (PEM).")
@click.option("--tls-key", type=_file(), help="Private key (PEM).")
@click.option("--observability", help="ADDRESS:PORT of /healthz and /metrics.")
@click.pass_context
def blob(
    context: click.Context,
    /,
    config_path: Path,
    check_config: bool,
    observability: str | None,
    **options: Any,
) -> None:
    """Serve Azure Blob REST over HTTPS from a directory.

    With options alone no configuration file is read; together with --config they take precedence over the file.
    """
    given = {name: value for name, value in options.items() if value is not None}
    names_file = context.get_parameter_source("config_path") is click.core.ParameterSource.COMMANDLINE
    reads_file = names_file or not given
    settings = load_or_exit(Settings, config_path, check_only=False) if reads_file else Settings()
    try:
        settings = _with_options(settings, given, observability)
    except SettingsError as error:
        fail(error)
    if check_config:
        click.echo(f"{config_path}: the configuration can be used" if reads_file else "the options can be used")
        return
    configure_logging(PROGRAM, log_format=settings.log.format, level=settings.log.level)
    sys.exit(run_daemon(PROGRAM, functools.partial(daemon.run_blob, settings)))


def _with_options(settings: Settings, given: dict[str, Any], observability: str | None) -> Settings:
    """``settings`` with what the command line says in its section ``blob``.

    :raises SettingsError: the result cannot be used.
    """
    if "key" in given:
        given.setdefault("key_file", None)
    elif "key_file" in given:
        given["key"] = None
    if settings.blob is not None:
        blob = dataclasses.replace(settings.blob, **given)
    else:
        missing = [name for name in ("account", "tls_cert", "tls_key") if name not in given]
        if missing:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise SettingsError(f"cannot serve blobs without {options}", hint="or give --config FILE")
        blob = BlobSettings(**given)
    settings = dataclasses.replace(settings, blob=blob)
    if observability is not None:
        settings = dataclasses.replace(settings, observability=ObservabilitySettings(observability))
    return settings
