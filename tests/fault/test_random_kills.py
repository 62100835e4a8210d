"""Two hundred SIGKILLs at random moments, over all four daemons, under fio and SQLite: nothing is lost, is stuck, or grows.

The summary of the run tells the seed; BLOCKFERRY_SEED replays the choice of victims and moments, not the machine's own timing. After each
quarter of the kills replication must go on in the same generation; in the end the replica is compared with the source byte by byte.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Final

import pytest

from deploy.demo.site import DAEMONS
from tests.harness.daemon_use import require_bounded, use_of_all
from tests.harness.fault_site import FaultSite, fault_site
from tests.harness.running_site import POLICY
from tests.harness.told_seeds import TellSeeds

KILLS: Final = int(os.environ.get("BLOCKFERRY_RANDOM_KILLS", "200"))
QUARTERS: Final = 4
LONGEST_GAP_S: Final = 0.5
SEVERAL_AT_ONCE: Final = 0.15

pytestmark = [pytest.mark.timeout(1800), pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4", "fio")]


def test_two_hundred_kills_under_load_and_the_replica_is_the_source(tmp_path: Path, tell_seeds: TellSeeds) -> None:
    seed = int(os.environ.get("BLOCKFERRY_SEED") or random.SystemRandom().randrange(2**32))
    tell_seeds("random kills", seed)
    chance = random.Random(seed)
    with fault_site(tmp_path, fio_rate=60) as site:
        site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.5 s")
        site.running.protect(site.disk.device)
        early = None
        pins = sorted(path.name for path in site.site.pin_root.rglob("*"))
        for _ in range(QUARTERS):
            before = site.position()
            kill_at_random(site, chance, KILLS // QUARTERS)
            after = site.await_progress(before, what="kills")
            for name in DAEMONS:
                site.daemon(name).wait_until_ready()
            site.await_progress(after, what="a pause between kills")
            use = use_of_all(site)
            early = early or use
        require_bounded(early or {}, use)
        site.prove()
        assert sorted(path.name for path in site.site.pin_root.rglob("*")) == pins
        assert len(watchdogs(site)) <= 1
        assert tracebacks(site) == []
        pin_root = site.site.pin_root
    assert not pin_root.exists()


def kill_at_random(site: FaultSite, chance: random.Random, kills: int) -> None:
    """Each victim is started again at once; he may be killed again before he serves."""
    left = kills
    while left > 0:
        several = chance.randint(2, len(DAEMONS)) if chance.random() < SEVERAL_AT_ONCE else 1
        victims = chance.sample(DAEMONS, min(several, left))
        for name in victims:
            site.daemon(name).kill()
        for name in victims:
            site.launch(name)
        site.disk.write_once()
        left -= len(victims)
        time.sleep(chance.uniform(0.0, LONGEST_GAP_S))


def watchdogs(site: FaultSite) -> list[int]:
    """Freeze watchdogs of this site's agents, dead ones' included: they have this site's token in their environment."""
    mine = f"BLOCKFERRY_TOKEN_FILE={site.site.token_file}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_watchdog = b"watchdog" in (entry / "cmdline").read_bytes()
                is_mine = mine in (entry / "environ").read_bytes()
            except OSError:
                continue
            if is_watchdog and is_mine:
                found.append(int(entry.name))
    return found


def tracebacks(site: FaultSite) -> list[str]:
    """What a daemon did not expect: the lines of all logs that have one."""
    lines = (line for name in DAEMONS for line in site.daemon(name).log.read_text(errors="replace").splitlines())
    return [line.replace("\\n", "\n") for line in lines if "Traceback" in line or "Bad file descriptor" in line]
