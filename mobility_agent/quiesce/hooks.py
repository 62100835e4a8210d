"""The operator's quiesce hooks: a command that brings applications to rest, and one that lets them go on.

Called by the agent around app-consistent points, and around the points of a tracker that cannot prove quiet (``scan``). The
commands run as the agent's user, without a shell, with the standard environment and an empty input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Final

from replication.errors import InvalidInput, Retryable, Unsupported

_OUTPUT_BYTES: Final = 2000


class QuiesceHooks:
    """``pre`` and ``post`` are commands as lists of words; either may be empty (nothing to run), not both."""

    def __init__(self, pre: Sequence[str], post: Sequence[str], timeout_s: float) -> None:
        if not pre and not post:
            raise InvalidInput("cannot quiesce: there is neither a pre nor a post hook")
        self._pre = tuple(pre)
        self._post = tuple(post)
        self._timeout_s = timeout_s

    @contextlib.asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        """Applications are at rest inside. ``post`` always runs: after a failed ``pre``, after an error, when cancelled.

        :raises Retryable: if a hook fails or takes longer than the timeout; its last output is in the message.
        :raises Unsupported: if the command cannot be started.
        """
        try:
            await self._run("pre", self._pre)
            yield
        finally:
            await _to_the_end(self._run("post", self._post))

    async def _run(self, which: str, command: tuple[str, ...]) -> None:
        if not command:
            return
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Unsupported(f"cannot run the {which} hook {command[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._timeout_s):
                output = b"" if process.stdout is None else await _last_output(process.stdout)
                await process.wait()
        except TimeoutError:
            raise Retryable(
                f"cannot quiesce: the {which} hook {command[0]} took longer than {self._timeout_s:g} s",
                hint="make it faster, or raise hook_timeout_s",
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            text = output.decode(errors="replace").strip()
            raise Retryable(f"cannot quiesce: the {which} hook {command[0]} ended with {process.returncode}: {text}")


async def _last_output(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, keep the end only: a hook may print whatever it likes."""
    kept = b""
    while piece := await stream.read(65536):
        kept = (kept + piece)[-_OUTPUT_BYTES:]
    return kept


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Await ``work`` even if cancelled meanwhile; the cancellation, or else its own error, is raised then."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        task.exception()
        raise cancellation
    task.result()
