"""The account itself: List Containers, and Get Blob Service Properties (nothing in them can be switched on).

Called by ``router.py``; each handler parses, calls the store and answers.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import quoteattr

from aiohttp import web

from azure_sink.blob_service.operation import Operation
from azure_sink.blob_service.responses import element, http_date, metadata_element, quoted, xml_answer

_ALL_OFF: Final = (
    "<StorageServiceProperties>"
    "<Logging><Version>1.0</Version><Delete>false</Delete><Read>false</Read><Write>false</Write>"
    "<RetentionPolicy><Enabled>false</Enabled></RetentionPolicy></Logging>"
    "<HourMetrics><Version>1.0</Version><Enabled>false</Enabled>"
    "<RetentionPolicy><Enabled>false</Enabled></RetentionPolicy></HourMetrics>"
    "<MinuteMetrics><Version>1.0</Version><Enabled>false</Enabled>"
    "<RetentionPolicy><Enabled>false</Enabled></RetentionPolicy></MinuteMetrics>"
    "<Cors /><DeleteRetentionPolicy><Enabled>false</Enabled></DeleteRetentionPolicy>"
    "<StaticWebsite><Enabled>false</Enabled></StaticWebsite></StorageServiceProperties>"
)


def endpoint_of(operation: Operation) -> str:
    """The account's address as the client used it, for listings."""
    request = operation.request
    is_host_style = request.host.partition(":")[0].partition(".")[0] == request.target.account
    return f"https://{request.host}/" + ("" if is_host_style else f"{request.target.account}/")


async def list_containers(operation: Operation) -> web.StreamResponse:
    request = operation.request
    limit = request.max_results()
    includes = request.includes(("metadata", "deleted", "system"))
    prefix, marker = request.query.get("prefix", ""), request.query.get("marker", "")
    found, next_marker = await operation.store.list_containers(prefix, marker, limit)
    parts = [f"<EnumerationResults ServiceEndpoint={quoteattr(endpoint_of(operation))}>"]
    parts += [element("Prefix", prefix), element("Marker", marker), element("MaxResults", str(limit)), "<Containers>"]
    for container in found:
        parts.append("<Container>" + element("Name", container.name) + "<Properties>")
        parts.append(element("Last-Modified", http_date(container.modified_at)))
        parts.append(element("Etag", quoted(container.etag)))
        parts.append("<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>")
        parts.append(
            "<HasImmutabilityPolicy>false</HasImmutabilityPolicy><HasLegalHold>false</HasLegalHold></Properties>"
        )
        if "metadata" in includes:
            parts.append(metadata_element(container.metadata))
        parts.append("</Container>")
    parts.append("</Containers>" + element("NextMarker", next_marker) + "</EnumerationResults>")
    return xml_answer("".join(parts))


async def get_properties(_operation: Operation) -> web.StreamResponse:
    return xml_answer(_ALL_OFF)
