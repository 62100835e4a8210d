"""Upload limits of one process server: what it is told and what it obeys. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from config_server.api.if_revision import IfRevision
from config_server.api.routes import Access, Call, Route
from config_server.operator_plane import UploadLimitsStatus
from config_server.process_server_verbs import find_process_server
from config_server.process_servers import heartbeat_of
from config_server.revisions import revision_of
from config_server.tables import ProcessServerRow
from config_server.upload_limits import limits_of, set_limits
from replication.upload_limits import UploadLimits

_PATH: Final = "/process-servers/{server}/upload-limits"
_ANSWERS: Final = {404: "no such process server", 409: "the name is not unique"}
_CHANGED: Final = {409: "the name is not unique, or the limits are of another revision"}


def _status(row: ProcessServerRow) -> UploadLimitsStatus:
    observed, limits = heartbeat_of(row), limits_of(row)
    return UploadLimitsStatus(
        process_server=row.hostname,
        limits=limits,
        revision=revision_of(limits),
        in_force=None if observed is None else observed.upload,
    )


async def get_upload_limits(call: Call) -> UploadLimitsStatus:
    async with call.site.database.read() as session:
        return _status(await find_process_server(session, call.path["server"]))


async def put_upload_limits(call: Call) -> UploadLimitsStatus:
    async with call.site.database.write() as session:
        row = await find_process_server(session, call.path["server"])
        if_revision = call.parameters(IfRevision).if_revision
        set_limits(session, row, call.body(UploadLimits), call.actor, call.site.clock(), if_revision)
        return _status(row)


ROUTES: Final = (
    Route(
        "GET",
        _PATH,
        get_upload_limits,
        Access.READER,
        "A process server's upload limits: told, and in force",
        "process servers",
        answer=UploadLimitsStatus,
        answers=_ANSWERS,
    ),
    Route(
        "PUT",
        _PATH,
        put_upload_limits,
        Access.OPERATOR,
        "Limit what a process server sends to the store; it obeys from its next heartbeat on",
        "process servers",
        body=UploadLimits,
        query=IfRevision,
        answer=UploadLimitsStatus,
        answers=_ANSWERS | _CHANGED,
    ),
)
