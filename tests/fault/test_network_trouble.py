"""The network between the process server and everybody else is cut and throttled: replication waits or is slow, and recovers by itself.

A whole site under load in network namespaces of its own, the process server alone behind a cable (veth). What is delayed, hung up and
cut short on single links: ``test_store_in_trouble``. In the end the replica is compared with the source byte by byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.demo.site import ACCOUNT
from tests.harness.daemon_use import use_is_bounded
from tests.harness.fault_site import FaultSite, QuickSite, fault_site
from tests.harness.network_namespaces import FAR, NEAR, Cable, private_network
from tests.harness.running_site import POLICY

MIB: Final = 2**20

pytestmark = [
    pytest.mark.heavy("a site whose network is cut and throttled"),
    pytest.mark.timeout(1800),
    pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4", "ip", "tc", "nsenter"),
]


class CabledSite(QuickSite):
    """Configuration server and store at the near end, the process server at the far one; the agent speaks to both ends."""

    @property
    def config_url(self) -> str:
        return f"https://{NEAR}:{self.ports['config']}"

    @property
    def store_url(self) -> str:
        return f"https://{NEAR}:{self.ports['blob']}/{ACCOUNT}"

    def _configurations(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super()._configurations()
        found["config-server"] |= {"listen": f"{NEAR}:{self.ports['config']}", "names": [NEAR]}
        blob, tls = found["azure-sink"]["blob"], self.directory / "azure-sink" / "near-tls"
        blob["listen"] = f"{NEAR}:{self.ports['blob']}"
        blob |= {"tls_cert": str(tls / "certificate.pem"), "tls_key": str(tls / "key.pem")}
        found["process-server"]["listen"] = f"{FAR}:{self.ports['process']}"
        found["process-server"]["observability"] = {"listen": f"{FAR}:{self.ports['h-process']}"}
        return found

    def issue_certificate(self) -> None:
        config = self.directory / "config-server" / "config.yaml"
        target = self.directory / "azure-sink" / "near-tls"
        self.run("config-server", "issue-certificate", "--config", config, "--ip", NEAR, "--out", target)


@pytest.fixture
def cable() -> Iterator[Cable]:
    with private_network() as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, cable: Cable) -> Iterator[FaultSite]:
    def prepare(site: CabledSite) -> None:
        site.issue_certificate()
        site.daemons["process-server"].health_host = FAR

    with contextlib.ExitStack() as stack:
        networks = {"process-server": cable.far_namespace}
        yield stack.enter_context(fault_site(tmp_path, 128 * MIB, kind=CabledSite, prepare=prepare, networks=networks))


def test_replication_survives_a_cut_and_a_throttled_network(site: FaultSite, cable: Cable) -> None:
    site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.5 s")
    site.running.protect(site.disk.device)
    with use_is_bounded(site):
        cable.throttle("32mbit")
        site.await_progress(site.position(), what="and over a throttled network")
        cable.pull_out()
        site.disk.write_once()
        site.await_condition("disk-peer-unavailable", "")
        cable.plug_in()
        site.await_progress(site.position(), what="a cut of a throttled network")
        cable.release()
        site.launch("process-server")
        cable.pull_out()  # in the middle of its start
        site.disk.write_once()
        site.await_condition("disk-peer-unavailable", "")
        cable.plug_in()
        site.await_progress(site.position(), what="a start without network")
    site.prove()
