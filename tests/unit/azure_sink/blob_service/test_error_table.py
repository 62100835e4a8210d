"""The error table: every code has an answer, and every kind of failure one code."""

from __future__ import annotations

import pytest

from azure_sink.blob_service.error_table import ERRORS, answer_for, error_response
from azure_sink.blob_store.arenas import StoreFull
from azure_sink.blob_store.readers import StateChanged
from azure_sink.core.storage_fault import NotModified, StorageFault
from replication.blob_client.codes import StorageCode
from replication.blob_client.failures import failure_from_answer
from replication.errors import InvalidInput, Permanent, Retryable


@pytest.mark.parametrize("code", StorageCode)
def test_every_code_has_a_status_that_a_client_understands(code: StorageCode) -> None:
    status, text = ERRORS[code]
    assert text.endswith(".")
    failure = failure_from_answer(status, code, "try it")
    assert getattr(failure, "storage_code", None) == code


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StorageFault(StorageCode.BLOB_NOT_FOUND), 404, StorageCode.BLOB_NOT_FOUND),
        (NotModified(), 304, StorageCode.CONDITION_NOT_MET),
        (StoreFull("cannot store", retry_after_s=7.0), 503, StorageCode.SERVER_BUSY),
        (StorageFault(StorageCode.SERVER_BUSY), 503, StorageCode.SERVER_BUSY),
        (StateChanged("cannot go on"), 412, StorageCode.CONDITION_NOT_MET),
        (InvalidInput("cannot use"), 400, StorageCode.INVALID_INPUT),
        (Retryable("cannot now"), 500, StorageCode.INTERNAL_ERROR),
        (Permanent("cannot ever"), 500, StorageCode.INTERNAL_ERROR),
        (KeyError("inside"), 500, StorageCode.INTERNAL_ERROR),
    ],
)
def test_every_failure_becomes_one_answer(error: Exception, status: int, code: StorageCode) -> None:
    answer = answer_for(error)
    assert (answer.status, answer.code) == (status, code)


def test_a_full_store_says_when_to_come_again() -> None:
    response = error_response(answer_for(StoreFull("cannot store", retry_after_s=7.0)), "PUT", "id")
    assert response.headers["Retry-After"] == "7"


def test_a_defect_tells_nothing_of_the_inside() -> None:
    response = error_response(answer_for(KeyError("secret")), "GET", "id")
    assert b"secret" not in (response.body or b"")  # type: ignore[operator]  # bytes here


def test_details_cannot_break_the_document() -> None:
    response = error_response(answer_for(StorageFault(StorageCode.INVALID_INPUT, "<a>&</b>")), "GET", "id")
    assert b"&lt;a&gt;&amp;&lt;/b&gt;" in (response.body or b"")  # type: ignore[operator]  # bytes here


@pytest.mark.parametrize(("method", "status"), [("HEAD", 404), ("GET", 304)])
def test_answers_without_a_body_have_the_code_in_the_header(method: str, status: int) -> None:
    error = StorageFault(StorageCode.BLOB_NOT_FOUND) if status == 404 else NotModified()
    response = error_response(answer_for(error), method, "id")
    assert response.body is None
    assert response.headers["x-ms-error-code"]
