"""Lags and freezes under load: a file system with two fsyncing writers, and fio's uniform 4 KiB random writes at fixed rates.

Called by ``__main__``. One scenario has more churn than the line carries: the backlog and NOT_CONVERGING must be told.
Amplification is stated: bytes sent for each byte written, since a write of 4 KiB dirties a granule of 64 KiB.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import yaml

from deploy.demo.lab_server import LabDisk
from deploy.demo.site import Site
from process_server.core.spool_budget import MIN_LIMIT_BYTES
from tests.bench.chain import chain, prepare
from tests.bench.images import MIB
from tests.bench.measure import Figures, median
from tests.harness.running_site import POLICY, RunningSite, running_site

_LOAD_S: Final = 30.0
_POLL_S: Final = 0.5
_DISK_BYTES: Final = 1024 * MIB
_OVERLOADED_DISK_BYTES: Final = 16 * 1024 * MIB
_OVERLOAD_MIB_PER_S: Final = 2.0
_NARROW_BITS_PER_S: Final = 2_000_000
_OVERLOAD_S: Final = 480.0
"""It must last five minutes before it is called NOT_CONVERGING."""
_FSYNCING_WRITER: Final = """
import os, sys, time
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
os.truncate(descriptor, 64 * 2**20)
while True:
    os.pwrite(descriptor, os.urandom(8192), int.from_bytes(os.urandom(2), "big") % 8000 * 8192)
    os.fsync(descriptor)
    time.sleep(0.005)
"""


def random_writes(directory: Path, rate_mib_per_s: float) -> Figures:
    """Replication lag while 4 KiB random writes go on at a fixed rate."""
    directory.mkdir(parents=True, exist_ok=True)
    image = directory / "lag.img"
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    with chain(directory / "site", image) as (site, device):
        _protect(site, device, "60 min")
        sent_before = _observation(site)["sent_bytes"] or 0.0
        load = _fio(device, rate_mib_per_s, _LOAD_S)
        try:
            lags, backlogs, goings = _watch(site, _LOAD_S)
        finally:
            load.terminate()
            load.wait()
        sent = (_observation(site)["sent_bytes"] or 0.0) - sent_before
    name = f"lag_{rate_mib_per_s:g}_mib_per_s"
    return {
        f"{name}_median_s": median(lags),
        f"{name}_worst_s": max(lags, default=float("nan")),
        f"{name}_backlog_growth_bytes": backlogs[-1] - backlogs[0] if backlogs else float("nan"),
        f"{name}_amplification": sent / (rate_mib_per_s * MIB * _LOAD_S),
        f"{name}_share_not_converging": sum(going == "NOT_CONVERGING" for going in goings) / max(1, len(goings)),
    }


def overload(directory: Path) -> Figures:
    """Churn that the line cannot carry: what is told of it, and when.

    The upload is limited and the spool is as small as it may be, so that the agent is held up soon; 4 KiB writes go all over a large
    sparse disk, so that the backlog has room to grow.
    """
    directory.mkdir(parents=True, exist_ok=True)
    image = directory / "overload.img"
    with image.open("wb") as file:
        file.truncate(_OVERLOADED_DISK_BYTES)

    def narrow(site: Site) -> None:
        path = site.directory / "process-server" / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        settings["upload"] = {"limit_bits_per_s": _NARROW_BITS_PER_S}
        settings["spool"] = {"limit_bytes": MIN_LIMIT_BYTES}
        path.write_text(yaml.safe_dump(settings))

    with chain(directory / "site", image, narrow) as (site, device):
        _protect(site, device, "60 min")
        load = _fio(device, _OVERLOAD_MIB_PER_S, _OVERLOAD_S)
        started_s = time.monotonic()
        told_s = math.inf
        backlogs, etas = [], []
        try:
            while math.isinf(told_s) and time.monotonic() < started_s + _OVERLOAD_S:
                item = site.operator.required_item()
                backlogs.append(float((item["disks"][0]["observation"] or {}).get("backlog_bytes", 0)))
                etas.append(item["eta_s"] is not None)
                if item["going"] == "NOT_CONVERGING":
                    told_s = time.monotonic() - started_s
                time.sleep(2 * _POLL_S)
        finally:
            load.terminate()
            load.wait()
    return {
        "overload_not_converging_told_after_s": told_s,
        "overload_backlog_growth_bytes": backlogs[-1] - backlogs[len(backlogs) // 4],
        "overload_eta_shown_share": sum(etas) / len(etas),
    }


def _fio(device: Path, rate_mib_per_s: float, seconds: float) -> subprocess.Popen[bytes]:
    """Uniform 4 KiB random writes at a fixed rate."""
    options = {
        "filename": device, "rw": "randwrite", "bs": "4k", "direct": 1, "ioengine": "libaio", "iodepth": 4,
        "rate": f"{int(rate_mib_per_s * 1024)}k", "runtime": int(seconds) + 5, "time_based": 1, "name": "lag",
        "norandommap": 1,
    }  # fmt: skip
    return subprocess.Popen(["fio", *(f"--{k}={v}" for k, v in options.items())], stdout=subprocess.DEVNULL)


def freezes(directory: Path) -> Figures:
    """Freeze times of points every 10 s under two fsyncing writers on ext4."""
    lab = LabDisk(directory / "lab", _DISK_BYTES)
    try:
        device = lab.create()
        writers = [
            subprocess.Popen([sys.executable, "-c", _FSYNCING_WRITER, str(lab.mount_point / f"writer-{number}")])
            for number in range(2)
        ]
        try:
            figures = _freezes_of(directory / "site", device)
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
    finally:
        lab.destroy()
    return figures


def _freezes_of(directory: Path, device: Path) -> Figures:
    with running_site(directory) as site:
        _protect(site, device, "10 s")
        seen: list[float] = []
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s:
            freeze = _observation(site)["last_freeze_s"]
            if freeze is not None and freeze not in seen[-1:]:
                seen.append(freeze)
            time.sleep(_POLL_S)
    return {"freeze_median_ms": median(seen) * 1e3, "freeze_worst_ms": max(seen, default=float("nan")) * 1e3}


def _protect(site: RunningSite, device: Path, point_interval: str) -> None:
    prepare(site, device)
    site.operator.order("set-policy", POLICY, "--recovery-point-interval", point_interval)
    site.operator.order("protect", site.server, "--disk", str(device), "--policy", POLICY)
    site.wait_state("replicating", 300.0)


def _observation(site: RunningSite) -> dict[str, float | None]:
    observed: dict[str, float | None] = site.operator.required_item()["disks"][0]["observation"]
    return observed


def _watch(site: RunningSite, seconds: float) -> tuple[list[float], list[float], list[str]]:
    lags, backlogs, goings = [], [], []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        item = site.operator.required_item()
        if item["replication_lag_s"] is not None:
            lags.append(float(item["replication_lag_s"]))
        backlogs.append(float((item["disks"][0]["observation"] or {}).get("backlog_bytes", 0)))
        goings.append(str(item["going"]))
        time.sleep(_POLL_S)
    return lags, backlogs, goings
