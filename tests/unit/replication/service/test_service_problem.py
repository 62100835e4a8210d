"""Problem documents: every error of the tree crosses HTTP unchanged; a peer's nonsense becomes an error, never an exception."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from replication import errors
from replication.problem_details import error_from_problem
from replication.service.problem import PROBLEM_CONTENT_TYPE, problem_middleware, problem_response

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.BlockferryError)]


def _body(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_crosses_http_unchanged(kind: type[errors.BlockferryError]) -> None:
    sent = kind("cannot go on", disk="0f8f", epoch=7, offset_bytes=4096, hint="try the other door")
    response = problem_response(sent)
    assert response.content_type == PROBLEM_CONTENT_TYPE
    assert 400 <= response.status < 600
    received = error_from_problem(response.status, _body(response), "the process server")
    assert type(received) is kind
    assert (received.message, received.disk, received.epoch, received.offset_bytes, received.hint) == (
        *("cannot go on", "0f8f", 7, 4096),
        "try the other door",
    )


def test_error_declared_beside_a_protocol_crosses_too() -> None:
    class NotToday(errors.Conflict):
        code = "not-today"

    class Inherits(errors.NotFound):
        """Has its parent's code, and must not stand for its parent."""

    response = problem_response(NotToday("cannot do it today"))
    assert response.status == 409
    assert type(error_from_problem(409, _body(response), "peer")) is NotToday
    missing = problem_response(errors.NotFound("cannot find it"))
    assert type(error_from_problem(404, _body(missing), "peer")) is errors.NotFound


@pytest.mark.parametrize(("retry_after_s", "header"), [(None, "1"), (0.2, "1"), (2.4, "2"), (30.0, "30")])
def test_what_may_be_retried_says_when(retry_after_s: float | None, header: str) -> None:
    response = problem_response(errors.Overloaded("cannot take more", retry_after_s=retry_after_s))
    assert (response.status, response.headers["Retry-After"]) == (503, header)
    received = error_from_problem(503, _body(response), "peer")
    assert isinstance(received, errors.Overloaded)
    assert received.retry_after_s == (1.0 if retry_after_s is None else retry_after_s)


@pytest.mark.parametrize("value", ["-1", "1e999", "NaN", "Infinity", "9" * 400, '"5"', "null", "[1]", "100000"])
def test_delay_beyond_reason_counts_as_none(value: str) -> None:
    body = f'{{"type": "urn:blockferry:error:overloaded", "detail": "cannot", "retry_after_s": {value}}}'
    received = error_from_problem(503, body.encode(), "peer")
    assert isinstance(received, errors.Overloaded)
    assert received.retry_after_s is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Permanent),
        (401, errors.Refused),
        (403, errors.Refused),
        (404, errors.NotFound),
        (408, errors.Retryable),
        (413, errors.Permanent),
        (429, errors.Retryable),
        (500, errors.Retryable),
        (501, errors.Permanent),
        (502, errors.Retryable),
        (505, errors.Permanent),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad gateway</html>",
        b"[]",
        b'"text"',
        b"{}",
        b'{"type": "urn:blockferry:error:from-a-newer-version", "detail": "x"}',
        b'{"type": "about:blank", "detail": "x"}',
        b'{"type": "urn:blockferry:error:conflict", "detail": " "}',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"type": "urn:blockferry:error:conflict", "detail": "' + b"x" * 70_000 + b'"}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_answer_that_is_no_problem_document_becomes_what_its_status_suggests(
    status: int, kind: type[errors.BlockferryError], body: bytes
) -> None:
    received = error_from_problem(status, body, "the sink")
    assert type(received) is kind
    assert received.message == f"cannot use the answer of the sink: HTTP status {status}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["detail", "hint", "disk", "epoch", "offset_bytes", "retry_after_s", "status"]


@given(st.sampled_from([kind.code for kind in TREE]), st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_no_document_makes_the_client_raise(code: str, fields: dict[str, Any]) -> None:
    body = json.dumps({"type": f"urn:blockferry:error:{code}", **fields}).encode()
    received = error_from_problem(400, body, "peer")
    assert str(received)
    if isinstance(received, errors.Retryable) and received.retry_after_s is not None:
        assert 0 <= received.retry_after_s <= 3600


# -- the middleware, in a real server -------------------------------------------------------------------------------


async def _raises_known(_request: web.Request) -> web.Response:
    raise errors.KeyConflict("cannot take another content for this key", disk="sda", epoch=3)


async def _raises_unknown(_request: web.Request) -> web.Response:
    raise RuntimeError("the secret is 1234")


async def _raises_http(_request: web.Request) -> web.Response:
    raise web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2)


async def _redirects(_request: web.Request) -> web.Response:
    raise web.HTTPFound("/known")


def _fails_after_the_first_bytes(error: Exception) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "2000"})
        await response.prepare(request)
        await response.write(b"x" * 1000)
        raise error

    return handler


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application(middlewares=[problem_middleware])
    app.router.add_get("/known", _raises_known)
    app.router.add_get("/unknown", _raises_unknown)
    app.router.add_get("/http", _raises_http)
    app.router.add_get("/redirect", _redirects)
    app.router.add_get("/started-known", _fails_after_the_first_bytes(errors.NotFound("cannot find the rest")))
    app.router.add_get("/started-unknown", _fails_after_the_first_bytes(RuntimeError("broken")))
    app.router.add_get("/started-http", _fails_after_the_first_bytes(web.HTTPNotFound()))
    async with TestClient(TestServer(app)) as started:
        yield started


async def test_error_of_the_tree_is_answered_with_its_document(
    client: TestClient[web.Request, web.Application],
) -> None:
    response = await client.get("/known")
    assert (response.status, response.content_type) == (409, PROBLEM_CONTENT_TYPE)
    received = error_from_problem(response.status, await response.read(), "peer")
    assert isinstance(received, errors.KeyConflict)
    assert (received.disk, received.epoch) == ("sda", 3)


async def test_unexpected_error_tells_nothing_of_the_inside(
    client: TestClient[web.Request, web.Application], caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.get("/unknown")
    text = await response.text()
    assert (response.status, response.content_type) == (500, PROBLEM_CONTENT_TYPE)
    assert "1234" not in text
    assert "the secret is 1234" in caplog.text, "the log has the traceback"


@pytest.mark.parametrize(("path", "status"), [("/http", 413), ("/nowhere", 404)])
async def test_http_errors_are_problem_documents_too(
    client: TestClient[web.Request, web.Application], path: str, status: int
) -> None:
    response = await client.get(path)
    assert (response.status, response.content_type) == (status, PROBLEM_CONTENT_TYPE)
    assert json.loads(await response.read())["status"] == status


async def test_wrong_method_says_which_are_allowed(client: TestClient[web.Request, web.Application]) -> None:
    response = await client.delete("/known")
    assert response.status == 405
    assert "GET" in response.headers["Allow"]


async def test_redirect_passes(client: TestClient[web.Request, web.Application]) -> None:
    response = await client.get("/redirect", allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (302, "/known")


@pytest.mark.parametrize("path", ["/started-known", "/started-unknown", "/started-http"])
async def test_error_after_the_first_bytes_cuts_the_body_short(
    client: TestClient[web.Request, web.Application], path: str
) -> None:
    """A second response would be taken for the rest of the first one's body: bytes that nobody sent."""
    response = await client.get(path)
    received = b""
    cut_short = False
    try:
        async with asyncio.timeout(10):
            async for piece in response.content.iter_any():
                received += piece
    except aiohttp.ClientPayloadError:
        cut_short = True
    assert cut_short
    assert received == b"x" * len(received)
