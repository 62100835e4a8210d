"""HTTPS for a command: one connection, one request at a time, kept for the next one. Called by ``connection.py``.

Of the standard library, in a thread: a command lives for half a second and makes one request or two, and an HTTP library for daemons takes
as long to be imported as all the rest of it. A request that is given up (its deadline, Ctrl-C) is cut off; nobody waits for its thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

ResultT = TypeVar("ResultT")
CONNECT_TIMEOUT_S: Final = 10.0
_DEFAULT_PORT: Final = 443
_SAFE_IN_PATH: Final = "/:@!$&'()*+,;=~-._"


class AnswerTooLong(Exception):
    """An answer has more bytes than were asked for."""


class NotConnected(OSError):
    """No connection came about: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content: bytes


class HttpsConnection:
    """To one server. ``url``: its own, with a path if its interface lies below one."""

    def __init__(self, url: str, tls: ssl.SSLContext, timeout_s: float, max_answer_bytes: int) -> None:
        parts = urlsplit(url)
        self._below = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._max_answer_bytes = max_answer_bytes
        self._http = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or _DEFAULT_PORT, timeout=timeout_s, context=tls
        )

    async def request(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], content: bytes | None
    ) -> Answer:
        """:raises OSError: if the server cannot be reached or is not the right one, ``TimeoutError`` if it takes longer than it may.
        :raises NotConnected: of these, if no connection came about.
        :raises http.client.HTTPException: if it does not speak HTTP. :raises AnswerTooLong: see there.
        """
        target = self._below + quote(path, safe=_SAFE_IN_PATH) + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await _in_thread(lambda: self._exchange(method, target, headers, content))
        except BaseException:
            self._cut()
            raise

    def _exchange(self, method: str, target: str, headers: Mapping[str, str], content: bytes | None) -> Answer:
        is_kept = self._http.sock is not None
        try:
            return self._exchange_once(method, target, headers, content)
        except (http.client.RemoteDisconnected, ConnectionError):
            # A kept connection may have been closed by the server; what it answered nothing to may be asked again if that changes nothing.
            self._http.close()
            if not is_kept or method != "GET":
                raise
            return self._exchange_once(method, target, headers, content)

    def _exchange_once(self, method: str, target: str, headers: Mapping[str, str], content: bytes | None) -> Answer:
        if self._http.sock is None:
            self._connect()
        self._http.request(method, target, content, dict(headers))
        response = self._http.getresponse()
        answer = response.read(self._max_answer_bytes + 1)
        if len(answer) > self._max_answer_bytes:
            raise AnswerTooLong
        if (
            response.length
        ):  # http.client takes the end of the connection for the end of an answer that is read in pieces
            raise http.client.IncompleteRead(answer, response.length)
        return Answer(response.status, answer)

    def _connect(self) -> None:
        self._http.timeout = min(CONNECT_TIMEOUT_S, self._timeout_s)
        try:
            self._http.connect()
        except OSError as error:
            raise NotConnected(str(error) or type(error).__name__) from error
        self._http.sock.settimeout(self._timeout_s)

    def _cut(self) -> None:
        """Whatever the thread waits for ends now."""
        sock = self._http.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._http.close()

    def close(self) -> None:
        self._http.close()


async def _in_thread(act: Callable[[], ResultT]) -> ResultT:
    """In a thread that nobody joins: who gave up waiting for it shall not wait for it at the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ResultT] = loop.create_future()

    def tell(set_outcome: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if done.done() else set_outcome())

    def run() -> None:
        try:
            result = act()
        except Exception as error:  # noqa: BLE001 -- handed to whoever waits
            caught = error
            tell(lambda: done.set_exception(caught))
        else:
            tell(lambda: done.set_result(result))

    threading.Thread(target=run, name="request", daemon=True).start()
    return await done
