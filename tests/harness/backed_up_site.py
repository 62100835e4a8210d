"""A site that is backed up while somebody writes. Called by the tests of backup and restoration."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import yaml

from config_server.backup import back_up
from config_server.config import Settings
from tests.harness.config_site import Lab

PASSPHRASE: Final = "correct horse battery staple"


def write_configuration(settings: Settings, path: Path) -> Path:
    document = {
        "listen": settings.listen,
        "state_dir": str(settings.state_dir),
        "writer_public_key": settings.writer_public_key,
        "store": {"url": settings.store.url, "account": "lab", "key_file": str(settings.store.key_file)},
    }
    if settings.database_url is not None:
        document["database_url"] = settings.database_url
    path.write_text(yaml.safe_dump(document))
    return path


async def backed_up(lab: Lab, directory: Path) -> Path:
    """Of the running site, while somebody writes."""
    configuration = write_configuration(lab.settings, directory / "config-server.yaml")
    out = directory / "site.backup"

    async def write() -> None:
        for number in range(50):
            reply = await lab.administer("POST", "/api/v1/policies", {"name": f"policy-{number}"})
            assert reply.status == 201

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.05)
    await asyncio.to_thread(back_up, lab.settings, configuration, out, PASSPHRASE, time.time_ns)
    await writing
    return out
