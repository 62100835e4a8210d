"""Roles of operators' tokens, from the least to the most that one may do. Called by ``api/routes.py``, where each route names the least
role that may call it, and by ``administrators.py``.

A *reader* sees everything but tokens and passphrases, and changes nothing. An *operator* does what a migration needs: protect, pause, test,
migrate, complete, and policies. An *administrator* decides who may: tokens, passphrases, certificates, re-enrolment; and deletes policies.
The table of all routes is in docs/operations/access.md, which a test compares with what is served.
"""

from __future__ import annotations

from typing import Final

READER: Final = "reader"
OPERATOR: Final = "operator"
ADMINISTRATOR: Final = "administrator"

ROLES: Final = (READER, OPERATOR, ADMINISTRATOR)
"""Each may do what those before it may."""


def is_allowed(role: str, least: str) -> bool:
    """Whether ``role`` is enough where ``least`` is needed; a role that is not known (of a newer version) is never enough."""
    return role in ROLES and ROLES.index(role) >= ROLES.index(least)
