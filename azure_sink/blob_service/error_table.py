"""The one table of error codes: code → HTTP status and standard text; and how any failure of a handler becomes an answer.

Called by ``app.py``. Source: Azure Storage REST, "Common REST API error codes", "Blob Storage error codes". Bodies are
``<Error><Code/><Message/></Error>``; the code also stands in ``x-ms-error-code``, which is all that a HEAD answer has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from xml.sax.saxutils import escape

from aiohttp import web

from azure_sink.blob_store.readers import StateChanged
from azure_sink.core.storage_fault import NotModified, StorageFault
from replication.blob_client.codes import StorageCode
from replication.errors import InvalidInput, Overloaded, Retryable

_C: Final = StorageCode
_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ERRORS: Final[dict[StorageCode, tuple[int, str]]] = {
    _C.ACCOUNT_IS_DISABLED: (403, "The specified account is disabled."),
    _C.AUTHENTICATION_FAILED: (
        403,
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly.",
    ),
    _C.AUTHORIZATION_FAILURE: (403, "This request is not authorized to perform this operation."),
    _C.BLOB_ALREADY_EXISTS: (409, "The specified blob already exists."),
    _C.BLOB_NOT_FOUND: (404, "The specified blob does not exist."),
    _C.BLOCK_COUNT_EXCEEDS_LIMIT: (
        409,
        "The uncommitted block count cannot exceed the maximum limit of 100,000 blocks.",
    ),
    _C.BLOCK_LIST_TOO_LONG: (400, "The block list may not contain more than 50,000 blocks."),
    _C.CANNOT_VERIFY_COPY_SOURCE: (404, "Could not verify the copy source within the specified time."),
    _C.CONDITION_HEADERS_NOT_SUPPORTED: (400, "Condition headers are not supported for this operation."),
    _C.CONDITION_NOT_MET: (412, "The condition specified using HTTP conditional header(s) is not met."),
    _C.CONTAINER_ALREADY_EXISTS: (409, "The specified container already exists."),
    _C.CONTAINER_NOT_FOUND: (404, "The specified container does not exist."),
    _C.CRC64_MISMATCH: (400, "The CRC64 value specified in the request did not match with the CRC64 value calculated."),
    _C.EMPTY_METADATA_KEY: (400, "The key for one of the metadata key-value pairs is empty."),
    _C.INTERNAL_ERROR: (500, "Server encountered an internal error. Please try again after some time."),
    _C.INVALID_AUTHENTICATION_INFO: (
        400,
        "The authentication information was not provided in the correct format. Verify the value of Authorization header.",
    ),
    _C.INVALID_BLOB_OR_BLOCK: (400, "The specified blob or block content is invalid."),
    _C.INVALID_BLOB_TYPE: (409, "The blob type is invalid for this operation."),
    _C.INVALID_BLOCK_ID: (400, "The specified block ID is invalid. The block ID must be Base64-encoded."),
    _C.INVALID_BLOCK_LIST: (400, "The specified block list is invalid."),
    _C.INVALID_HEADER_VALUE: (400, "The value for one of the HTTP headers is not in the correct format."),
    _C.INVALID_INPUT: (400, "One of the request inputs is not valid."),
    _C.INVALID_MD5: (
        400,
        "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and base64-encoded.",
    ),
    _C.INVALID_METADATA: (400, "The metadata specified is invalid. It has characters that are not permitted."),
    _C.INVALID_OPERATION: (400, "The specified operation is not permitted."),
    _C.INVALID_PAGE_RANGE: (416, "The page range specified is invalid."),
    _C.INVALID_QUERY_PARAMETER_VALUE: (
        400,
        "Value for one of the query parameters specified in the request URI is invalid.",
    ),
    _C.INVALID_RANGE: (416, "The range specified is invalid for the current size of the resource."),
    _C.INVALID_RESOURCE_NAME: (400, "The specified resource name contains invalid characters."),
    _C.INVALID_URI: (400, "The requested URI does not represent any resource on the server."),
    _C.INVALID_XML_DOCUMENT: (400, "XML specified is not syntactically valid."),
    _C.INVALID_XML_NODE_VALUE: (400, "The value for one of the XML nodes is not in the correct format."),
    _C.LEASE_ALREADY_BROKEN: (409, "The lease has already been broken and cannot be broken again."),
    _C.LEASE_ALREADY_PRESENT: (409, "There is already a lease present."),
    _C.LEASE_ID_MISMATCH_WITH_BLOB_OPERATION: (412, "The lease ID specified did not match the lease ID for the blob."),
    _C.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION: (409, "The lease ID specified did not match the lease ID for the blob."),
    _C.LEASE_ID_MISSING: (412, "There is currently a lease on the blob and no lease ID was specified in the request."),
    _C.LEASE_IS_BREAKING_AND_CANNOT_BE_ACQUIRED: (
        409,
        "The lease ID matched, but the lease is currently in breaking state and cannot be acquired until it is broken.",
    ),
    _C.LEASE_IS_BREAKING_AND_CANNOT_BE_CHANGED: (
        409,
        "The lease ID matched, but the lease is currently in breaking state and cannot be changed.",
    ),
    _C.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED: (
        409,
        "The lease ID matched, but the lease has been broken explicitly and cannot be renewed.",
    ),
    _C.LEASE_LOST: (412, "A lease ID was specified, but the lease for the blob has expired."),
    _C.LEASE_NOT_PRESENT_WITH_BLOB_OPERATION: (412, "There is currently no lease on the blob."),
    _C.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION: (409, "There is currently no lease on the blob."),
    _C.MD5_MISMATCH: (
        400,
        "The MD5 value specified in the request did not match with the MD5 value calculated by the server.",
    ),
    _C.METADATA_TOO_LARGE: (400, "The metadata specified exceeds the maximum allowed limit (8KB)."),
    _C.MISSING_CONTENT_LENGTH_HEADER: (411, "Content-Length HTTP header is missing."),
    _C.MISSING_REQUIRED_HEADER: (400, "An HTTP header that's mandatory for this request is not specified."),
    _C.MISSING_REQUIRED_QUERY_PARAMETER: (
        400,
        "A query parameter that's mandatory for this request is not specified.",
    ),
    _C.MULTIPLE_CONDITION_HEADERS_NOT_SUPPORTED: (400, "Multiple condition headers are not supported."),
    _C.NO_AUTHENTICATION_INFORMATION: (
        401,
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.",
    ),
    _C.NO_PENDING_COPY_OPERATION: (409, "There is currently no pending copy operation."),
    _C.NOT_IMPLEMENTED: (501, "The requested operation is not implemented on the specified resource."),
    _C.OPERATION_TIMED_OUT: (500, "Operation could not be completed within the specified time."),
    _C.OUT_OF_RANGE_INPUT: (400, "One of the request inputs is out of range."),
    _C.OUT_OF_RANGE_QUERY_PARAMETER_VALUE: (
        400,
        "One of the query parameters specified in the request URI is outside the permissible range.",
    ),
    _C.PREVIOUS_SNAPSHOT_CANNOT_BE_NEWER: (
        400,
        "The prevsnapshot query parameter value cannot be newer than snapshot query parameter value.",
    ),
    _C.PREVIOUS_SNAPSHOT_NOT_FOUND: (409, "The previous snapshot is not found."),
    _C.REQUEST_BODY_TOO_LARGE: (413, "The request body is too large and exceeds the maximum permissible limit."),
    _C.RESOURCE_NOT_FOUND: (404, "The specified resource does not exist."),
    _C.SEQUENCE_NUMBER_CONDITION_NOT_MET: (412, "The sequence number condition specified was not met."),
    _C.SEQUENCE_NUMBER_INCREMENT_TOO_LARGE: (
        409,
        "The sequence number increment cannot be performed because it would result in overflow of the sequence number.",
    ),
    _C.SERVER_BUSY: (503, "The server is currently unable to receive requests. Please retry your request."),
    _C.SNAPSHOTS_PRESENT: (409, "This operation is not permitted while the blob has snapshots."),
    _C.SOURCE_CONDITION_NOT_MET: (412, "The source condition specified using HTTP conditional header(s) is not met."),
    _C.UNSUPPORTED_HEADER: (400, "One of the HTTP headers specified in the request is not supported."),
    _C.UNSUPPORTED_HTTP_VERB: (405, "The resource doesn't support specified Http Verb."),
    _C.UNSUPPORTED_QUERY_PARAMETER: (
        400,
        "One of the query parameters specified in the request URI is not supported.",
    ),
}

DEFAULT_RETRY_AFTER_S: Final = 10


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What to answer; ``body`` is left out for HEAD and 304."""

    status: int
    code: StorageCode
    message: str
    retry_after_s: int | None = None


