"""The agent's settings: what cannot work is refused with the place in the file and what would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mobility_agent.config import (
    MAX_EPOCH_BYTES,
    AgentSettings,
    ConfigServerSettings,
    QuiesceSettings,
    ShippingSettings,
    TrackerSettings,
)
from replication.errors import SettingsError
from replication.settings import load_settings

MIB = 2**20
SERVER = ConfigServerSettings("https://appliance")


def test_the_defaults_fit_each_other() -> None:
    settings = AgentSettings(SERVER)
    assert settings.identity_dir == settings.state_dir / "identity"


@pytest.mark.parametrize(
    "url", ["https:// no host/path?x", "http://appliance", "https://appliance/path", "https://appliance:0x1", ""]
)
def test_the_configuration_server_s_address_is_checked_with_the_configuration(tmp_path: Path, url: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"config_server: {{url: '{url}'}}\n")
    with pytest.raises(SettingsError, match="cannot use config_server: cannot use url") as refusal:
        load_settings(AgentSettings, path)
    assert (repr(url) in refusal.value.message, str(path) in refusal.value.message) == (True, True)
    assert refusal.value.hint == "expected https://HOST[:PORT]"


def test_a_granule_must_fit_a_batch_and_half_of_the_last_round() -> None:
    """Else an epoch would be read for ever without a granule in a batch, or no point could ever be made."""
    small = ShippingSettings(batch_bytes=MIB)
    AgentSettings(SERVER, shipping=small, tracker=TrackerSettings(granularity_bytes=MIB))
    with pytest.raises(SettingsError, match="granularity_bytes"):
        AgentSettings(SERVER, shipping=small, tracker=TrackerSettings(granularity_bytes=2 * MIB))
    with pytest.raises(SettingsError, match="granularity_bytes"):
        AgentSettings(
            SERVER, quiesce=QuiesceSettings(last_round_bytes=MIB), tracker=TrackerSettings(granularity_bytes=MIB)
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_bytes": MIB - 4096},
        {"batch_bytes": MIB + 1},
        {"batch_bytes": 9 * MIB},
        {"batches_in_flight": 0},
        {"batches_in_flight": 33},
        {"buffers": 4, "batches_in_flight": 4},
        {"epoch_bytes": MIB},
        {"epoch_bytes": MAX_EPOCH_BYTES + 1},
        {"unconfirmed_epochs": 0},
        {"seeding_disks": 0},
    ],
    ids=str,
)
def test_shipping_has_bounds(changes: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        replace(ShippingSettings(), **changes)


@pytest.mark.parametrize("granularity_bytes", [0, 2048, 65537, 8 * MIB])
def test_a_granularity_that_no_bitmap_has_is_refused(granularity_bytes: int) -> None:
    with pytest.raises(SettingsError):
        TrackerSettings(granularity_bytes=granularity_bytes)


def test_other_bounds() -> None:
    for refused in (
        lambda: ConfigServerSettings("http://appliance"),
        lambda: TrackerSettings(scan_interval_s=0.5),
        lambda: QuiesceSettings(hook_timeout_s=0),
        lambda: QuiesceSettings(last_round_bytes=MIB + 1),
        lambda: AgentSettings(SERVER, heartbeat_s=0.1, state_dir=Path("/x")),
    ):
        with pytest.raises(SettingsError):
            refused()
