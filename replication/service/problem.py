"""Errors over HTTP as problem details (RFC 9457); at the caller they become the same error tree again (``problem_details.py``).

Called by the process server's and the configuration server's middlewares.
``type`` is ``urn:blockferry:error:CODE`` with the class's stable code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from replication import errors
from replication.problem_details import TYPE_PREFIX

PROBLEM_CONTENT_TYPE: Final = "application/problem+json"

_STATUS: Final[dict[type[errors.BlockferryError], int]] = {
    errors.Overloaded: 503,
    errors.PeerUnavailable: 502,
    errors.Retryable: 503,
    errors.KeyConflict: 409,
    errors.Conflict: 409,
    errors.NotFound: 404,
    errors.Refused: 403,
    errors.Unsupported: 501,
    errors.SettingsError: 400,
    errors.InvalidInput: 400,
    errors.Permanent: 422,
    errors.ResyncRequired: 410,
    errors.IntegrityError: 400,
    errors.PeerProtocolError: 400,
    errors.BlockferryError: 500,
}


_logger = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem_response(error: errors.BlockferryError, status: int | None = None) -> web.Response:
    """The response that says what, where and remedy; 503 carries Retry-After in whole seconds.

    :param status: if it is not the error's own.
    """
    if status is None:
        status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
    body: dict[str, object] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.code.replace("-", " "),
        "status": status,
        "detail": error.message,
    }
    for name, value in (
        ("hint", error.hint),
        ("disk", error.disk),
        ("epoch", error.epoch),
        ("offset_bytes", error.offset_bytes),
    ):
        if value is not None:
            body[name] = value
    headers = {}
    if isinstance(error, errors.Retryable):
        retry_after_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        body["retry_after_s"] = retry_after_s
        headers["Retry-After"] = str(max(1, round(retry_after_s)))
    return web.Response(
        status=status, body=json.dumps(body).encode(), headers=headers, content_type=PROBLEM_CONTENT_TYPE
    )


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn the error tree into problem responses; an unexpected exception becomes a 500 that tells nothing of the inside.

    An error after the first bytes of a response went out cuts the connection: a second response would be taken for the rest of
    the first one's body.
    """
    try:
        return await handler(request)
    except Exception as error:  # every error becomes an answer; one nobody expected is logged with its traceback
        if isinstance(error, ConnectionError):
            raise
        response = _answer(request, error)
        if request.writer.output_size > 0:
            raise ConnectionAbortedError("cannot go on with a response that has begun") from error
        return response


def _answer(request: web.Request, error: Exception) -> web.StreamResponse:
    fields = {"method": request.method, "path": request.path}
    if isinstance(error, web.HTTPException):
        return _http_problem(error)
    if not isinstance(error, errors.BlockferryError):
        _logger.error("request failed", exc_info=error, extra={"fields": fields})
        return problem_response(errors.BlockferryError("cannot answer: an internal error was logged"))
    if not isinstance(error, errors.Retryable):
        _logger.info("request refused", extra={"fields": {**fields, "code": error.code, "error": str(error)}})
    return problem_response(error)


def _http_problem(error: web.HTTPException) -> web.StreamResponse:
    if error.status < 400:
        raise error
    body = {"type": "about:blank", "title": error.reason, "status": error.status, "detail": error.text or error.reason}
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return web.Response(
        status=error.status, body=json.dumps(body).encode(), headers=allow, content_type=PROBLEM_CONTENT_TYPE
    )
