"""A writer that dies over a request leaves nothing that would hold others up once he is back."""

from __future__ import annotations

from replication.store_documents import DeleteDisks
from replication.store_layout import REPLICATION_CONTAINER, answer_name
from tests.harness.epochs import new_uuid
from tests.harness.writer_site import WriterSite


async def test_answer_of_a_writer_that_died_over_it_can_be_deleted_as_soon_as_he_is_back() -> None:
    site = await WriterSite.make()
    request = DeleteDisks(request=new_uuid(site.random), names=["web01-Test"])
    name = answer_name(request.request)
    await site.asked(site.start(), request)
    await site.ask(request)  # as if he had died before deleting it, and before he gave the answer's lease back
    await site.account.acquire_lease(REPLICATION_CONTAINER, name, 60, site.lease_id)
    await site.start().settle()
    await site.account.delete_blob(REPLICATION_CONTAINER, name)
