"""The site itself: status, policies, enrolment passphrases. Served by ``routes``."""

from __future__ import annotations

from typing import Final, cast

from sqlalchemy import func, select

from config_server.api.routes import Access, Call, Route
from config_server.config_servers import configuration_servers
from config_server.desired import publish
from config_server.events import record_event
from config_server.operator_plane import (
    Page,
    PassphraseGrant,
    PassphraseRequest,
    PassphraseStatus,
    Policy,
    PolicyStatus,
    SiteStatus,
    timestamp,
)
from config_server.policies import delete_policy, find_policy, new_policy_row, policy_of, policy_status, write_policy
from config_server.revisions import check_revision
from config_server.tables import MachineRow, PolicyRow, ProtectedItemRow
from replication import __version__
from replication.control_plane import EnrollingRole
from replication.errors import Conflict, InvalidInput


async def get_site(call: Call) -> SiteStatus:
    async with call.site.database.read() as session:
        servers = await session.scalar(select(func.count()).select_from(MachineRow))
        states = await session.execute(select(ProtectedItemRow.state, func.count()).group_by(ProtectedItemRow.state))
        beside = await configuration_servers(session, call.site.ages)
        by_state = {state: count for state, count in states}  # noqa: C416 -- rows are not pairs to dict()
        webhook = None if call.site.webhook is None else (await call.site.webhook.figures(session)).status()
    status = call.site.store_status
    return SiteStatus(
        version=__version__,
        authority_fingerprint=call.site.authority.fingerprint,
        store_reachable=status.reachable,
        store_problem=status.problem,
        servers=servers or 0,
        items_by_state=by_state,
        leads=call.site.leadership.term is not None,
        configuration_servers=beside,
        health=call.site.alarms.health().health,
        alerts=call.site.alarms.judged.by_severity(),
        webhook=webhook,
    )


async def list_policies(call: Call) -> Page[PolicyStatus]:
    async with call.site.database.read() as session:
        rows = await session.scalars(select(PolicyRow).order_by(PolicyRow.name))
        return Page[PolicyStatus](items=[policy_status(policy_of(row)) for row in rows])


async def create_policy(call: Call) -> PolicyStatus:
    policy = call.body(Policy)
    async with call.site.database.write() as session:
        if await session.scalar(select(PolicyRow.id).where(PolicyRow.name == policy.name)) is not None:
            raise Conflict(f"cannot create the policy {policy.name!r}: there is one of this name")
        session.add(new_policy_row(policy))
        record_event(session, call.site.clock(), call.actor, "policy-created", f"policy {policy.model_dump_json()}")
    return policy_status(policy)


async def change_policy(call: Call) -> PolicyStatus:
    """The policy as it was read, changed: it carries its revision. Without one it is written whatever it is by now."""
    asked = call.body(PolicyStatus)
    policy = Policy(**asked.model_dump(exclude={"revision"}))
    if policy.name != call.path["policy"]:
        raise InvalidInput("cannot rename a policy", hint="make a new one")
    async with call.site.database.write() as session:
        row = await find_policy(session, policy.name)
        check_revision(policy_of(row), asked.revision or None, f"the policy {policy.name!r}")
        write_policy(row, policy)
        record_event(session, call.site.clock(), call.actor, "policy-changed", f"policy {policy.model_dump_json()}")
        machines = await session.scalars(
            select(ProtectedItemRow.machine_id).where(
                ProtectedItemRow.policy_id == row.id, ProtectedItemRow.ended_ns.is_(None)
            )
        )
        for machine_id in list(machines):
            await publish(session, machine_id)
    call.site.changed()
    return policy_status(policy)


async def remove_policy(call: Call) -> None:
    name = call.path["policy"]
    async with call.site.database.write() as session:
        await delete_policy(session, name)
        record_event(session, call.site.clock(), call.actor, "policy-deleted", f"policy {name}")


async def create_passphrase(call: Call) -> PassphraseGrant:
    asked = call.body(PassphraseRequest)
    made = await call.site.passphrases.create(asked.valid_for_s, call.actor, asked.role, guard=call.standing)
    return PassphraseGrant(
        id=made.identifier, role=asked.role, passphrase=made.text, expires_at=timestamp(made.expires_ns)
    )


async def list_passphrases(call: Call) -> Page[PassphraseStatus]:
    return Page[PassphraseStatus](
        items=[
            PassphraseStatus(
                id=row.id,
                role=cast("EnrollingRole", row.role),
                created_at=timestamp(row.created_ns),
                created_by=row.created_by,
                expires_at=timestamp(row.expires_ns),
                used_count=row.used_count,
            )
            for row in await call.site.passphrases.list_valid()
        ]
    )


async def revoke_passphrase(call: Call) -> None:
    await call.site.passphrases.revoke(call.path["passphrase"], call.actor, guard=call.standing)


ROUTES: Final = (
    Route(
        "GET",
        "/site",
        get_site,
        Access.READER,
        "Version, authority, store, items by state",
        "site",
        answer=SiteStatus,
    ),
    Route(
        "GET", "/policies", list_policies, Access.READER, "Replication policies", "policies", answer=Page[PolicyStatus]
    ),
    Route(
        "POST",
        "/policies",
        create_policy,
        Access.OPERATOR,
        "A new policy",
        "policies",
        body=Policy,
        answer=PolicyStatus,
        status=201,
        answers={409: "there is one of this name"},
    ),
    Route(
        "PUT",
        "/policies/{policy}",
        change_policy,
        Access.OPERATOR,
        "Change a policy; items under it obey at once",
        "policies",
        body=PolicyStatus,
        answer=PolicyStatus,
        answers={404: "no such policy", 409: "the policy is of another revision"},
    ),
    Route(
        "DELETE",
        "/policies/{policy}",
        remove_policy,
        Access.ADMINISTRATOR,
        "Delete a policy that nothing is under",
        "policies",
        status=204,
        answers={404: "no such policy", 409: "items are under it, or it is the default policy"},
    ),
    Route(
        "POST",
        "/enrolment-passphrases",
        create_passphrase,
        Access.ADMINISTRATOR,
        "A new enrolment passphrase, told once",
        "enrolment",
        body=PassphraseRequest,
        answer=PassphraseGrant,
        status=201,
    ),
    Route(
        "GET",
        "/enrolment-passphrases",
        list_passphrases,
        Access.ADMINISTRATOR,
        "Valid passphrases, without their text",
        "enrolment",
        answer=Page[PassphraseStatus],
    ),
    Route(
        "DELETE",
        "/enrolment-passphrases/{passphrase}",
        revoke_passphrase,
        Access.ADMINISTRATOR,
        "Revoke a passphrase",
        "enrolment",
        status=204,
        answers={404: "no such passphrase"},
    ),
)
