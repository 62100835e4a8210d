"""Sizing: what the observed churn needs. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from config_server.api.routes import Access, Call, Query, Route
from config_server.sizing import size_site
from config_server.sizing_documents import SizingReport


class SizingQuery(Query):
    """``bandwidth_bits_per_s``: the line that there is. ``wire_ratio``: bytes sent for each that changed (0.5: compression saves half)."""

    bandwidth_bits_per_s: float | None = Field(default=None, gt=0, le=1e13)
    wire_ratio: float = Field(default=1.0, gt=0, le=2)
    point_interval_s: float = Field(default=300.0, ge=10, le=86400)


async def get_sizing(call: Call) -> SizingReport:
    asked = call.parameters(SizingQuery)
    async with call.site.database.read() as session:
        return await size_site(
            session, asked.bandwidth_bits_per_s, asked.wire_ratio, asked.point_interval_s, call.site.clock()
        )


ROUTES: Final = (
    Route(
        "GET",
        "/sizing",
        get_sizing,
        Access.READER,
        "Machines, bandwidth, initial replication time and RPO that the observed churn needs",
        "site",
        query=SizingQuery,
        answer=SizingReport,
    ),
)
