"""The HTTP API: OpenAI's `/v1/models` and `/v1/chat/completions`; `/health`, `/ready`, `/metrics`, the page."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving import completions
from qwenvl_jax.serving.answer import Answer, Event, Finished
from qwenvl_jax.serving.completions import Completion
from qwenvl_jax.serving.dialogue import PromptTooLong
from qwenvl_jax.serving.engine import Engine, EngineClosed, QueueFull
from qwenvl_jax.serving.event_queue import EventQueue
from qwenvl_jax.serving.examples import ExampleQuestion
from qwenvl_jax.serving.guard import Guard
from qwenvl_jax.serving.metrics import CONTENT_TYPE, Metrics
from qwenvl_jax.serving.options import AnswerOptions
from qwenvl_jax.serving.page import files
from qwenvl_jax.serving.page.files import PageSettings
from qwenvl_jax.serving.pictures import PictureSettings, PictureSource
from qwenvl_jax.serving.refusals import CONTEXT_EXCEEDED, DO_NOT_REPEAT, Refusal, bad_request, later
from qwenvl_jax.serving.schema import ChatRequest, parse_request
from qwenvl_jax.serving.status import EngineStatus
from qwenvl_jax.serving.transport import EventStream, read_body, unless_client_leaves

_PREPARING = 4  # requests that are read, decoded and tokenised at the same time
_BEFORE_HEADERS_S = 5.0  # a stream waits so long for its first piece, so that a failure before it has its status
_STILL_HERE_S = 10.0  # between two signs of life of a stream that has nothing to say

_READ = ["GET", "HEAD"]  # probes such as `wget --spider` ask for the head alone

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ApiSettings:
    """What the API serves, and its limits.

    Attributes:
      name: of the model.
      description: of the model, for the page.
      pictures: which pictures a request may show.
      keys: a request must bring one of them; without any, none is needed.
      local_names_only: as of `Guard`.
      defaults: how an answer is written if the request does not say.
      has_page: whether the page is served.
      examples: what the page offers to try.
      max_body_bytes: of the body of a request.
      body_seconds: within which a body must have come.
      max_open: questions that may be open at once.
      max_seconds: of a request, until its answer has been sent.
    """

    name: str
    description: str = ""
    pictures: PictureSettings = dataclasses.field(default_factory=PictureSettings)
    keys: tuple[bytes, ...] = ()
    local_names_only: bool = False
    defaults: AnswerOptions = dataclasses.field(default_factory=AnswerOptions)
    has_page: bool = False
    examples: tuple[ExampleQuestion, ...] = ()
    max_body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    max_open: int = 80
    max_seconds: float = 420.0


class Service:
    """A model behind the API. It may be served before the engine is there, and until the last answer has been given.

    Attributes:
      engine: answers; None while it starts.
      draining: whether no further question is taken.
      metrics: figures for Prometheus.
      open: the questions that are being answered.
    """

    def __init__(self, settings: ApiSettings, engine: Engine | None = None):
        self.engine = engine
        self.draining = False
        self.metrics = Metrics(self._status, lambda: self.engine is not None and not self.draining)
        self.open = 0
        self._settings = settings
        self._started = int(time.time())
        self._pictures = PictureSource(settings.pictures)
        self._pool = concurrent.futures.ThreadPoolExecutor(_PREPARING, thread_name_prefix="prepare")

    def application(self) -> ASGIApp:
        """The application of ASGI."""
        settings = self._settings
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(Refusal, _refused)
        app.add_exception_handler(UserError, _mistaken)
        app.add_exception_handler(HTTPException, _not_found)
        app.add_exception_handler(Exception, _failed)
        app.add_api_route("/health", lambda: PlainTextResponse("alive\n"), methods=_READ)
        app.add_api_route("/ready", self._ready, methods=_READ)
        app.add_api_route("/metrics", self._metrics, methods=_READ)
        app.add_api_route("/v1/models", self._models, methods=_READ)
        app.add_api_route("/v1/models/{name:path}", self._model, methods=_READ)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        if settings.has_page:
            page = PageSettings(
                settings.name,
                settings.description,
                settings.pictures.max_pictures,
                settings.max_body_bytes,
                bool(settings.keys),
            )
            files.add_to(app, page, settings.examples)
        return Guard(
            app,
            self.metrics,
            settings.keys,
            settings.max_open,
            local_names_only=settings.local_names_only,
            is_draining=lambda: self.draining,
        )

    def _status(self) -> EngineStatus | None:
        return None if self.engine is None else self.engine.status()

    def _engine(self) -> Engine:
        """The engine. Raises Refusal with status 503 if it takes no question."""
        if self.draining:
            raise draining()
        if self.engine is None:
            raise later(503, "the model is being loaded; ask again later", "starting", 10)
        return self.engine

    async def _ready(self) -> Response:
        self._engine()
        return PlainTextResponse("ready\n")

    async def _metrics(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._entry()]})

    async def _model(self, name: str) -> Response:
        self._check_name(name)
        return JSONResponse(self._entry())

    def _entry(self) -> dict[str, Any]:
        return {"id": self._settings.name, "object": "model", "created": self._started, "owned_by": "qwenvl_jax"}

    def _check_name(self, name: str) -> None:
        if name != self._settings.name:
            raise Refusal(
                404, f"there is no model {name[:100]!r}; this is {self._settings.name!r}", "model_not_found", "model"
            )

    async def _chat(self, request: Request) -> Response:
        """Answers a question. If the client leaves, the answer is cancelled."""
        self.open += 1
        handed_on = False
        try:
            async with asyncio.timeout(self._settings.max_seconds):
                asked = await self._read(request)
                work = self._answer(asked) if not asked.stream else self._stream(asked)
                response = await unless_client_leaves(request, work)
            handed_on = isinstance(response, EventStream)
            return response
        except TimeoutError:
            raise Refusal(
                504, "the answer took too long; ask for a shorter one", "timeout", headers=DO_NOT_REPEAT
            ) from None
        finally:
            self.open -= not handed_on

    async def _read(self, request: Request) -> ChatRequest:
        """The parameters of a request.

        Raises:
          Refusal: for a body that is too large, too slow, or not to be served.
        """
        body = await read_body(request, self._settings.max_body_bytes, self._settings.body_seconds)
        asked = await self._prepared(lambda: parse_request(body, self._settings.pictures.max_pictures))
        self._check_name(asked.model)
        self._engine()
        return asked

    async def _prepared(self, work: Callable[[], T]) -> T:
        """The value of a function that takes long, from one of a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _ask(self, asked: ChatRequest) -> tuple[Answer, EventQueue, Completion]:
        """Hands a question to the engine.

        Raises:
          Refusal: if it cannot be answered, or not now.
        """
        turns, addresses = asked.dialogue()
        options = asked.options(self._settings.defaults)
        pictures = await self._pictures.load(addresses)
        images = [picture.encoded for picture in pictures]
        sizes = [picture.size for picture in pictures]
        engine = self._engine()
        events = EventQueue()
        submitted = self._pool.submit(engine.submit, turns, images, options, events.put)
        try:
            answer = await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_cancel_result)
            raise
        except EngineClosed:
            raise draining() from None
        except PromptTooLong as error:  # LiteLLM knows it by OpenAI's words, not by its code
            says = f"this model's maximum context length is {engine.context:,} tokens; {error}"
            raise bad_request(says, "messages", CONTEXT_EXCEEDED) from None
        except QueueFull as full:
            raise later(429, "too many questions wait already; ask again later", "queue_full", full.seconds) from None
        return answer, events, Completion(self._settings.name, turns, sizes, asked.includes_usage)

    async def _answer(self, asked: ChatRequest) -> Response:
        answer, events, completion = await self._ask(asked)
        try:
            finished = await events.end()
        finally:
            answer.cancel()
        self._count(finished)
        if failure := failure_of(finished):
            raise failure
        return JSONResponse(completion.whole(finished))

    async def _stream(self, asked: ChatRequest) -> Response:
        answer, events, completion = await self._ask(asked)
        try:
            first = await events.next(_BEFORE_HEADERS_S)
            if isinstance(first, Finished) and (failure := failure_of(first)):
                raise failure
        except BaseException:
            answer.cancel()
            raise

        def ended() -> None:
            answer.cancel()
            self.open -= 1

        return EventStream(self._sent(first, events, completion), self._settings.max_seconds, ended)

    async def _sent(self, first: Event | None, events: EventQueue, completion: Completion) -> AsyncIterator[bytes]:
        yield completion.begin()
        event = first
        while not isinstance(event, Finished):
            if event is None:
                yield completions.STILL_HERE
            elif event:
                yield completion.piece(event)
            event = await events.next(_STILL_HERE_S)
        self._count(event)
        failure = failure_of(event)
        yield completions.event({"error": failure.error}) if failure else completion.end(event)

    def _count(self, finished: Finished) -> None:
        if finished.first_token_s is not None:
            self.metrics.first_token(finished.first_token_s)


