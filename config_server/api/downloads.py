"""``/downloads``: the agent's installers, their catalogue and its signature, and a page for people.

Called by ``daemon``, which adds these routes to those of the API; they are public, as a server that installs has no certificate yet. What
is served here is believed for its hash in the catalogue, and the catalogue for the authority's signature or the TLS connection. A page
proves nothing of itself: so it says with what to compare.

    GET /downloads/                 the page          GET /downloads/index.json       InstallerCatalogue
    GET /downloads/authority.pem    the authority     GET /downloads/index.json.sig   the authority's ECDSA signature over it (DER)
    GET /downloads/FILE             an installer, if the catalogue names it
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import shlex
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web
from cryptography.hazmat.primitives import serialization

from config_server.authority import Authority
from config_server.installers import Installers, SignedIndex
from replication.errors import InvalidInput, NotFound
from replication.installer_catalogue import DOWNLOADS_PATH, INDEX_PATH
from replication.service_address import HTTPS_PORT, ServiceAddress

AUTHORITY_PATH: Final = DOWNLOADS_PATH + "authority.pem"
SIGNATURE_PATH: Final = INDEX_PATH + ".sig"
_HEADERS: Final = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
_PAGE_HEADERS: Final = {**_HEADERS, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE: Final = (
    "body{font:16px sans-serif;max-width:60em;margin:2em auto}"
    "pre{background:#eee;padding:1em;overflow:auto}td,th{padding:.2em 1em .2em 0;text-align:left}"
)

INSTALL_COMMAND: Final = (
    'A={address} F={fingerprint}; umask 077; cd "$(mktemp -d)" && '
    "curl -fsSk https://$A/downloads/authority.pem | grep -v -e - | base64 -d >site.der && "
    '[ "$(sha256sum <site.der)" = "$(echo $F | tr -d : | tr A-F a-f)  -" ] && '
    '{{ echo "-----BEGIN CERTIFICATE-----"; base64 site.der; echo "-----END CERTIFICATE-----"; }} >site.pem && '
    "curl -fsS --cacert site.pem -O https://$A/downloads/{file} && "
    "sudo sh {file} install --appliance https://$A --fingerprint $F"
)
"""Nothing is believed of the first connection but the bytes whose hash is the fingerprint: ``site.pem`` is written anew from just them, so
that no second authority comes along. The rest goes over a checked connection."""


def install_command(
    address: str, file: str, fingerprint: str = "FINGERPRINT", standby_addresses: Sequence[str] = ()
) -> str:
    """The line for a server; ``config-server installers --command`` knows the fingerprint, a page must not say it.

    ``standby_addresses``: of the site's other configuration servers. This one does not know them.
    """
    line = INSTALL_COMMAND.format(address=address, file=file, fingerprint=fingerprint)
    return " ".join([line, *(shlex.join(["--standby", f"https://{standby}"]) for standby in standby_addresses)])


def add_download_routes(
    app: web.Application, installers: Installers, authority: Authority, names: tuple[str, ...]
) -> None:
    """:param names: this server's, for the page; the first one is shown, with the port that was reached, if the request names none."""
    authority_pem = authority.certificate.public_bytes(serialization.Encoding.PEM)

    async def index(_request: web.Request) -> web.StreamResponse:
        signed = await asyncio.to_thread(installers.read)
        return web.Response(body=signed.index, content_type="application/json", headers=_HEADERS)

    async def signature(_request: web.Request) -> web.StreamResponse:
        signed = await asyncio.to_thread(installers.read)
        return web.Response(body=signed.signature, content_type="application/octet-stream", headers=_HEADERS)

    async def issuer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=authority_pem, content_type="application/x-pem-file", headers=_HEADERS)

    async def file(request: web.Request) -> web.StreamResponse:
        signed = await asyncio.to_thread(installers.read)
        wanted = request.match_info["file"]
        for installer in signed.catalogue.installers:
            if installer.file == wanted:
                return web.FileResponse(installers.directory / installer.file, headers=_HEADERS)
        raise NotFound("cannot find this installer", hint=f"GET {INDEX_PATH} lists them")

    async def page(request: web.Request) -> web.StreamResponse:
        signed = await asyncio.to_thread(installers.read)
        text = _page(signed, _address(request, names))
        return web.Response(text=text, content_type="text/html", headers=_PAGE_HEADERS)

    async def to_page(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPPermanentRedirect(DOWNLOADS_PATH)

    routes: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
        DOWNLOADS_PATH.rstrip("/"): to_page,
        DOWNLOADS_PATH: page,
        INDEX_PATH: index,
        SIGNATURE_PATH: signature,
        AUTHORITY_PATH: issuer,
        DOWNLOADS_PATH + "{file}": file,
    }
    for path, handler in routes.items():
        app.router.add_get(path, handler)


def _address(request: web.Request, names: tuple[str, ...]) -> str:
    """With the port of the request's own host if that is one of ours, else with the port that the connection came in on."""
    with contextlib.suppress(InvalidInput):
        asked = ServiceAddress.parse(f"https://{request.host}")
        if asked.host in {name.lower() for name in names}:
            return str(asked)
    reached = request.get_extra_info("sockname")
    return str(ServiceAddress(names[0], HTTPS_PORT if reached is None else reached[1]))


def _page(signed: SignedIndex, address: str) -> str:
    rows = "".join(
        f"<tr><td><a href='{html.escape(each.path)}'>{html.escape(each.file)}</a><td>{html.escape(each.version)}"
        f"<td>{html.escape(each.architecture)}<td>{html.escape(each.oldest_glibc)}<td>{each.size_bytes / 2**20:.1f} MiB"
        f"<td><code>{each.sha256}</code>"
        for each in signed.catalogue.installers
    )
    newest = next(iter(signed.catalogue.installers), None)
    if newest is None:
        body = "<p>There is no installer yet. On the appliance: <code>config-server add-installer FILE</code>.</p>"
    else:
        command = html.escape(install_command(address, newest.file))
        body = (
            f"<table><tr><th>File<th>Version<th>Architecture<th>glibc<th>Size<th>SHA-256</tr>{rows}</table>"
            "<h2>On a server, as one line</h2>"
            "<p>This page proves nothing of itself: better let <code>config-server installers --command</code> print the line on the "
            "appliance, with the fingerprint in it. Else read it before you run it, and in place of "
            "<code>FINGERPRINT</code> write what <code>config-server show-fingerprint</code> prints on the "
            "appliance. Do not take it from a page: it is what proves that this is the appliance. The passphrase is asked for; "
            "<code>migratectl create-enrolment-passphrase</code> makes one.</p>"
            f"<pre>{command}</pre>"
            "<p>Where the site has a <b>second configuration server</b>, append <code>--standby https://OTHER</code> to the line, once for "
            "each other one, with the address at which servers reach it: the agent then asks it when this one fails. This server does not "
            "know the address; <code>config-server installers --command --standby OTHER</code> prints the whole line.</p>"
        )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Blockferry: installers</title><style>{_STYLE}</style>"
        f"<h1>Installers of the agent</h1>{body}"
        f"<p><a href='{INDEX_PATH}'>index.json</a>, <a href='{SIGNATURE_PATH}'>its signature</a> by the "
        f"<a href='{AUTHORITY_PATH}'>authority</a>.</p></html>"
    )
