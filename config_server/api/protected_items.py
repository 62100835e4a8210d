"""Protected items: list, status, and the operators' verbs. Served by ``routes``.

``{item}`` is an item's identifier, or a server's identifier or host name: then its newest item is meant.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import migration, protection
from config_server.api.routes import Access, Call, Query, Route
from config_server.events import Actor
from config_server.item_status import status_of
from config_server.items import find_item
from config_server.job_documents import ResyncParameters, TestMigrationParameters
from config_server.job_status import job_status
from config_server.operator_plane import (
    CancellationRequest,
    CompletionRequest,
    ItemStatus,
    JobStatus,
    MigrationRequest,
    Page,
    RecoveryPointRequest,
    ResyncRequest,
    TestMigrationRequest,
)
from config_server.tables import JobRow, ProtectedItemRow
from replication.failpoint import reached

_PATH: Final = "/protected-items/{item}"
_NOT_NOW: Final = {404: "no such item", 409: "the item's state does not allow it"}

JobVerb = Callable[[AsyncSession, str, Actor, int], Awaitable[JobRow]]
ItemVerb = Callable[[AsyncSession, str, Actor, int], Awaitable[ProtectedItemRow]]


class ItemsQuery(Query):
    """``ended``: also those that are completed or stopped."""

    ended: bool = False


async def list_items(call: Call) -> Page[ItemStatus]:
    query = select(ProtectedItemRow).order_by(ProtectedItemRow.created_ns)
    if not call.parameters(ItemsQuery).ended:
        query = query.where(ProtectedItemRow.ended_ns.is_(None))
    async with call.site.database.read() as session:
        rows = list(await session.scalars(query))
        return Page[ItemStatus](items=[await _status(call, session, row) for row in rows])


async def get_item(call: Call) -> ItemStatus:
    async with call.site.database.read() as session:
        return await _status(call, session, await find_item(session, call.path["item"]))


async def _status(call: Call, session: AsyncSession, item: ProtectedItemRow) -> ItemStatus:
    site = call.site
    return await status_of(session, item, site.heartbeat, site.store_status.problem, site.ages, site.clock())


async def _start(call: Call, verb: JobVerb) -> JobStatus:
    async with call.site.database.write() as session:
        job = await verb(session, call.path["item"], call.actor, call.site.clock())
        status = await job_status(session, job)
    reached("config.order.committed")
    call.site.changed()
    return status


async def _change(call: Call, verb: ItemVerb) -> ItemStatus:
    async with call.site.database.write() as session:
        item = await verb(session, call.path["item"], call.actor, call.site.clock())
        await session.flush()
        status = await _status(call, session, item)
    reached("config.order.committed")
    call.site.changed()
    return status


async def pause(call: Call) -> ItemStatus:
    return await _change(call, protection.pause)


async def resume(call: Call) -> ItemStatus:
    return await _change(call, protection.resume)


async def resync(call: Call) -> JobStatus:
    wanted = call.body(ResyncRequest)
    parameters = ResyncParameters(disks=wanted.disks, reason=wanted.reason, distrust_digests=wanted.distrust_digests)
    return await _start(
        call,
        lambda session, item, actor, now_ns: protection.resync(session, item, parameters, actor, now_ns),
    )


async def stop(call: Call) -> JobStatus:
    return await _start(call, protection.stop)


async def cut_point(call: Call) -> JobStatus:
    wanted = call.body(RecoveryPointRequest)
    return await _start(
        call,
        lambda session, item, actor, now_ns: protection.request_recovery_point(
            session, item, wanted.consistency, actor, now_ns
        ),
    )


async def test_migrate(call: Call) -> JobStatus:
    wanted = call.body(TestMigrationRequest)
    parameters = TestMigrationParameters(point=wanted.point, allow_suspect=wanted.allow_suspect)
    return await _start(
        call,
        lambda session, item, actor, now_ns: migration.test_migrate(session, item, parameters, actor, now_ns),
    )


async def clean_up(call: Call) -> JobStatus:
    return await _start(call, migration.clean_up)


async def migrate(call: Call) -> JobStatus:
    mode = call.body(MigrationRequest).mode
    return await _start(
        call, lambda session, item, actor, now_ns: migration.migrate(session, item, mode, actor, now_ns)
    )


async def cancel(call: Call) -> ItemStatus:
    delete_disks = call.body(CancellationRequest).delete_disks
    return await _change(
        call,
        lambda session, item, actor, now_ns: migration.cancel(
            session, item, delete_disks=delete_disks, actor=actor, now_ns=now_ns
        ),
    )


async def complete(call: Call) -> JobStatus:
    discard = call.body(CompletionRequest).discard_source_changes
    return await _start(
        call,
        lambda session, item, actor, now_ns: migration.complete(
            session, item, discard_source_changes=discard, ages=call.site.ages, actor=actor, now_ns=now_ns
        ),
    )


def _verb(
    path: str,
    handler: Callable[[Call], Awaitable[JobStatus]],
    summary: str,
    body: type[ResyncRequest | RecoveryPointRequest | TestMigrationRequest | MigrationRequest | CompletionRequest]
    | None = None,
    more: dict[int, str] | None = None,
) -> Route:
    """A verb that starts a job."""
    return Route(
        "POST",
        _PATH + path,
        handler,
        Access.OPERATOR,
        summary,
        "protected items",
        body=body,
        answer=JobStatus,
        status=202,
        answers=_NOT_NOW | (more or {}),
    )


def _switch(
    path: str,
    handler: Callable[[Call], Awaitable[ItemStatus]],
    summary: str,
    body: type[CancellationRequest] | None = None,
) -> Route:
    """A verb that is done at once."""
    return Route(
        "POST",
        _PATH + path,
        handler,
        Access.OPERATOR,
        summary,
        "protected items",
        body=body,
        answer=ItemStatus,
        answers=_NOT_NOW,
    )


ROUTES: Final = (
    Route(
        "GET",
        "/protected-items",
        list_items,
        Access.READER,
        "Protected items with their status",
        "protected items",
        query=ItemsQuery,
        answer=Page[ItemStatus],
    ),
    Route(
        "GET",
        _PATH,
        get_item,
        Access.READER,
        "State, health with reasons, progress and lags of an item and its disks",
        "protected items",
        answer=ItemStatus,
        answers={404: "no such item"},
    ),
    _switch("/pause", pause, "Ship nothing more; changes go on being tracked"),
    _switch("/resume", resume, "Go on where it was paused"),
    _verb("/resync", resync, "Compare and repair in a new generation", ResyncRequest),
    _verb("/stop", stop, "Give the protection up: delete replica, points and keys"),
    _verb("/recovery-points", cut_point, "Cut a recovery point now; the job's id is the cut's", RecoveryPointRequest),
    _verb("/test-migration", test_migrate, "Make test disks from a recovery point", TestMigrationRequest),
    _verb("/test-migration/clean-up", clean_up, "Delete the test disks; the drill counts after that"),
    _verb(
        "/migration",
        migrate,
        "Cut over: final epoch, final disks, proof of identity",
        MigrationRequest,
        {501: "the mode is not available in this version"},
    ),
    _switch("/migration/cancel", cancel, "Go back to the source; the replica is kept", CancellationRequest),
    _verb(
        "/migration/complete",
        complete,
        "End the migration: the final disks stay, the replica goes",
        CompletionRequest,
    ),
)
