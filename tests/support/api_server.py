"""The server of the API in a thread of the test's process, and requests to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from qwenvl_jax.serving.api import ApiSettings, Service
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.server import Server, listen

PATIENCE_S = 120.0  # of a test that fails


@contextlib.contextmanager
def serving(engine: Engine, settings: ApiSettings) -> Iterator[tuple[str, Service]]:
    """Serves an engine that runs; gives the URL and the service. The engine is left as it is."""
    listener = listen("127.0.0.1", 0)
    service = Service(settings)
    server = Server(service, listener, lambda: engine, drain_seconds=5)
    thread = threading.Thread(target=server.run, args=([listener.socket],))
    service.engine = engine
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield listener.url, service
    finally:
        service.engine = None  # it outlives this server
        server.end()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], Any]) -> None:
    """Waits until a condition holds."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


def data_url(picture: bytes, kind: str = "png") -> str:
    """A picture as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def question(text: str = "What is it?", *addresses: str, **parameters: Any) -> dict[str, Any]:
    """The body of a request."""
    shown = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    message = {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
    return {"model": "tiny", "messages": [message], "max_tokens": 8, **parameters}


def post(
    url: str, body: Any, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON of the response to a request; a body of bytes is sent as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _request(url, "POST", path, content, {"Content-Type": "application/json", **_dashed(headers)})


def get(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON, or text, of the response to a request."""
    return _request(url, "GET", path, None, _dashed(headers))


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _request(
    url: str, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        shown = {name.lower(): value for name, value in response.getheaders()}
        is_json = "json" in shown.get("content-type", "")
        return response.status, shown, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()
