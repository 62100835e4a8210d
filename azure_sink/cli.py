"""The command ``azure-sink``: ``blob``, ``writer`` or ``all`` as a daemon, and what is done by hand. Called by ``__main__.py``.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong use or unusable configuration. Without a command it runs what the configuration has
sections for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import click

from azure_sink import daemon
from azure_sink.config import DEFAULT_CONFIG, BlobSettings, Settings
from azure_sink.export import DiskExport, ExportedDisk
from azure_sink.replica_writer.state_directory import StateDirectory
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.documents import WriterIdentity
from replication.errors import BlockferryError, SettingsError
from replication.service.cli import arm_or_exit, daemon_options, fail, hand_on_options, load_or_exit, version_option
from replication.service.installed_folders import paths_command
from replication.service.logs import configure_logging
from replication.service.observability import ObservabilitySettings
from replication.service.runtime import Lifecycle, run_daemon

PROGRAM = "azure-sink"
_file = functools.partial(click.Path, path_type=Path)


@click.group(invoke_without_command=True)
@daemon_options(DEFAULT_CONFIG)
@version_option(PROGRAM)
@click.pass_context
def main(context: click.Context, config_path: Path, check_config: bool) -> None:
    """Azure side of the replication: the Blob service and the replica writer.

    Without a command: serve blobs if the configuration has a section blob, write replicas if it has a section writer.
    """
    if context.invoked_subcommand is None:
        _run_configured(config_path, check_config)
    else:
        hand_on_options(context)


main.add_command(paths_command("azure-sink"))


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
    names_file = context.get_parameter_source("config_path") is not click.core.ParameterSource.DEFAULT
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
    if settings.blob is not None or not given:
        blob = dataclasses.replace(settings.required_blob(), **given)
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


@main.command()
@daemon_options(DEFAULT_CONFIG)
def writer(config_path: Path, check_config: bool) -> None:
    """Write replicas of what process servers have uploaded to a Blob endpoint."""
    _run_daemon(config_path, check_config, (Settings.required_store,), daemon.run_writer)


@main.command("all")
@daemon_options(DEFAULT_CONFIG)
def serve_all(config_path: Path, check_config: bool) -> None:
    """Serve blobs and write replicas in one process."""
    _run_daemon(config_path, check_config, (Settings.required_blob, Settings.required_writer), daemon.run_all)


def _run_configured(config_path: Path, check_config: bool) -> None:
    settings = load_or_exit(Settings, config_path, check_only=False)
    if settings.blob is None:
        _run(settings, config_path, check_config, (Settings.required_store,), daemon.run_writer)
    elif settings.writer is None:
        _run(settings, config_path, check_config, (Settings.required_blob,), daemon.run_blob)
    else:
        _run(settings, config_path, check_config, (), daemon.run_all)


def _run_daemon(
    config_path: Path,
    check_config: bool,
    needed: Sequence[Callable[[Settings], object]],
    run: Callable[[Settings, Lifecycle], Awaitable[None]],
) -> None:
    _run(load_or_exit(Settings, config_path, check_only=False), config_path, check_config, needed, run)


def _run(
    settings: Settings,
    config_path: Path,
    check_config: bool,
    needed: Sequence[Callable[[Settings], object]],
    run: Callable[[Settings, Lifecycle], Awaitable[None]],
) -> None:
    try:
        for section in needed:
            section(settings)
    except SettingsError as error:
        fail(error)
    if check_config:
        click.echo(f"{config_path}: the configuration can be used")
        return
    configure_logging(PROGRAM, log_format=settings.log.format, level=settings.log.level)
    sys.exit(run_daemon(PROGRAM, functools.partial(run, settings)))


_config = click.option(
    "--config",
    "config_path",
    type=_file(),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Configuration file (YAML).",
)


def _identity(config_path: Path, load: Callable[[StateDirectory], WriterIdentity]) -> WriterIdentity:
    settings = load_or_exit(Settings, config_path, check_only=False)
    try:
        return load(StateDirectory(settings.required_writer().state_dir))
    except BlockferryError as error:
        fail(error)


@main.command()
@_config
def init(config_path: Path) -> None:
    """Make the replica writer's identity, unless it is there, and print its public key."""
    arm_or_exit(PROGRAM)
    click.echo(_identity(config_path, StateDirectory.load_or_make_identity).public.encode())


@main.command("show-writer-key")
@_config
def show_writer_key(config_path: Path) -> None:
    """Print the replica writer's public key: the line that the configuration server is given."""
    click.echo(_identity(config_path, StateDirectory.load_identity).public.encode())


@main.command()
@_config
@click.option(
    "--endpoint", help="https://HOST:PORT/ACCOUNT; without it the configuration's section writer.store is used."
)
@click.option("--account", help="Name of the storage account at --endpoint.")
@click.option("--key-file", type=_file(), help="File with the account's key (base64).")
@click.option("--ca-file", type=_file(), help="Authorities that the endpoint's certificate is checked with (PEM).")
@click.option("--snapshot", help="Export this snapshot and not the blob as it is.")
@click.option("--raw", is_flag=True, help="The disk's bytes alone, without the VHD's padding and footer.")
@click.option("--sha256", "with_sha256", is_flag=True, help="Print the SHA-256 of the file as well.")
@click.argument("blob", metavar="CONTAINER/BLOB")
@click.argument("out", type=_file())
def export(
    config_path: Path,
    endpoint: str | None,
    account: str | None,
    key_file: Path | None,
    ca_file: Path | None,
    snapshot: str | None,
    raw: bool,
    with_sha256: bool,
    blob: str,
    out: Path,
) -> None:
    """Download a made disk (or a replica's snapshot) into a sparse file: a fixed VHD, or a raw image."""
    container, separator, name = blob.partition("/")
    if not separator or not container or not name:
        raise click.BadParameter("expected CONTAINER/BLOB, such as disks/web01-Test", param_hint="CONTAINER/BLOB")
    try:
        if endpoint is None:
            store = load_or_exit(Settings, config_path, check_only=False).required_store()
        elif account is None or key_file is None:
            raise SettingsError("cannot use --endpoint without --account and --key-file")
        else:
            store = BlobEndpointSettings(endpoint, account, key_file, ca_file)
        exported = asyncio.run(_export(store, (container, name, snapshot), out, raw=raw, with_sha256=with_sha256))
    except BlockferryError as error:
        fail(error)
    click.echo(f"{out}: {exported.size_bytes} bytes, {exported.read_bytes} of them read from the store")
    if exported.sha256 is not None:
        click.echo(f"sha256: {exported.sha256}")


async def _export(
    store: BlobEndpointSettings, source: tuple[str, str, str | None], out: Path, *, raw: bool, with_sha256: bool
) -> ExportedDisk:
    with click.progressbar(length=1000, label="exporting", file=sys.stderr) as bar:

        def progress(done_bytes: int, total_bytes: int) -> None:
            bar.update(done_bytes * 1000 // total_bytes - bar.pos)

        async with HttpBlobClient(store) as client:
            return await DiskExport(client, *source).run(out, raw=raw, with_sha256=with_sha256, progress=progress)
