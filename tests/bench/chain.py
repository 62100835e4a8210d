"""One round of the whole chain: four daemons, initial replication to a recovery point, a delta to a recovery point, cutover with proof.

Called by ``__main__``. Figures in seconds, bytes and shares; every round ends with the product's proof of identity, so that nothing
is measured that did not work.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from deploy.demo.operator import DemoError, Json, Operator, wait_until
from deploy.demo.site import Site
from tests.bench.images import MIB, Delta
from tests.bench.measure import Figures, Usage, measured, peaks
from tests.harness.loop_disk import loop_disk, run
from tests.harness.running_site import POLICY, RunningSite, running_site

DEADLINE_S: Final = 1200.0
_OFTEN_S: Final = 0.1


@contextlib.contextmanager
def chain(
    directory: Path, image: Path, installed: Callable[[Site], None] = lambda _site: None
) -> Iterator[tuple[RunningSite, Path]]:
    """A running site and the image on a loop device of its own; ``installed`` as ``running_site`` has it."""
    with (
        loop_disk(image, image.stat().st_size) as disk,
        contextlib.redirect_stdout(io.StringIO()),
        running_site(directory, installed=installed) as site,
    ):
        # Through the page cache the loop worker would read it a second time: 4 CPU seconds that no real disk takes.
        run("losetup", "--direct-io=on", disk.device)
        yield site, disk.device


def processes(site: RunningSite) -> dict[str, int]:
    """Name → process id of every daemon that runs."""
    found = site.site.daemons.items()
    return {name: daemon.process.pid for name, daemon in found if daemon.process and daemon.process.poll() is None}


def replicate(directory: Path, image: Path, *, delta_bytes: int, seed: int) -> Figures:
    """The round's figures: ``ir_*`` initial replication, ``delta_*``, ``usable_s`` and ``proof_s`` of the cutover; peaks over all of it."""
    with chain(directory, image) as (site, device):
        figures, first = _initial_replication(site, device)
        delta = Delta(image.stat().st_size, delta_bytes, seed)
        try:
            of_delta, second = _delta(site, device, delta)
            of_cutover, third = _cutover(site)
        finally:
            delta.undo(device)
    return figures | of_delta | of_cutover | peaks(first, second, third)


def prepare(site: RunningSite, device: Path) -> None:
    """Policy and inventory, so that protecting is one order."""
    site.operator.order("set-policy", POLICY, "--recovery-point-interval", "60 min", "--epoch-interval", "1 s")
    wait_until("the disk in the inventory", lambda: _known(site.operator, site.server, device), DEADLINE_S)


def _known(operator: Operator, server: str, device: Path) -> Json | None:
    detail = operator.get(f"/servers/{server}")
    disks = (detail["inventory"] or {"disks": []})["disks"]
    return detail if any(disk["path"] == str(device) for disk in disks) else None


def _initial_replication(site: RunningSite, device: Path) -> tuple[Figures, Usage]:
    prepare(site, device)
    with measured(lambda: processes(site)) as usage:
        site.operator.order("protect", site.server, "--disk", str(device), "--policy", POLICY, "--wait", "--json")
        item = _first_point(site)
    observed = item["disks"][0]["observation"]
    figures = {
        "ir_wall_s": usage.wall_s,
        "ir_cpu_s": usage.cpu_s,
        "ir_busy": usage.busy,
        "ir_mb_per_s": item["disks"][0]["size_bytes"] / 1e6 / usage.wall_s,
        "ir_sent_bytes": float(observed["sent_bytes"]),
    }
    figures |= {f"ir_cpu_s {name}": cpu_s for name, cpu_s in usage.cpu_by_process_s.items()}
    return figures, usage


def _first_point(site: RunningSite) -> Json:
    """Initial replication is over: the point is due, and looked for often."""
    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        item = site.operator.required_item()
        if item["newest_point_at"] is not None:
            return item
        time.sleep(_OFTEN_S)
    raise DemoError("no recovery point in time")


def _delta(site: RunningSite, device: Path, delta: Delta) -> tuple[Figures, Usage]:
    """From the moment the change is durable on the source to a recovery point that has it."""
    site.wait_state("replicating", DEADLINE_S)
    delta.apply(device)
    with measured(lambda: processes(site)) as usage:
        site.operator.order(
            "create-recovery-point", site.server, "--wait", "--timeout", f"{DEADLINE_S:.0f} s", "--json"
        )
    return {"delta_wall_s": usage.wall_s, "delta_cpu_s": usage.cpu_s}, usage


def _cutover(site: RunningSite) -> tuple[Figures, Usage]:
    with measured(lambda: processes(site)) as usage:
        site.operator.order("migrate", site.server)
        result = site.operator.wait_job("migrate", DEADLINE_S)["result"]
    if result["identity"] != "proved":
        raise RuntimeError(f"identity is {result['identity']}: nothing of this round counts")
    return {
        "usable_s": float(result["seconds_to_usable"]),
        "proof_s": float(result["seconds_to_proof"]),
        "cutover_s": usage.wall_s,
    }, usage


DELTA_OF_IMAGE: Final = 0.01
DELTA_BYTES: Final = 64 * MIB
