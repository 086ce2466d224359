"""A queue from the engine's thread into the event loop."""

from __future__ import annotations

import asyncio
import contextlib

from qwenvl_jax.serving.answer import Event, Finished


class EventQueue:
    """What the engine tells of one answer, in order. Made and read in the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Takes a piece of text or the end; for the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, seconds: float) -> Event | None:
        """The next piece of text or the end; None if nothing came within so many seconds."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None

    async def end(self) -> Finished:
        """The end, after all pieces."""
        while True:
            event = await self._events.get()
            if isinstance(event, Finished):
                return event
