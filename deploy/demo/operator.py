"""The demo's operator: gives orders with ``migratectl``, watches over REST. Every order is printed, so that a reader can give it himself.

Called by ``road``. Waits have deadlines; a failed job ends the demo with the job's own cause.
"""

from __future__ import annotations

import json
import shlex
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.console import Console

from deploy.demo.site import Site
from replication.tls_identity import ExpectedPeer, Role, check_peer

_POLL_S: Final = 0.25
_REQUEST_TIMEOUT_S: Final = 10.0
Json = dict[str, Any]


class DemoError(RuntimeError):
    """A check did not hold, or something did not happen in time."""


class Operator:
    """Orders and observations for one server."""

    def __init__(self, site: Site, console: Console) -> None:
        self._site = site
        self._console = console
        self._token = site.token_file.read_text().strip()
        context = ssl.create_default_context(cafile=str(site.authority_file))
        self._tls = check_peer(context, ExpectedPeer(Role.CONFIG_SERVER).check)

    def get(self, path: str) -> Json:
        """One GET of the REST interface; patient while the configuration server is busy."""
        return self._call(urllib.request.Request(self._url(path)))

    def post(self, path: str, document: Json | None = None) -> Json:
        """One POST of the REST interface: an order without ``migratectl``."""
        body = json.dumps(document or {}).encode()
        headers = {"Content-Type": "application/json"}
        return self._call(urllib.request.Request(self._url(path), body, headers, method="POST"))

    def _url(self, path: str) -> str:
        return f"{self._site.config_url}/api/v1{path}"

    def _call(self, request: urllib.request.Request) -> Json:
        request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S, context=self._tls) as response:
            answer: Json = json.load(response)
        return answer

    def order(self, *arguments: str) -> str:
        """Run ``migratectl`` and show the command."""
        self._console.print(f"  [dim]$ migratectl {shlex.join(arguments)}[/dim]")
        return self._site.migratectl(*arguments)

    def server(self) -> Json | None:
        """The one server of the demo, once it is known with its disks."""
        servers = self.get("/servers")["items"]
        return servers[0] if servers and servers[0]["disk_count"] else None

    def item(self) -> Json | None:
        items = self.get("/protected-items")["items"]
        return items[0] if items else None

    def required_item(self) -> Json:
        item = self.item()
        if item is None:
            raise DemoError("the server is not protected")
        return item

    def recovery_points(self, item: str) -> list[Json]:
        points: list[Json] = self.get(f"/protected-items/{item}/recovery-points")["items"]
        return points

    def job(self, job: str, wait_s: float = 0.0) -> Json:
        """``wait_s``: for its end, at the longest."""
        return self.get(f"/jobs/{job}?wait_s={wait_s}")

    def newest_job(self, kind: str) -> Json:
        for job in self.get("/jobs")["items"]:
            if job["kind"] == kind:
                found: Json = job
                return found
        raise DemoError(f"there is no job {kind}")

    def follow_job(self, kind: str, deadline_s: float) -> Iterator[Json]:
        """Yield the newest job of ``kind`` each time it is looked at, until it succeeded.

        :raises DemoError: if it fails or does not end in time; with its cause.
        """
        job = self.newest_job(kind)
        until_s = time.monotonic() + deadline_s
        while job["state"] in ("in-progress", "waiting-for-input"):
            yield job
            if time.monotonic() > until_s:
                raise DemoError(f"{kind} did not end within {deadline_s:.0f} s: {job['step']}: {job['message']}")
            job = self.job(job["id"], _POLL_S)
        if job["state"] != "succeeded":
            raise DemoError(f"{kind} {job['state']}: {job['problem']}")
        yield job

    def wait_job(self, kind: str, deadline_s: float, meanwhile: Callable[[], object] = lambda: None) -> Json:
        """The job when it has succeeded; ``meanwhile`` is called after each look at it. Raises as ``follow_job``."""
        last: Json = {}
        for job in self.follow_job(kind, deadline_s):
            last = job
            meanwhile()
        return last


def wait_until(what: str, condition: Callable[[], Json | None], deadline_s: float) -> Json:
    """Look until ``condition`` gives something; refused connections count as not yet.

    :raises DemoError: if it never does within ``deadline_s``.
    """
    until_s = time.monotonic() + deadline_s
    while True:
        try:
            found = condition()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            found = None
        if found is not None:
            return found
        if time.monotonic() > until_s:
            raise DemoError(f"{what} did not happen within {deadline_s:.0f} s")
        time.sleep(_POLL_S)
