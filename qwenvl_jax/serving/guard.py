"""What every request passes before it is served: host name, key, number of open requests; then it is counted.

Plain ASGI, so that a request is refused before its body is read, and a stream passes piece by piece.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenvl_jax.runtime import log
from qwenvl_jax.serving.metrics import Metrics
from qwenvl_jax.serving.refusals import Refusal, bad_request, later

_NOT_LOGGED = ("/health", "/ready", "/metrics")  # they are asked every few seconds
_GUARDED = ("/v1/", "/metrics", "/page/examples")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_DISCARDED = 64 << 20  # bytes of a refused body that are still read, because most clients send all before they listen
_DISCARD_SECONDS = 5.0


class Guard:
    """Refuses requests that may not be served, and counts and logs all.

    A line of the log has the time, the method, the path, the status and seconds: nothing of the content, and no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        keys: Sequence[bytes],
        max_open: int,
        *,
        local_names_only: bool = False,
        is_draining: Callable[[], bool] = lambda: False,
    ):
        """Surrounds an application.

        Args:
          app: of ASGI.
          metrics: where requests are counted.
          keys: those that open what `_GUARDED` names; none leaves all open.
          max_open: questions that may be open at once, in whatever state.
          local_names_only: whether a request must name this machine as its host. A page of the web whose name leads to
            127.0.0.1 is then refused.
          is_draining: whether the server is about to end; connections are then closed.
        """
        self._app = app
        self._metrics = metrics
        self._keys = tuple(keys)
        self._max_open = max_open
        self._local_names_only = local_names_only
        self._is_draining = is_draining
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return
        is_question = scope["path"] == "/v1/chat/completions" and scope["method"] == "POST"
        began = time.monotonic()
        status = 499  # of a client that left before there was an answer, as nginx writes it

        async def heard(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-content-type-options", b"nosniff")]
                more += [(b"connection", b"close")] if self._is_draining() else []
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        self._open += is_question
        try:
            try:
                self._check(scope, is_question)
            except Refusal as refusal:
                await discard(receive)
                await refusal.response()(scope, receive, heard)
                return
            await self._app(scope, receive, heard)
        except Exception:
            status = 500
            raise
        finally:
            self._open -= is_question
            seconds = time.monotonic() - began
            self._metrics.request(scope["path"], status, seconds)
            if scope["path"] not in _NOT_LOGGED:
                path = log.printable(scope["path"][:100]).replace("\n", " ")
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                log.line(f"{stamp} {scope['method'][:10]} {path} {status} {seconds:.2f} s")

    def _check(self, scope: Scope, is_question: bool) -> None:
        """Raises Refusal for a request that may not be served."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self._local_names_only and not _names_this_machine(headers.get(b"host", b"")):
            raise bad_request(
                "without a key this server answers only as localhost or 127.0.0.1; set a key to serve other names",
                code="unknown_host",
            )
        if self._keys and scope["path"].startswith(_GUARDED):
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not self._is_known(key.strip()):
                raise Refusal(
                    401,
                    "the key is missing or wrong; send it as the header Authorization: Bearer KEY",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if is_question and self._open > self._max_open:
            raise later(429, f"{self._max_open} questions are open already; ask again later", "queue_full", 2)

    def _is_known(self, key: bytes) -> bool:
        """Compares with every key, in a time that tells nothing of them."""
        same = [hmac.compare_digest(key, known) for known in self._keys]
        return any(same)


def _names_this_machine(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    return (name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name) in _LOCAL_NAMES


async def discard(receive: Receive) -> None:
    """Reads what is left of a body, so that the client hears the refusal; gives up on long and slow ones."""
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while size < _DISCARDED:
                message: dict[str, Any] = dict(await receive())
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return
