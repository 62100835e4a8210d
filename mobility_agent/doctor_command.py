"""``mobility-agent doctor``: prints what ``doctor`` finds.

Called by ``cli``. Exit codes: 0 nothing failed, 1 something did, 2 wrong use or unusable configuration.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from mobility_agent.config import DEFAULT_CONFIG_PATH, AgentSettings
from mobility_agent.core.diagnosis import Verdict, worst
from mobility_agent.doctor import examine
from replication.service.cli import load_or_exit
from replication.service.console import make_console


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG_PATH,
    show_default=True,
    help="Configuration file (YAML).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(config_path: Path, as_json: bool) -> None:
    """Look for what stands against replication: kernel, disks, certificate, clock, ways to the servers. Changes nothing."""
    findings = examine(load_or_exit(AgentSettings, config_path, check_only=False))
    if as_json:
        click.echo(
            json.dumps({"verdict": worst(findings), "findings": [asdict(finding) for finding in findings]}, indent=2)
        )
    else:
        table = Table(box=None, header_style="bold")
        for title in ("CHECK", "VERDICT", "WHAT", "REMEDY"):
            table.add_column(title, overflow="fold")
        for finding in findings:
            table.add_row(finding.check, finding.verdict, finding.what, finding.remedy)
        make_console().print(table)
    sys.exit(1 if worst(findings) is Verdict.FAILED else 0)
