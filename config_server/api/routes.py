"""Routes as data, and the one way a request takes: who calls → may he → what does he say → may he still → handler → answer.

Called by ``daemon.py`` (``make_application``) with the routes that ``api/table.py`` collects. ``openapi.py`` documents the same
table, so that nothing is served that is not documented. Identity comes from the verified client certificate (agents, process servers)
or from a bearer token (operators), never from a field of the message (R11). Each route names who may call it, for operators the least
role; what changes something, and what is refused, goes into the audit log with its outcome. Who was let in is asked again after a body that
was waited for, while he waits for his answer (``waiting_request.py``), and in each writing transaction (``standing.py``).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from aiohttp import ClientPayloadError, web
from pydantic import BaseModel, ConfigDict, ValidationError

from config_server import waiting_request
from config_server.administrators import Administrator
from config_server.certificates import note_use, serial_text
from config_server.core import roles
from config_server.core.audit_chain import MAX_DETAIL, MAX_TARGET, NOBODY, AuditRecord, is_recorded
from config_server.database import Guard, unguarded
from config_server.events import Actor
from config_server.site import Site
from config_server.standing import HolderStanding, TokenStanding, Unauthenticated, no_valid_token
from replication.documents import MAX_DOCUMENT_BYTES, Document, unusable_number
from replication.errors import BlockferryError, InvalidInput, PeerProtocolError, PeerUnavailable, Refused
from replication.service.connections import note_identified, note_unidentified
from replication.service.https import peer_certificate_der
from replication.service.problem import problem_middleware, problem_response
from replication.tls_identity import PeerCertificate, PeerName, Role, peer_certificate

PREFIX: Final = "/api/v1"
_BEARER: Final = "Bearer "
_NO_STORE: Final = {"Cache-Control": "no-store"}

_logger = logging.getLogger(__name__)


class Access(enum.Enum):
    """Who may call; of the three roles of operators' tokens, the least."""

    PUBLIC = "public"
    AGENT = "agent"
    PROCESS_SERVER = "process-server"
    READER = roles.READER
    OPERATOR = roles.OPERATOR
    ADMINISTRATOR = roles.ADMINISTRATOR

    @property
    def is_of_operators(self) -> bool:
        """Whether it is by a token, whose role must be this or more."""
        return self.value in roles.ROLES


class Query(BaseModel):
    """Base of query parameters: immutable, no unknown names; values are converted from text."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoQuery(Query):
    """No parameters."""


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """An answer that is no JSON document."""

    text: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with a status of its own; ``document`` None: no content."""

    status: int
    document: BaseModel | None = None


DocumentT = TypeVar("DocumentT", bound=Document)
QueryT = TypeVar("QueryT", bound=Query)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, as far as that is proved; not yet whether he may come in: a revoked certificate still says whose it was."""

    peer: PeerName | None = None
    serial: str | None = None
    administrator: Administrator | None = None

    @property
    def actor(self) -> Actor:
        if self.administrator is not None:
            return self.administrator.actor
        return Actor(NOBODY if self.peer is None else f"{self.peer.role}:{self.peer.identifier}")

    @property
    def credential(self) -> str | None:
        """The token's or the certificate's public number."""
        return self.serial if self.administrator is None else self.administrator.token


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been authenticated, authorized and parsed. What is written with ``site.database`` is guarded by ``standing``."""

    site: Site
    path: Mapping[str, str]
    remote: str
    peer: PeerName | None
    administrator: Administrator | None
    document: Document | None
    query: Query
    serial: str | None = None
    """Of the caller's certificate."""
    standing: Guard = unguarded
    """Whether the caller may still come in: for what services write for him with a database of their own."""

    @property
    def actor(self) -> Actor:
        return Identity(self.peer, self.serial, self.administrator).actor

    @property
    def peer_id(self) -> str:
        """The identifier in the caller's certificate; only on routes for agents and process servers."""
        if self.peer is None:
            raise AssertionError("this route is not for certificates")
        return self.peer.identifier

    def body(self, kind: type[DocumentT]) -> DocumentT:
        """The request's body, which the route declares as ``kind``."""
        if not isinstance(self.document, kind):
            raise TypeError(f"this route does not declare {kind.__name__}")
        return self.document

    def parameters(self, kind: type[QueryT]) -> QueryT:
        if not isinstance(self.query, kind):
            raise TypeError(f"this route does not declare {kind.__name__}")
        return self.query


