"""Sizing and churn profiles: what the observed, or measured, churn needs. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from config_server.api.routes import Access, Call, Query, Route
from config_server.churn_profiles import begin_profiles, list_profiles, withdraw_profile
from config_server.core.target_disks import DiskType
from config_server.operator_plane import Page
from config_server.sizing import size_site
from config_server.sizing_documents import ProfileRequest, ProfileStatus, SizingReport


class SizingQuery(Query):
    """``bandwidth_bits_per_s``: the line that there is. ``wire_ratio``: bytes sent for each that changed (0.5: compression saves half).
    ``target_disk_type``: what is planned for disks without protection; by default what the default policy says.
    """

    bandwidth_bits_per_s: float | None = Field(default=None, gt=0, le=1e13)
    wire_ratio: float = Field(default=1.0, gt=0, le=2)
    point_interval_s: float = Field(default=300.0, ge=10, le=86400)
    profiles: bool = False
    target_disk_type: DiskType | None = None


async def get_sizing(call: Call) -> SizingReport:
    asked = call.parameters(SizingQuery)
    async with call.site.database.read() as session:
        return await size_site(
            session,
            asked.bandwidth_bits_per_s,
            asked.wire_ratio,
            asked.point_interval_s,
            call.site.clock(),
            profiles=asked.profiles,
            disk_limit_bytes=call.site.disk_churn_limit_bytes,
            target_disk_type=asked.target_disk_type,
        )


async def get_profiles(call: Call) -> Page[ProfileStatus]:
    async with call.site.database.read() as session:
        return Page[ProfileStatus](items=await list_profiles(session))


async def post_profiles(call: Call) -> Page[ProfileStatus]:
    asked = call.body(ProfileRequest)
    async with call.site.database.write() as session:
        begun = await begin_profiles(session, asked.servers, asked.duration_s, call.actor, call.site.clock())
        await session.flush()
        statuses = [status for status in await list_profiles(session) if status.server in begun]
    call.site.changed()
    return Page[ProfileStatus](items=statuses)


async def delete_profile(call: Call) -> None:
    async with call.site.database.write() as session:
        await withdraw_profile(session, call.path["server"], call.actor, call.site.clock())
    call.site.changed()


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
    Route(
        "GET",
        "/churn-profiles",
        get_profiles,
        Access.READER,
        "Churn measured without replication: each server's newest profile",
        "site",
        answer=Page[ProfileStatus],
    ),
    Route(
        "POST",
        "/churn-profiles",
        post_profiles,
        Access.OPERATOR,
        "Have agents measure churn without replicating; an order before it is replaced",
        "site",
        body=ProfileRequest,
        answer=Page[ProfileStatus],
        status=202,
        answers={404: "no such server", 409: "nothing that is not replicated already"},
    ),
    Route(
        "DELETE",
        "/churn-profiles/{server}",
        delete_profile,
        Access.OPERATOR,
        "Stop measuring; what was seen so far is kept",
        "site",
        status=204,
        answers={404: "no such server, or nothing is measured on it"},
    ),
)
