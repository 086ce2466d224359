"""Reads bodies within limits, notices clients that leave, and sends streams of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from qwenvl_jax.serving.guard import discard
from qwenvl_jax.serving.refusals import Refusal

CLIENT_LEFT = 499  # the status that the log shows; nobody hears it

T = TypeVar("T")


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The body of a request, which must be JSON by its header.

    A page of another origin cannot send that header unless this server agrees, which it never does.

    Raises:
      Refusal: for another type, a compressed body, too many bytes, or one that does not come in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        await discard(request.receive)
        raise Refusal(415, "the body must be JSON; send the header Content-Type: application/json", "invalid_type")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        await discard(request.receive)
        raise Refusal(415, "the body must not be compressed; send it without Content-Encoding", "invalid_type")
    too_large = Refusal(
        413, f"the body has more than {max_bytes:,} bytes; send fewer or smaller pictures", "request_too_large"
    )
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        await discard(request.receive)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    break
            else:
                return bytes(body)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {seconds:g} seconds; send it again", "slow_request") from None
    except ClientDisconnect:
        raise Refusal(CLIENT_LEFT, "the client has left", "client_left") from None
    await discard(request.receive)
    raise too_large


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response that `work` makes. If the client leaves before that, the work is cancelled.

    Args:
      request: whose body has been read.
      work: makes the response.
    """
    making = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait((making, leaving), return_when=asyncio.FIRST_COMPLETED)
        return making.result() if making.done() else Response(status_code=CLIENT_LEFT)
    finally:
        for task in (making, leaving):
            task.cancel()
        await asyncio.gather(making, leaving, return_exceptions=True)


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events, until they end, the client leaves, or the time is over."""

    def __init__(self, events: AsyncIterator[bytes], seconds: float, ended: Callable[[], None]):
        """Makes the response.

        Args:
          events: whole events.
          seconds: after which the connection is cut, also if the client reads nothing.
          ended: is called once, in whatever way the stream ends.
        """
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._seconds = seconds
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As of Starlette."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            return  # the server closes a response that is not complete
        finally:
            self._ended()
