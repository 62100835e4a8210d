"""``mobility-agent install``: from an unpacked program tree to an enrolled agent that runs.

Called by ``installation_commands``. Everything that was given is checked before anything is changed. Each step finds out whether it was
done, so that an installation that was cut off, or refused for a wrong passphrase, is simply run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, read_machine_facts
from mobility_agent.config import DEFAULT_STATE_DIR, AgentSettings, LimitsSettings
from mobility_agent.installation import system
from mobility_agent.installation.places import CONFIGURATION, Tree, current_tree, installed_trees
from replication.config_server_urls import check_standby_urls
from replication.enrolment import enrol_with_any
from replication.errors import BlockferryError, Conflict
from replication.service_address import ServiceAddress
from replication.settings import load_settings
from replication.tls_identity import Role, TlsIdentity, normalized_fingerprint

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the administrator gives. ``passphrase`` is only needed, and only used, where the agent is not enrolled yet.

    ``limits``: what is to stand in the configuration from the first start on; for the configuration that is there already, see ``install``.
    ``standbys``: the site's other configuration servers. They are written into a new configuration; one that is there stays as it is.
    """

    appliance: str
    fingerprint: str
    passphrase: str | None
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    standbys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_standby_urls(self.url, self.standby_urls)
        normalized_fingerprint(self.fingerprint)

    @property
    def url(self) -> str:
        return f"https://{ServiceAddress.parse(self.appliance)}"

    @property
    def urls(self) -> list[str]:
        return [self.url, *self.standby_urls]

    @property
    def standby_urls(self) -> list[str]:
        return [f"https://{ServiceAddress.parse(standby)}" for standby in self.standbys]


def is_enrolled() -> bool:
    """By the configuration that is there, or by the default place."""
    identity = DEFAULT_STATE_DIR / "identity"
    with contextlib.suppress(BlockferryError):
        identity = load_settings(AgentSettings, CONFIGURATION).identity_dir
    return TlsIdentity(identity).exists()


def install(tree: Tree, wanted: Wanted, say: Say) -> None:
    """The agent of ``tree`` runs, enrolled with ``wanted.appliance``, on return.

    :raises Conflict: if the configuration that is there names none of the wanted configuration servers, or has other limits.
    :raises BlockferryError: what enrolment and starting raise; what was done until then stays.
    """
    _check_configuration(tree, wanted)
    system.install_system_files(tree)
    _write_configuration(tree, wanted)
    system.use_tree(tree)
    say(f"installed {tree.version} in {tree.directory}")
    settings = load_settings(AgentSettings, CONFIGURATION)
    _say_what_is_not_written(settings, wanted, say)
    if TlsIdentity(settings.identity_dir).exists():
        say(f"enrolled already as {TlsIdentity(settings.identity_dir).name().urn}")
    else:
        facts = read_machine_facts(substitute=settings.state_dir / MACHINE_ID_FILE)
        name = asyncio.run(
            enrol_with_any(
                settings.config_server.urls,
                wanted.fingerprint,
                wanted.passphrase or "",
                Role.AGENT,
                facts.hostname,
                facts.fingerprint,
                settings.identity_dir,
            )
        )
        say(f"enrolled as {name.urn}")
    system.reload()
    system.enable_and_start()
    say("the agent runs")


def _is_untouched(tree: Tree) -> bool:
    """Whether there is no configuration, or one that nobody has edited."""
    return not CONFIGURATION.exists() or CONFIGURATION.read_bytes() == tree.sample_configuration.read_bytes()


def _check_configuration(tree: Tree, wanted: Wanted) -> None:
    if _is_untouched(tree):
        return
    settings = load_settings(AgentSettings, CONFIGURATION)
    known = settings.config_server.urls
    if not _addresses(known) & _addresses(wanted.urls):
        raise Conflict(
            f"cannot install for {wanted.url}: {CONFIGURATION} names the configuration server {', '.join(known)}",
            hint="mobility-agent uninstall --purge leaves that site; or change the file",
        )
    given = _given_limits(wanted.limits)
    if any(getattr(settings.limits, name) != value for name, value in given.items()):
        raise Conflict(
            f"cannot set {', '.join(given)}: {CONFIGURATION} is there already, with other limits",
            hint="change `limits` in the file and restart the agent",
        )


def _addresses(urls: Sequence[str]) -> set[ServiceAddress]:
    return {ServiceAddress.parse(url) for url in urls}


def _say_what_is_not_written(settings: AgentSettings, wanted: Wanted, say: Say) -> None:
    """Of a configuration that stays as it is."""
    known = _addresses(settings.config_server.urls)
    missing = [url for url in wanted.urls if ServiceAddress.parse(url) not in known]
    if missing:
        say(
            f"{CONFIGURATION} stays as it is, and does not name {', '.join(missing)}: "
            "add it to config_server.standby_urls and restart the agent"
        )


def _given_limits(limits: LimitsSettings) -> dict[str, int | float]:
    names = ("read_bytes_per_s", "cpu_cores", "memory_bytes")
    return {name: value for name in names if (value := getattr(limits, name)) is not None}


def _write_configuration(tree: Tree, wanted: Wanted) -> None:
    """In place of the sample, which has the right owner and mode."""
    if _is_untouched(tree):
        section: dict[str, object] = {"url": wanted.url}
        if wanted.standbys:
            section["standby_urls"] = wanted.standby_urls
        document: dict[str, object] = {"config_server": section}
        if given := _given_limits(wanted.limits):
            document["limits"] = given
        text = yaml.safe_dump(document)
        unfinished = CONFIGURATION.with_name(f".{CONFIGURATION.name}.new")
        shutil.copy2(CONFIGURATION, unfinished)
        shutil.chown(unfinished, CONFIGURATION.owner(), CONFIGURATION.group())
        unfinished.write_text(f"# Every key: {tree.sample_configuration}\n{text}")
        unfinished.replace(CONFIGURATION)


def remove_other_trees(keep: set[Path]) -> None:
    """Versions that nobody would go back to."""
    current = current_tree()
    for tree in installed_trees():
        if tree.directory not in keep and tree != current:
            shutil.rmtree(tree.directory)