def failure_of(finished: Finished) -> Refusal | None:
    """What is said of an answer that did not come to its end; None of one that did."""
    if finished.reason == "timeout":
        again = finished.first_token_s is None  # it waited in vain; one that was cut off would be so again
        return Refusal(504, finished.error, "timeout", headers={} if again else DO_NOT_REPEAT)
    if finished.reason == "cancelled":
        return later(503, "the answer was cut off because the server ends; ask again", "draining", 30)
    if finished.reason == "error":
        return Refusal(500, finished.error, "model_error")
    return None


def draining() -> Refusal:
    """The refusal of every question once the server is about to end."""
    return later(503, "the server is about to end; ask another one", "draining", 30)


def _cancel_result(submitted: concurrent.futures.Future[Answer]) -> None:
    """Cancels the answer to a question whose client left while it was being submitted."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _mistaken(request: Request, error: Exception) -> Response:
    return bad_request(str(error), "messages").response()


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        says = f"{request.url.path[:100]} does not take {request.method[:10]}; see docs/serving.md"
        return Refusal(405, says, "method_not_allowed", headers=error.headers or {}).response()
    says = f"there is nothing at {request.url.path[:100]}; served are /v1/chat/completions and /v1/models"
    return Refusal(error.status_code, says, "not_found").response()


async def _failed(request: Request, error: Exception) -> Response:
    """A bug. Its traceback goes to the server's log and not to the client."""
    return Refusal(500, "the server failed on this request; its log says why", "server_error").response()
