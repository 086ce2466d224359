"""Pictures of the web: fetched within limits, and never from inside, by whatever way the address leads there."""

from __future__ import annotations

import asyncio
import http.server
import ipaddress
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.addresses import parse_web
from qwenvl_jax.serving.web_pictures import FetchSettings, WebPictures, is_public

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
PICTURE = b"\x89PNG and more"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    def log_message(self, *_: Any) -> None:
        """Nothing goes to stderr."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", urllib.parse.unquote(rest))
            self.end_headers()
        elif kind == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Name: ")
            for _ in range(600):
                self.wfile.write(b"x")
                time.sleep(0.02)
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(bytes(65536))
        else:
            self.send_response(404 if kind == "missing" else 200)
            if kind == "zipped":
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", "999999999" if kind == "huge" else str(len(PICTURE)))
            self.end_headers()
            self.wfile.write(PICTURE)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that leave are part of the tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server on the loopback: an internal one."""
    running = Server(("127.0.0.1", 0), Handler)
    running.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def fetch(url: str, *, allow: bool = False, most: int = 1000, seconds: float = 20.0) -> bytes:
    settings = FetchSettings(most, seconds, LOOPBACK if allow else ())

    async def fetched() -> bytes:
        return await WebPictures(settings).fetch(parse_web(url))

    return asyncio.run(fetched())


def test_a_picture_of_a_network_that_is_named_is_fetched(server: Server) -> None:
    port = server.server_address[1]
    assert fetch(f"http://127.0.0.1:{port}/a.png?x=1", allow=True) == PICTURE
    path, headers = server.seen[-1]  # type: ignore[attr-defined]
    assert path == "/a.png?x=1" and headers["Host"] == f"127.0.0.1:{port}"
    assert fetch(f"http://127.0.0.1:{port}/to//a.png", allow=True) == PICTURE, "a redirect to a path"
    assert fetch(f"http://127.0.0.1:{port}/to/http://127.0.0.1:{port}/a.png", allow=True) == PICTURE


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "017700000001", "127.0.0.53", "0.0.0.0"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
        *("[2002:7f00:1::]", "169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16", "10.0.0.1"),
        *("192.168.1.1", "172.16.0.1", "[fe80::1]", "[fc00::1]", "224.0.0.1", "255.255.255.255", "[ff02::1]"),
    ],
)
def test_nothing_is_fetched_from_inside(server: Server, host: str) -> None:
    before = len(server.seen)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"internal address|is not known"):
        fetch(f"http://{host}:{server.server_address[1]}/a.png", seconds=5)
    assert len(server.seen) == before  # type: ignore[attr-defined]


def resolving(answers: Callable[[str], list[str]]) -> Callable[..., Any]:
    """What `getaddrinfo` gives if names are resolved so; numbers are left to it."""
    real = socket.getaddrinfo

    def resolved(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if not name.endswith(".example"):
            return real(host, port, *args, **kwargs)
        return [entry for number in answers(name) for entry in real(number, port, *args, **kwargs)]

    return resolved


def test_a_name_that_leads_inside_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(server.seen)  # type: ignore[attr-defined]
    for numbers in (["127.0.0.1"], ["::1"], ["93.184.216.34", "127.0.0.1"], ["::ffff:10.0.0.1"]):
        monkeypatch.setattr(socket, "getaddrinfo", resolving(dict.fromkeys(["pictures.example"], numbers).__getitem__))
        with pytest.raises(UserError, match="leads to an internal address"):
            fetch(f"http://pictures.example:{server.server_address[1]}/a.png")
    assert len(server.seen) == before  # type: ignore[attr-defined]


def test_a_name_that_leads_inside_the_second_time_does_not_pass(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def rebinding(name: str) -> list[str]:
        asked.append(name)
        return ["192.0.2.1" if len(asked) > 1 else "198.41.0.4"]  # public first

    before = len(server.seen)  # type: ignore[attr-defined]
    monkeypatch.setattr(socket, "getaddrinfo", resolving(rebinding))
    with pytest.raises(UserError):
        fetch(f"http://rebinding.example:{server.server_address[1]}/a.png", seconds=1)
    assert len(asked) == 1, "the name is resolved once, and the connection goes to the number that was checked"
    assert len(server.seen) == before  # type: ignore[attr-defined]


def test_the_other_end_is_never_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine also has addresses that are public by their number; its own services listen there too."""
    monkeypatch.setattr("qwenvl_jax.serving.web_pictures.is_public", lambda address: True)
    before = len(server.seen)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="leads to an internal address"):
        fetch(f"http://127.0.0.1:{server.server_address[1]}/a.png")
    assert len(server.seen) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://[::1]:1/", "http://10.0.0.1/", "file:///etc/passwd"]
)
def test_a_redirect_leads_nowhere_else(server: Server, target: str) -> None:
    with pytest.raises(UserError, match=r"internal address|not the web"):
        fetch(f"http://127.0.0.1:{server.server_address[1]}/to/{target}", allow=True)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("missing", "status 404"),
        ("huge", "more than 1,000 bytes"),
        ("endless", "more than 1,000 bytes"),
        ("zipped", "compressed"),
        ("to//to//to//to//to//a", "redirected more than 3"),
        ("drip", "longer than 1 seconds"),
    ],
)
def test_limits(server: Server, path: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=says):
        fetch(
            f"http://127.0.0.1:{server.server_address[1]}/{path}", allow=True, seconds=1.0 if path == "drip" else 20.0
        )
    assert time.monotonic() - began < 10


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="cannot be fetched"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/a.png", allow=True)
    with pytest.raises(UserError, match="is not known"):
        fetch("http://no-such-name.invalid/a.png")


def test_public_addresses_are_public() -> None:
    for number in ("8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(ipaddress.ip_address(number)), number


def test_a_network_that_is_named_does_not_open_the_public_web() -> None:
    settings = FetchSettings(1000, also=LOOPBACK, public=False)
    assert settings.allows(ipaddress.ip_address("127.0.0.1"))
    assert not settings.allows(ipaddress.ip_address("8.8.8.8"))
    with pytest.raises(UserError, match="outside the networks that were named"):
        asyncio.run(WebPictures(settings).fetch(parse_web("http://8.8.8.8/a.png")))
