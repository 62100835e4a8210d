"""Process servers for administrators: list, drain, remove; which one an item ships to. Served by ``routes``.

``{server}`` is a process server's identifier, host name, or HOST:PORT of its address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from config_server import process_server_verbs as verbs
from config_server.api.routes import Access, Call, Route
from config_server.events import Actor
from config_server.item_status import status_of
from config_server.operator_plane import ItemStatus, Page, ProcessServerStatus, SwitchRequest
from config_server.process_server_status import statuses
from config_server.tables import ProcessServerRow
from replication.failpoint import reached

_PATH: Final = "/process-servers/{server}"
_NO_SUCH: Final = {404: "no such process server", 409: "several have this name"}


async def list_process_servers(call: Call) -> Page[ProcessServerStatus]:
    async with call.site.database.read() as session:
        return Page[ProcessServerStatus](items=await statuses(session, call.site.ages))


async def get_process_server(call: Call) -> ProcessServerStatus:
    async with call.site.database.read() as session:
        server = await verbs.find_process_server(session, call.path["server"])
        return (await statuses(session, call.site.ages, server.id))[0]


def _committed(call: Call) -> None:
    reached("config.order.committed")
    call.site.changed()


async def _change(
    call: Call, verb: Callable[[AsyncSession, str, Actor, int], Awaitable[ProcessServerRow]]
) -> ProcessServerStatus:
    async with call.site.database.write() as session:
        server = await verb(session, call.path["server"], call.actor, call.site.clock())
        await session.flush()
        status = (await statuses(session, call.site.ages, server.id))[0]
    _committed(call)
    return status


async def drain(call: Call) -> ProcessServerStatus:
    return await _change(call, verbs.drain)


async def undrain(call: Call) -> ProcessServerStatus:
    return await _change(call, verbs.undrain)


async def remove(call: Call) -> None:
    site = call.site
    async with site.database.write() as session:
        revoked = await verbs.remove(session, call.path["server"], site.heartbeat, site.ages, call.actor, site.clock())
    _committed(call)
    site.certificates.on_revoked(frozenset(revoked))


async def switch(call: Call) -> ItemStatus:
    site, to = call.site, call.body(SwitchRequest).process_server
    async with site.database.write() as session:
        item = await verbs.switch(session, call.path["item"], to, site.heartbeat, site.ages, call.actor, site.clock())
        await session.flush()
        status = await status_of(session, item, site.heartbeat, site.store_status.problem, site.ages, site.clock())
    _committed(call)
    return status


ROUTES: Final = (
    Route(
        "GET",
        "/process-servers",
        list_process_servers,
        Access.READER,
        "Process servers with their newest heartbeat, load and capacity",
        "process servers",
        answer=Page[ProcessServerStatus],
    ),
    Route(
        "GET",
        _PATH,
        get_process_server,
        Access.READER,
        "One process server; while it is drained, how far that has come",
        "process servers",
        answer=ProcessServerStatus,
        answers=_NO_SUCH,
    ),
    Route(
        "POST",
        _PATH + "/drain",
        drain,
        Access.OPERATOR,
        "Let its items change over to others, and give it no new ones",
        "process servers",
        answer=ProcessServerStatus,
        answers=_NO_SUCH,
    ),
    Route(
        "POST",
        _PATH + "/undrain",
        undrain,
        Access.OPERATOR,
        "Let it take items again",
        "process servers",
        answer=ProcessServerStatus,
        answers=_NO_SUCH,
    ),
    Route(
        "DELETE",
        _PATH,
        remove,
        Access.ADMINISTRATOR,
        "Forget it and revoke its certificates",
        "process servers",
        answers={404: "no such process server", 409: "items are on it and it is heard, or a migrated source is held"},
    ),
    Route(
        "POST",
        "/protected-items/{item}/process-server",
        switch,
        Access.OPERATOR,
        "Give the item to another process server",
        "protected items",
        body=SwitchRequest,
        answer=ItemStatus,
        answers={404: "no such item or process server", 409: "a migration is under way, or it can take no items"},
    ),
)
