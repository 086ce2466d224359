"""The process around the API: connections on which nothing comes, and an engine that cannot go on."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.serving import server
from qwenvl_jax.serving.api import ApiSettings, Service
from qwenvl_jax.serving.engine import Engine, EngineClosed
from qwenvl_jax.serving.options import EngineSettings
from qwenvl_jax.serving.slot_batch import SlotBatch
from tests.support.api_server import PATIENCE_S, get, post, question, serving, wait_for

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


@pytest.fixture
def engine(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> Engine:
    """An engine that has not been started."""
    return Engine(loaded, tokenizer, config.data.image_size, EngineSettings(slots=1))


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    with serving(engine, ApiSettings("tiny")) as (address, _):
        yield address


@pytest.fixture
def lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of an engine fails, and so does beginning anew."""

    def fails(batch: SlotBatch, *arguments: Any) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(SlotBatch, "put", fails)
    monkeypatch.setattr(SlotBatch, "clear", fails)


def test_connections_on_which_no_request_comes_are_closed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_S", 1.0)
    address = httpx.URL(url)
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for begun in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", whole):
        with socket.create_connection((address.host, address.port), timeout=30) as connection:
            connection.sendall(begun)
            connection.settimeout(0.1)
            until = time.monotonic() + 15
            heard = b""
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < until:
                    try:
                        heard += (received := connection.recv(4096))
                        if not received:
                            break
                    except TimeoutError:
                        connection.sendall(b"a" if begun else b"")  # the next byte of a head that never ends
            assert time.monotonic() < until, "the connection is still open"
            assert (b" 200 " in heard) == (begun == whole)


def test_a_body_may_take_longer_than_a_head(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_S", 0.2)
    body = json.dumps(question(model="another")).encode()
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.sendall(HEAD % len(body))
        time.sleep(0.6)
        connection.sendall(body)
        assert b" 404 " in connection.recv(4096).splitlines()[0]


def test_an_engine_that_cannot_go_on_tells_all_who_wait(engine: Engine, lost_device: None) -> None:
    turns = [{"role": "user", "parts": [{"text": "What is it?"}]}]
    answers = [engine.submit(turns, []) for _ in range(3)]
    engine.start()
    for answer in answers:
        finished = answer.result(PATIENCE_S)
        assert finished.reason == "error" and "the device is lost); start it anew" in finished.error
    assert isinstance(engine.failure, RuntimeError)
    assert engine.status().active == engine.status().waiting == 0
    with pytest.raises(EngineClosed):
        engine.submit(turns, [])
    engine.close(PATIENCE_S)


def test_a_server_whose_engine_has_ended_ends_with_its_failure(engine: Engine, lost_device: None) -> None:
    listener = server.listen("127.0.0.1", 0)

    def load() -> Engine:
        engine.start()
        return engine

    running = server.Server(Service(ApiSettings("tiny")), listener, load, drain_seconds=5)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(running.run_to_the_end)
        wait_for(lambda: running.started and get(listener.url, "/ready")[0] == 200)
        status, _, body = post(listener.url, question())
        assert status == 500 and "the device is lost" in body["error"]["message"]
        with pytest.raises(RuntimeError, match="the device is lost"):
            ending.result(PATIENCE_S)
