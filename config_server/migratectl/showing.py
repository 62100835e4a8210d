"""An answer as JSON or as tables. Called by the commands that show what they asked for."""

from __future__ import annotations

from collections.abc import Callable

import click
from pydantic import BaseModel
from rich.console import Console

from config_server.migratectl.connection import as_json
from replication.service.console import make_console


def show(document: BaseModel, *, as_json_wanted: bool, otherwise: Callable[[Console], None]) -> None:
    """Print JSON if wanted, else what ``otherwise`` prints."""
    if as_json_wanted:
        click.echo(as_json(document))
    else:
        otherwise(make_console())
