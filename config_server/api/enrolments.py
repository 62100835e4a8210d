"""Authorities and enrolment: what an unknown caller may ask. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from config_server.api.callers import is_of_this_machine
from config_server.api.routes import Access, Call, Route, TextAnswer
from replication.control_plane import EnrolmentAnswer, EnrolmentRequest


async def list_authorities(call: Call) -> TextAnswer:
    return TextAnswer(call.site.trust_store.trusted_pem(), "application/x-pem-file")


async def enrol(call: Call) -> EnrolmentAnswer:
    return await call.site.enrolments.enrol(
        call.body(EnrolmentRequest), call.remote, same_machine=is_of_this_machine(call.remote)
    )


ROUTES: Final = (
    Route(
        "GET",
        "/authorities",
        list_authorities,
        Access.PUBLIC,
        "The trusted authorities in PEM form; compare the fingerprint before trusting them",
        "enrolment",
        answer_content_type="application/x-pem-file",
    ),
    Route(
        "POST",
        "/enrolments",
        enrol,
        Access.PUBLIC,
        "Exchange a passphrase and a signing request for an identity",
        "enrolment",
        body=EnrolmentRequest,
        answer=EnrolmentAnswer,
        status=201,
        answers={
            403: "the passphrase is wrong, has expired or is for another role or machine; the address is the configuration server's own",
            409: "the machine is enrolled already; the address is another process server's",
            503: "too many attempts",
        },
    ),
)
