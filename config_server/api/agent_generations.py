"""Generations that agents ask for. Served by ``routes``; a machine can only touch disks it owns (R11)."""

from __future__ import annotations

from typing import Final

from config_server.api.routes import Access, Call, Route
from replication.control_plane import GenerationGrant, GenerationRequest
from replication.errors import InvalidInput
from replication.identifiers import DiskId, GenerationId, GenerationKey, parse_uuid


def generation_key(call: Call) -> GenerationKey:
    """The generation that the path names.

    :raises InvalidInput: if it is none.
    """
    number = call.path["generation"]
    if not number.isascii() or not number.isdigit() or len(number) > 10:
        raise InvalidInput(f"cannot use {number[:20]!r} as a generation")
    return GenerationKey(DiskId(call.path["disk"]), GenerationId(int(number)))


async def post_generation(call: Call) -> GenerationGrant:
    disk = parse_uuid(call.path["disk"], "disk id")
    try:
        return await call.site.generations.grant(call.peer_id, disk, call.body(GenerationRequest), guard=call.standing)
    finally:
        call.site.wake_reconciler()  # a request to close the older generation may be waiting for delivery


async def get_generation(call: Call) -> GenerationGrant:
    return await call.site.generations.granted(call.peer_id, generation_key(call), guard=call.standing)


ROUTES: Final = (
    Route(
        "POST",
        "/agent/disks/{disk}/generations",
        post_generation,
        Access.AGENT,
        "A new generation of a disk; the same request gets the same generation",
        "agent",
        body=GenerationRequest,
        answer=GenerationGrant,
        answers={
            403: "not this machine's disk, or not protected",
            409: "the request's generation is closed already",
            503: "the older generation is being closed",
        },
    ),
    Route(
        "GET",
        "/agent/disks/{disk}/generations/{generation}",
        get_generation,
        Access.AGENT,
        "A generation granted earlier",
        "agent",
        answer=GenerationGrant,
        answers={403: "not this machine's disk", 404: "not granted"},
    ),
)
