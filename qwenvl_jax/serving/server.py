"""The process around the API: it listens while the model loads, and ends without losing an answer."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.api import Service
from qwenvl_jax.serving.engine import Engine

_CONNECTIONS = 1024  # open at once; further ones get the status 503
_KEEP_ALIVE_S = 20  # between two requests of a connection
_HEAD_S = 20  # from the connection, or from the first byte of a further request, to the end of a request's head
_LAST_EVENTS_S = 5  # for telling clients that their answers were cut off


@dataclasses.dataclass(frozen=True)
class Listener:
    """A socket that listens.

    Attributes:
      socket: bound to one address.
      is_local: whether only this machine can reach it.
      url: of the server.
    """

    socket: socket.socket
    is_local: bool
    url: str


def listen(host: str, port: int) -> Listener:
    """Binds a socket.

    Args:
      host: a name or number of this machine.
      port: of TCP; 0 takes one that is free.

    Raises:
      UserError: if the address is not this machine's, or the port is taken or forbidden.
    """
    if not 0 <= port < 1 << 16:  # `getaddrinfo` would take the rest of a division
        raise UserError(f"--port={port} is no port; choose one from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host={host} --port={port} cannot be used ({why}); choose others") from None
    number, taken = bound.getsockname()[:2]
    shown = f"[{number}]" if ":" in number else number
    return Listener(bound, ipaddress.ip_address(number.partition("%")[0]).is_loopback, f"http://{shown}:{taken}")


class _Connection(H11Protocol):
    """A connection that is closed if the head of a request does not come in time.

    uvicorn alone waits for ever: as many silent connections as may be open would keep everybody else out.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch()

    def _watch(self) -> None:
        """Begins to wait for a head, goes on waiting, or ends it, as the state of the connection demands."""
        waits = (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()
        if not waits and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif waits and self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_S, self.timeout_keep_alive_handler)


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C. First it takes no more questions, then no answer is left, then it ends."""

    def __init__(
        self,
        service: Service,
        listener: Listener,
        load: Callable[[], Engine],
        drain_seconds: float,
        greeting: Sequence[str] = (),
    ):
        """Makes a server; `run_to_the_end` serves.

        Args:
          service: has no engine yet.
          listener: on which requests come.
          load: makes the engine, in a thread of its own.
          drain_seconds: for answers in progress, from the signal on.
          greeting: lines that are printed once requests and signals are heard.
        """
        super().__init__(
            uvicorn.Config(
                service.application(),
                http=_Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_EVENTS_S,
                limit_concurrency=_CONNECTIONS,
            )
        )
        self._service = service
        self._listener = listener
        self._load = load
        self._drain_seconds = drain_seconds
        self._greeting = greeting
        self._until: float | None = None
        self._failure: BaseException | None = None

    def run_to_the_end(self) -> bool:
        """Serves until a signal ends it.

        Returns:
          Whether the model had been loaded; else the process has to leave without waiting for the thread that loads it.

        Raises:
          BaseException: that `load` raised, or that ended the engine.
        """
        loading = threading.Thread(target=self._loaded, name="loading", daemon=True)
        loading.start()
        self.run(sockets=[self._listener.socket])
        if self._failure is not None:
            raise self._failure
        if self._service.engine is not None:
            self._service.engine.close()
        return not loading.is_alive()

    def end(self) -> None:
        """Takes no more questions and waits for answers; called a second time, it does not wait."""
        waited = self._until is not None
        self._service.draining = True
        self._until = time.monotonic() + (0 if waited else self._drain_seconds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        await super().startup(sockets)
        for line in self._greeting:
            log.line(line)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn at a signal."""
        self.end()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        engine = self._service.engine
        if engine is not None and engine.failure is not None and self._failure is None:
            self._failure = engine.failure
            self.end()
        if self._until is not None and not self.should_exit:
            late = time.monotonic() > self._until
            if late and self._service.engine is not None:
                await asyncio.to_thread(self._service.engine.close)
            self.should_exit = late or not self._service.open
        return await super().on_tick(counter)

    def _loaded(self) -> None:
        began = time.monotonic()
        try:
            self._service.engine = self._load()
        except BaseException as error:
            self._failure = error
            self.should_exit = True
        else:
            log.line(f"ready after {time.monotonic() - began:.1f} s")