def answer_for(error: BaseException) -> ErrorAnswer:
    """The answer to a failure; what the table doesn't know is an internal error that tells nothing of the inside."""
    match error:
        case NotModified():
            return ErrorAnswer(304, error.storage_code, ERRORS[error.storage_code][1])
        case StorageFault():
            status, text = ERRORS[error.storage_code]
            return ErrorAnswer(
                status,
                error.storage_code,
                f"{text} {error.detail}".rstrip(),
                DEFAULT_RETRY_AFTER_S if error.storage_code is _C.SERVER_BUSY else None,
            )
        case Overloaded():
            return ErrorAnswer(
                503,
                _C.SERVER_BUSY,
                f"{ERRORS[_C.SERVER_BUSY][1]} {error.message}",
                max(1, round(error.retry_after_s or DEFAULT_RETRY_AFTER_S)),
            )
        case StateChanged():
            return ErrorAnswer(412, _C.CONDITION_NOT_MET, error.message)
        case Retryable():
            return ErrorAnswer(500, _C.INTERNAL_ERROR, f"{ERRORS[_C.INTERNAL_ERROR][1]} {error.message}")
        case InvalidInput():
            return ErrorAnswer(400, _C.INVALID_INPUT, f"{ERRORS[_C.INVALID_INPUT][1]} {error.message}")
        case _:
            return ErrorAnswer(500, _C.INTERNAL_ERROR, ERRORS[_C.INTERNAL_ERROR][1])


def xml_text(value: str) -> str:
    """``value`` as text of an XML 1.0 document; what such a document cannot hold becomes U+FFFD."""
    return escape(_NOT_IN_XML.sub("\ufffd", value))


def error_response(answer: ErrorAnswer, method: str, request_id: str) -> web.Response:
    headers = {"x-ms-error-code": answer.code.value}
    if answer.retry_after_s is not None:
        headers["Retry-After"] = str(answer.retry_after_s)
    if answer.status == 401:
        headers["WWW-Authenticate"] = "SharedKey"
    if method == "HEAD" or answer.status == 304:
        return web.Response(status=answer.status, headers=headers)
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")
    message = f"{answer.message}\nRequestId:{request_id}\nTime:{moment}"
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{answer.code.value}</Code>'
        f"<Message>{xml_text(message)}</Message></Error>"
    )
    return web.Response(status=answer.status, body=body.encode(), headers=headers, content_type="application/xml")
