"""The OpenAPI 3.1 document, made from the table of routes that is served. Served by ``routes`` itself at ``/api/v1/openapi.json``.

Called by ``table.py``. Schemas are pydantic's JSON Schema (2020-12, as OpenAPI 3.1 wants); every error is a problem document (RFC 9457).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from config_server.api.routes import Access, NoQuery, Route
from replication import __version__
from replication.service.problem import PROBLEM_CONTENT_TYPE

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_REF: Final = "#/components/schemas/{model}"
_References = dict[tuple[Any, JsonSchemaMode], dict[str, Any]]
_SECURITY: Final[dict[Access, list[dict[str, list[str]]]]] = {
    Access.PUBLIC: [],
    Access.AGENT: [{"clientCertificate": []}],
    Access.PROCESS_SERVER: [{"clientCertificate": []}],
    Access.READER: [{"bearerToken": []}],
    Access.OPERATOR: [{"bearerToken": []}],
    Access.ADMINISTRATOR: [{"bearerToken": []}],
}
_PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Problem details (RFC 9457); `hint` is the remedy.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:blockferry:error:conflict"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
        "disk": {"type": "string"},
        "epoch": {"type": "integer"},
        "offset_bytes": {"type": "integer"},
        "retry_after_s": {"type": "number"},
    },
}


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document as JSON values."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = []
    for route in routes:
        if route.body is not None:
            models.append((route.body, "validation"))
        if route.answer is not None:
            models.append((route.answer, "serialization"))
    found, schemas = models_json_schema(list(dict.fromkeys(models)), ref_template=_REF)
    references: _References = {**found}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.full_path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Blockferry configuration server",
            "version": __version__,
            "description": "Operators, agents and process servers speak to the configuration server here.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Problem": _PROBLEM_SCHEMA},
            "securitySchemes": {
                "bearerToken": {"type": "http", "scheme": "bearer", "description": "An operator's token."},
                "clientCertificate": {
                    "type": "mutualTLS",
                    "description": "The certificate issued at enrolment; the caller's identity is taken from it alone.",
                },
            },
        },
    }


def _operation(route: Route, references: _References) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [route.tag],
        "security": _SECURITY[route.access],
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in _PARAMETER.findall(route.full_path)
            ),
            *_query_parameters(route),
        ],
        "responses": _responses(route, references),
    }
    if route.access.is_of_operators:
        operation["x-least-role"] = route.access.value
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[route.body, "validation"]}},
        }
    return operation


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is NoQuery:
        return []
    schema = route.query.model_json_schema()
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": part}
        for name, part in schema["properties"].items()
    ]


def _responses(route: Route, references: _References) -> dict[str, Any]:
    success: dict[str, Any] = {"description": route.summary}
    if route.answer is not None:
        success["content"] = {"application/json": {"schema": references[route.answer, "serialization"]}}
    elif route.status == 200:
        success["content"] = {route.answer_content_type: {"schema": {"type": "string"}}}
    problem = {"content": {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}}
    responses = {str(route.status): success}
    for status, meaning in sorted(route.answers.items()):
        responses[str(status)] = {"description": meaning} | ({} if status < 400 else problem)
    if route.access is not Access.PUBLIC:
        responses["401"] = {"description": "no valid identity"} | problem
    if route.access.is_of_operators:
        lesser = {"description": f"the token's role is less than {route.access.value}"} | problem
        responses.setdefault("403", lesser)
    responses["default"] = {"description": "any other failure"} | problem
    return responses
