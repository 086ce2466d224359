"""Answers many requests at once on one thread: as answers end, the next requests take their slots.

    with Engine(model, tokenizer, image_size=448, settings=EngineSettings(slots=16)) as engine:
        answer = engine.submit([{"role": "user", "parts": [{"image": 0}, {"text": "What is it?"}]}], [jpeg])
        for piece in answer:
            print(piece, end="")
        print(answer.result().reason)

A turn of the thread gives up what is cancelled or late, lets a few requests join, and advances all answers by a short
burst. An answer depends on its own turns, pictures and options alone, not on its neighbours (`slot_batch`).
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime.errors import one_line
from qwenvl_jax.serving.answer import Answer, Draft, Event, Reason
from qwenvl_jax.serving.dialogue import Turns
from qwenvl_jax.serving.intake import Intake, context_of
from qwenvl_jax.serving.options import AnswerOptions, EngineSettings
from qwenvl_jax.serving.slot_batch import SlotBatch
from qwenvl_jax.serving.status import EngineStatus, Tally


class QueueFull(Exception):
    """As many requests wait as may wait.

    Attributes:
      seconds: after which it may be worth asking again.
    """

    def __init__(self, seconds: float):
        super().__init__(f"as many requests wait as may wait; ask again in about {seconds:.0f} s")
        self.seconds = seconds


class EngineClosed(Exception):
    """The engine takes no more requests."""


class Engine:
    """A model that answers many requests at once. A context manager: the thread lives within.

    Attributes:
      settings: how many are served, and what is refused.
      context: tokens of the longest prompt with its answer.
      failure: what has ended the thread before its time; None as long as it lives. No request is taken then.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        image_size: int,
        settings: EngineSettings | None = None,
        mesh: Mesh | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Makes an engine; nothing is compiled yet.

        Args:
          model: its parameters are on the devices of the mesh.
          tokenizer: the vocabulary that it was trained with.
          image_size: pixels of an image's side.
          settings: how many are served, and what is refused.
          mesh: of this process; None for the device of the parameters.
          clock: seconds.

        Raises:
          UserError: for a context that the model has not.
        """
        self.settings = settings or EngineSettings()
        self.failure: BaseException | None = None
        self.context = context_of(self.settings, model.config.decoder.max_positions)
        self._intake = Intake(
            tokenizer, model.config.resampler.queries, image_size, self.context, self.settings.stored_pictures, clock
        )
        self._queries = model.config.resampler.queries
        self._image_size = image_size
        self._clock = clock
        ids = tokenizer.special
        stop_ids = (ids.im_end, ids.im_start, ids.eot)
        self._batch = SlotBatch(
            model, self.settings.slots, self.context, stop_ids, self.settings.stored_pictures, mesh
        )  # fmt: skip
        self._changed = threading.Condition()  # guards everything below
        self._waiting: deque[Draft] = deque()
        self._running: dict[int, Draft] = {}
        self._free = deque(range(self._batch.count))
        self._closing = False
        self._ends = False
        self._thread: threading.Thread | None = None
        self._tally = Tally()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close(0)

    def start(self) -> None:
        """Starts the thread; requests that wait already are served now."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
            self._thread.start()

    def warm_up(self, tell: Callable[[str], Any], *, all_widths: bool = False) -> None:
        """Compiles what the first requests need; call it before `start`.

        Args:
          tell: gets a line after every program.
          all_widths: compiles prompts of all lengths, so that no request ever waits for the compiler; else short texts,
            and questions about one picture.
        """
        assert self._thread is None, "the engine has started"
        widths = self._batch.widths()
        if not all_widths:
            about_a_picture = self._queries + 2 + 64  # a system's turn, and a question of a line
            widths = [widths[0], *[width for width in widths[1:] if width >= about_a_picture][:1]]
        for number, width in enumerate(widths, 1):
            began = self._clock()
            self._batch.compile(width, self._image_size)
            seconds = self._clock() - began
            tell(f"prompts of up to {width:,} tokens are compiled ({number}/{len(widths)}, {seconds:.1f} s)")

    def submit(
        self,
        turns: Turns,
        images: Sequence[bytes],
        options: AnswerOptions | None = None,
        on_event: Callable[[Event], Any] | None = None,
    ) -> Answer:
        """Asks the last question of a dialogue. Text is tokenised and pictures are decoded on the caller's thread.

        Args:
          turns: see `serving.dialogue`.
          images: encoded pictures that the turns index; those that no shown turn names are not looked at.
          options: how the answer is written; greedy by default.
          on_event: called in the engine's thread with every piece and with the end; it must not wait for anything.

        Raises:
          UserError: for turns, pictures or options that cannot be used, or a question that does not fit.
          QueueFull: if too many wait.
          EngineClosed: if the engine is closing.
        """
        asked_s = self._clock()
        self._check_room()
        draft = self._intake.draft(turns, images, options or AnswerOptions(), Answer(on_event, self._wake))
        draft.asked_s = asked_s
        with self._changed:
            self._check_room()
            self._waiting.append(draft)
            self._changed.notify_all()
        return draft.answer

    def status(self) -> EngineStatus:
        """What the engine does and has done."""
        with self._changed:
            encoded = self._batch.encoded
            return EngineStatus(
                slots=self._batch.count,
                active=len(self._running),
                waiting=len(self._waiting),
                finished=dict(self._tally.finished),
                failures=self._tally.failures,
                prompt_tokens=self._tally.prompt_tokens,
                new_tokens=self._tally.new_tokens,
                pictures_encoded=encoded,
                pictures_reused=max(0, self._batch.asked - encoded),
            )

    def close(self, drain_seconds: float = 0.0) -> None:
        """Takes no more requests, lets those that it has end within some seconds, cancels the rest and ends the thread.

        Args:
          drain_seconds: of real time; 0 cancels at once.
        """
        with self._changed:
            self._closing = True
            if self._thread is not None:
                self._changed.wait_for(lambda: not (self._waiting or self._running), drain_seconds)
            self._ends = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for draft in [*self._running.values(), *self._waiting]:
            self._end(draft, "cancelled")
        self._running.clear()
        self._waiting.clear()

    def _check_room(self) -> None:
        """Raises EngineClosed or QueueFull if no request is taken now."""
        with self._changed:
            if self._closing:
                raise EngineClosed("the server is closing and takes no more requests; ask another one, or later")
            if len(self._waiting) - len(self._free) >= self.settings.waiting:
                raise QueueFull(self._seconds_to_wait())

    def _seconds_to_wait(self) -> float:
        """About how long a place in the queue takes to become free, from 1 to 60 s."""
        times = self._tally.total_s
        usual = sum(times) / len(times) if times else 5.0
        return float(min(60, math.ceil(max(1.0, usual / self._batch.count))))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # What follows runs on the engine's thread.

    def _serve(self) -> None:
        try:
            self._take_turns()
        except BaseException as error:  # without the thread, whoever asked would wait for ever
            self._die(error)

    def _take_turns(self) -> None:
        while True:
            with self._changed:
                self._changed.notify_all()  # for `close`
                self._changed.wait_for(lambda: self._ends or self._waiting or self._running)
                if self._ends:
                    return
            try:
                self._give_up()
                self._join()
                if self._running:
                    self._batch.advance(self.settings.burst)
                    self._write(dict(self._running))
            except Exception as error:
                self._fail(error)

    def _give_up(self) -> None:
        """Ends what is cancelled or has taken too long."""
        now = self._clock()
        with self._changed:
            waiting = list(self._waiting)
        for draft in waiting:
            late = now - draft.asked_s > self.settings.wait_seconds
            if draft.answer.cancelled or late:
                with self._changed:
                    self._waiting.remove(draft)
                why = f"no slot became free within {self.settings.wait_seconds:g} s; ask again later"
                self._end_early(draft, why)
        for slot, draft in list(self._running.items()):
            if draft.answer.cancelled or now - draft.began_s > self.settings.answer_seconds:
                self._free_slot(slot)
                why = f"the answer was cut off after {self.settings.answer_seconds:g} s; ask for a shorter one"
                self._end_early(draft, why)

    def _end_early(self, draft: Draft, why_late: str) -> None:
        if draft.answer.cancelled:
            self._end(draft, "cancelled")
        else:
            self._end(draft, "timeout", why_late)

    def _join(self) -> None:
        """Gives free slots to the requests that wait longest, and writes their first tokens."""
        joined = 0
        while joined < self.settings.joins and (drafts := self._take()):
            requests = [draft.request for draft in drafts.values()]
            self._batch.put(list(drafts), requests, [draft.options for draft in drafts.values()])
            self._write(drafts)
            joined += len(drafts)

    def _take(self) -> dict[int, Draft]:
        """Slots for the next requests that can be put in together; none if no slot is free or nobody waits."""
        taken: dict[int, Draft] = {}
        width = 0
        pictures = 0
        with self._changed:
            while self._waiting and self._free and len(taken) < self._batch.rows:
                request = self._waiting[0].request
                pictures += len(request.pictures)
                if taken and (self._batch.width(request) != width or pictures > self.settings.stored_pictures):
                    break
                width = self._batch.width(request)
                draft = self._waiting.popleft()
                draft.began_s = self._clock()
                slot = self._free.popleft()
                taken[slot] = self._running[slot] = draft
                self._tally.prompt_tokens += len(request.tokens_L)
        return taken

    def _write(self, drafts: Mapping[int, Draft]) -> None:
        """Tells what is new in some slots, and frees those whose answers have ended."""
        for slot, new in self._batch.read({slot: len(draft.ids) for slot, draft in drafts.items()}):
            draft = drafts[slot]
            by_string = draft.add(new.ids)
            if by_string or new.ended:
                self._free_slot(slot)
                self._end(draft, "length" if new.ended == "length" and not by_string else "stop")

    def _free_slot(self, slot: int) -> None:
        with self._changed:
            del self._running[slot]
            self._free.append(slot)
        self._batch.release(slot)

    def _end(self, draft: Draft, reason: Reason, error: str = "") -> None:
        finished = draft.end(reason, error)
        with self._changed:
            self._tally.add(finished)

    def _fail(self, error: Exception) -> None:
        """Ends the answers in progress after a step that failed, and begins anew with empty slots."""
        if is_memory_error(error):
            why = "the devices have not enough memory for this; ask for less, or serve fewer slots or a smaller context"
        else:
            why = f"the engine failed ({type(error).__name__}: {one_line(error)}); ask again"
            traceback.print_exception(error, file=sys.stderr)
        self._batch.clear()
        with self._changed:
            failed = list(self._running.values())
            self._running.clear()
            self._free = deque(range(self._batch.count))
            self._tally.failures += 1
        for draft in failed:
            self._end(draft, "error", why)

    def _die(self, error: BaseException) -> None:
        """Ends all answers after a failure from which the thread cannot go on, and takes no request any more."""
        with self._changed:
            self._closing = True
            self.failure = error
            left = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            self._tally.failures += 1
            self._changed.notify_all()
        why = f"the engine has ended ({type(error).__name__}: {one_line(error)}); start it anew"
        for draft in left:
            self._end(draft, "error", why)


def is_memory_error(error: BaseException) -> bool:
    """Whether the host or a device had too little memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