HandlerResult = BaseModel | Answer | TextAnswer | None
RouteHandler = Callable[[Call], Awaitable[HandlerResult]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. ``path`` is below ``/api/v1``; ``answers`` names further statuses and what they mean."""

    method: str
    path: str
    handler: RouteHandler
    access: Access
    summary: str
    tag: str
    body: type[Document] | None = None
    query: type[Query] = NoQuery
    answer: type[BaseModel] | None = None
    status: int = 200
    answers: Mapping[int, str] = field(default_factory=dict)
    answer_content_type: str = "application/json"

    @property
    def full_path(self) -> str:
        return PREFIX + self.path

    @property
    def waits(self) -> bool:
        """Whether the answer may be long in coming: by its parameter ``wait_s``."""
        return "wait_s" in self.query.model_fields


def make_application(site: Site, routes: Sequence[Route], body_timeout_s: float) -> web.Application:
    """The application that serves ``routes``; a request's body has ``body_timeout_s`` to arrive whole."""
    app = web.Application(middlewares=[problem_middleware], client_max_size=MAX_DOCUMENT_BYTES)
    for route in routes:
        app.router.add_route(route.method, route.full_path, _served(site, route, body_timeout_s))
    return app


def _served(site: Site, route: Route, body_timeout_s: float) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        identity = Identity()
        try:
            certificate = _shown_certificate(route, request)
            if certificate is not None:
                # Whatever comes of it, it was he.
                identity = Identity(certificate.name, serial_text(certificate.serial))
            was_whole = request.content.is_eof()
            identity = await _identified(site, route, request, certificate)
            if identity != Identity():
                note_identified(request)
            _check_role(route, identity)
            document = await _document(route, request, body_timeout_s)
            if not was_whole:
                # It took its time, in which he may have been revoked.
                identity = await _identified(site, route, request, certificate)
            call = _call(site, route, request, identity, document)
            response: web.StreamResponse = _response(route, await _handled(route, call, certificate))
        except Unauthenticated as error:
            note_unidentified(request)
            response = problem_response(error, 401)
            if route.access.is_of_operators:
                response.headers["WWW-Authenticate"] = "Bearer"
            await _audit(site, route, request, identity, 401, error.message)
            return response
        except BlockferryError as error:
            await _audit(site, route, request, identity, problem_response(error).status, error.message)
            raise
        except Exception:
            await _audit(site, route, request, identity, 500, "an internal error, see the log")
            raise
        await _audit(site, route, request, identity, response.status, "")
        return response

    return serve


async def _handled(route: Route, call: Call, certificate: PeerCertificate | None) -> HandlerResult:
    if not route.waits:
        return await route.handler(call)

    async def check() -> None:
        if certificate is not None:
            certificate.check_not_expired(call.site.clock())
        async with call.site.database.read() as session:
            await call.standing(session)

    return await waiting_request.answer_if_it_stands(route.handler(call), check, waiting_request.LOOK_S)


async def _audit(site: Site, route: Route, request: web.Request, identity: Identity, status: int, detail: str) -> None:
    recorded = is_recorded(
        route.method,
        for_operators=route.access.is_of_operators,
        for_anybody=route.access is Access.PUBLIC,
        status=status,
    )
    if recorded:
        await site.audit.append(
            AuditRecord(
                time_ns=site.clock(),
                actor=identity.actor,
                credential=identity.credential,
                remote=request.remote or "unknown",
                action=f"{route.method} {route.path}",
                target=request.rel_url.raw_path[:MAX_TARGET],  # encoded as it came: nothing in it moves a cursor
                status=status,
                detail=detail[:MAX_DETAIL],
            )
        )


def _response(route: Route, result: HandlerResult) -> web.Response:
    status = route.status
    if isinstance(result, TextAnswer):
        return web.Response(status=status, text=result.text, content_type=result.content_type)
    if isinstance(result, Answer):
        status, result = result.status, result.document
    if result is None:
        return web.Response(status=204 if status == 200 else status, headers=_NO_STORE)
    return web.Response(
        status=status, body=result.model_dump_json().encode(), content_type="application/json", headers=_NO_STORE
    )


def _shown_certificate(route: Route, request: web.Request) -> PeerCertificate | None:
    """That of a client on a route for certificates: TLS has verified that the authority issued it, and that the client has its key."""
    if route.access not in (Access.AGENT, Access.PROCESS_SERVER):
        return None
    der = peer_certificate_der(request)
    return None if der is None else peer_certificate(der)


async def _identified(site: Site, route: Route, request: web.Request, certificate: PeerCertificate | None) -> Identity:
    match route.access:
        case Access.PUBLIC:
            return Identity()
        case Access.READER | Access.OPERATOR | Access.ADMINISTRATOR:
            return Identity(administrator=await _administrator(site, request))
        case Access.AGENT:
            return await _peer(site, request, certificate, Role.AGENT)
        case Access.PROCESS_SERVER:
            return await _peer(site, request, certificate, Role.PROCESS_SERVER)


def _check_role(route: Route, identity: Identity) -> None:
    who = identity.administrator
    if who is not None and not roles.is_allowed(who.role, route.access.value):
        raise Refused(
            f"cannot do this as {who.role}: it needs the role {route.access.value}",
            hint="`migratectl create-token --role` makes a token for another role, with an administrator's",
        )


def _standing(site: Site, identity: Identity) -> Guard:
    if identity.administrator is not None:
        return TokenStanding(identity.administrator.token, site.clock)
    if identity.peer is not None and identity.serial is not None:
        return HolderStanding(identity.peer, identity.serial)
    return unguarded


def _call(site: Site, route: Route, request: web.Request, identity: Identity, document: Document | None) -> Call:
    standing = _standing(site, identity)
    return Call(
        site=replace(site, database=site.database.guarded(standing)),
        path=dict(request.match_info),
        remote=request.remote or "unknown",
        peer=identity.peer,
        administrator=identity.administrator,
        document=document,
        query=_query(route, request),
        serial=identity.serial,
        standing=standing,
    )


async def _administrator(site: Site, request: web.Request) -> Administrator:
    header = request.headers.get("Authorization", "")
    found = None
    if header.startswith(_BEARER):
        found = await site.administrators.recognize(header.removeprefix(_BEARER).strip())
    if found is None:
        raise no_valid_token()
    return found


async def _peer(site: Site, request: web.Request, certificate: PeerCertificate | None, role: Role) -> Identity:
    """The holder of the client certificate: of the right role, neither expired nor revoked, and known."""
    der = peer_certificate_der(request)
    if der is None or certificate is None:
        raise Unauthenticated("cannot tell who you are: a client certificate is needed", hint="enrol first")
    if certificate.name.role is not role:
        raise Refused(f"cannot serve an {certificate.name.role} here: this is for an {role}")
    certificate.check_not_expired(site.clock())
    serial = serial_text(certificate.serial)
    async with site.database.read() as session:
        is_noted = await HolderStanding(certificate.name, serial).is_noted(session)
    if not is_noted:
        await note_use(site.database, der, site.clock())
    return Identity(certificate.name, serial)


async def _document(route: Route, request: web.Request, timeout_s: float) -> Document | None:
    if route.body is None:
        return None
    try:
        async with asyncio.timeout(timeout_s):
            content = await request.read()
    except TimeoutError as error:
        raise PeerUnavailable(f"cannot wait any longer for a body: it was not whole within {timeout_s:g} s") from error
    except web.RequestPayloadError as error:
        raise InvalidInput("cannot read a body: it is not what its head announces") from error
    except (ConnectionError, ClientPayloadError) as error:
        raise PeerUnavailable("cannot read a body: its client went away before it was whole") from error
    try:
        return route.body.decode(content)
    except PeerProtocolError as error:
        raise InvalidInput(error.message) from error


def _query(route: Route, request: web.Request) -> Query:
    given = dict(request.query)
    if len(given) != len(request.query):
        raise InvalidInput("cannot use the query: a parameter occurs twice")
    try:
        query = route.query.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:100] for part in first["loc"])
        known = ", ".join(route.query.model_fields) or "none"
        raise InvalidInput(
            f"cannot use the parameter {place!r}: {first['msg']}", hint=f"parameters: {known}"
        ) from error
    unusable = unusable_number(query, "")
    if unusable is not None:
        raise InvalidInput(f"cannot use the parameter {unusable!r}: a number beyond 64 bits")
    return query
