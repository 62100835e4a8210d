"""A running site whose daemons and commands are forked instead of started: the same programs, without a second of imports each.

Called by tests/e2e and ``fault_site``. How daemons really start is the matter of the whole road and of the daemons' life (tests/e2e).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

from deploy.demo.site import DAEMONS, Site
from tests.harness.forked_daemons import ForkedDaemon, ForkServer
from tests.harness.running_site import RunningSite, running_site

NO_NETWORKS: Final[Mapping[str, Path]] = {}


class ForkedSite(Site):
    server: ForkServer | None = None
    """Set before anything is installed."""

    def run(self, name: str, *arguments: str | Path) -> str:
        """As ``Site.run``, without a new interpreter."""
        assert self.server is not None
        command = self.command(name, *arguments)
        scratch = self.directory / "operator"
        code, output, errors = self.server.run(command[command.index("-m") + 1 :], self._environment(), scratch)
        if code:
            raise RuntimeError(f"{' '.join(command)} failed with exit code {code}:\n{errors or output}")
        return output.strip()


SiteT = TypeVar("SiteT", bound=ForkedSite)


@contextlib.contextmanager
def forked_site(
    directory: Path,
    kind: type[SiteT] = ForkedSite,  # type: ignore[assignment]  # the default of the default
    prepare: Callable[[SiteT], None] = lambda _site: None,
    networks: Mapping[str, Path] = NO_NETWORKS,
) -> Iterator[RunningSite]:
    """A site under ``directory``/site that runs; on leaving all is stopped.

    :param prepare: is called when the site is installed and nothing runs.
    :param networks: daemons that live in a network namespace of their own, and its file.
    """
    directory.mkdir(exist_ok=True)
    with ForkServer(directory) as server:

        def fork_instead(site: Site) -> None:
            assert isinstance(site, kind)
            prepare(site)
            for name in DAEMONS:
                site.daemons[name] = ForkedDaemon.instead_of(site.daemons[name], server, networks.get(name))

        def make(place: Path, disk_files: tuple[Path, ...], tracker: str) -> Site:
            made = kind(place, disk_files, tracker)
            made.server = server
            return made

        with running_site(directory / "site", make=make, installed=fork_instead) as running:
            yield running
