"""Operators' tokens: exchange of the one-time secret, list, new ones, revocation. Served by ``routes``."""

from __future__ import annotations

from typing import Final, cast

from config_server.api.routes import Access, Call, Route
from config_server.certificate_plane import TokenExchange, TokenGrant, TokenRequest, TokenRole, TokenStatus
from config_server.operator_plane import Page, timestamp


async def exchange_secret(call: Call) -> TokenGrant:
    asked = call.body(TokenExchange)
    made = await call.site.administrators.exchange(asked.secret, asked.name, call.remote)
    return TokenGrant(
        id=made.identifier,
        name=asked.name,
        role="administrator",
        token=made.text,
        expires_at=timestamp(made.expires_ns),
    )


async def create_token(call: Call) -> TokenGrant:
    asked = call.body(TokenRequest)
    made = await call.site.administrators.create_token(
        asked.name, call.actor, asked.role, asked.valid_for_s, guard=call.standing
    )
    return TokenGrant(
        id=made.identifier,
        name=asked.name,
        role=asked.role,
        token=made.text,
        expires_at=timestamp(made.expires_ns),
    )


async def list_tokens(call: Call) -> Page[TokenStatus]:
    own = None if call.administrator is None else call.administrator.token
    return Page[TokenStatus](
        items=[
            TokenStatus(
                id=row.id,
                name=row.name,
                role=cast("TokenRole", row.role),
                created_at=timestamp(row.created_ns),
                created_by=row.created_by,
                expires_at=None if row.expires_ns is None else timestamp(row.expires_ns),
                own=row.id == own,
            )
            for row in await call.site.administrators.list_valid()
        ]
    )


async def revoke_token(call: Call) -> None:
    await call.site.administrators.revoke(call.path["token"], call.actor, guard=call.standing)


ROUTES: Final = (
    Route(
        "POST",
        "/tokens/exchange",
        exchange_secret,
        Access.PUBLIC,
        "An administrator's token for the one-time secret of a new site",
        "tokens",
        body=TokenExchange,
        answer=TokenGrant,
        status=201,
        answers={403: "the secret is wrong, was used already, or has expired", 503: "too many attempts"},
    ),
    Route(
        "GET",
        "/tokens",
        list_tokens,
        Access.ADMINISTRATOR,
        "Valid tokens, without their secrets",
        "tokens",
        answer=Page[TokenStatus],
    ),
    Route(
        "POST",
        "/tokens",
        create_token,
        Access.ADMINISTRATOR,
        "A new token with a role, told once",
        "tokens",
        body=TokenRequest,
        answer=TokenGrant,
        status=201,
    ),
    Route(
        "DELETE",
        "/tokens/{token}",
        revoke_token,
        Access.ADMINISTRATOR,
        "Revoke a token",
        "tokens",
        status=204,
        answers={404: "no such token", 409: "the last administrator's"},
    ),
)
