"""A proxy before an object store that injects the faults of a real one, at requests that a seed chooses.

    python -m tests.support.faulty_gcs --upstream=http://127.0.0.1:4443 --port=4444 --seed=0 --rate=0.1

Every request is spoilt with probability `--rate`, in one of the ways of `KINDS` (`--kinds=503,reset`), until `--most`
were. `GET /_outage?kind=503&seconds=60` spoils every request of that time. `GET /_faults` tells what was done so far.
Tests start it by `faulty`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.gcs_server import VARIABLES
from tests.support.server_process import serving

KINDS = (
    *("408", "429", "500", "502", "503", "504"),
    "reset",  # the connection is reset before the request reaches the store
    "lost",  # the request is carried out, the answer never comes
    "hang",  # silence
    "short",  # the connection ends in the middle of the answer
)
_HOP = {"connection", "transfer-encoding", "keep-alive", "proxy-connection", "te", "upgrade"}


class Proxy(ThreadingHTTPServer):
    """See the top of this file."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, arguments: argparse.Namespace):
        super().__init__(("127.0.0.1", arguments.port), _Handler)
        self.arguments = arguments
        self.upstream = urllib.parse.urlsplit(arguments.upstream)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests, self.faults = 0, collections.Counter[str]()
        self.outage, self.outage_ends = "", 0.0
        self.lock = threading.Lock()

    def choose(self, target: str) -> str | None:
        """The fault of the next request, or None."""
        with self.lock:
            if time.monotonic() < self.outage_ends:
                self.faults[self.outage] += 1
                return self.outage
            if not re.search(self.arguments.only, target):
                return None
            draw = random.Random(f"{self.arguments.seed}:{self.requests}")
            self.requests += 1
            if draw.random() >= self.arguments.rate or self.faults.total() >= self.arguments.most:
                return None
            kind = draw.choice(self.arguments.kinds)
            self.faults[kind] += 1
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _serve(self) -> None:
        proxy = self.server
        if self.path == "/_faults":
            told = json.dumps({"requests": proxy.requests, "faults": proxy.faults}).encode()
            self._answer(200, [("Content-Type", "application/json")], told)
            return
        if self.path.startswith("/_outage?"):
            asked = dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))
            proxy.outage, proxy.outage_ends = asked["kind"], time.monotonic() + float(asked["seconds"])
            self._answer(200, [], b"")
            return
        body = self._body()
        kind = proxy.choose(f"{self.command} {self.path}")
        if kind is not None and kind.isdigit():
            said = json.dumps({"error": {"code": int(kind), "message": "injected"}}).encode()
            self._answer(int(kind), [("Content-Type", "application/json")], said)
        elif kind == "hang":
            left = proxy.outage_ends - time.monotonic()
            time.sleep(left if left > 0 else proxy.arguments.hang)
            self._reset()
        elif kind == "reset":
            self._reset()
        else:
            status, headers, contents = self._forward(body)
            if kind == "lost":
                self._reset()
            elif kind == "short":
                self._answer(status, headers, contents, cut=len(contents) // 2)
            else:
                self._answer(status, headers, contents)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = self.server.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            headers.pop("Content-Length", None)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            contents = answer.read()
            base = f"{upstream.scheme}://{upstream.netloc}"
            kept = [
                (name, value.replace(base, self.server.url))
                for name, value in answer.getheaders()
                if name.lower() not in _HOP | {"content-length", "date"}
            ]
            return answer.status, kept, contents
        finally:
            connection.close()

    def _answer(self, status: int, headers: Sequence[tuple[str, str]], contents: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        if cut is not None:
            self.wfile.write(contents[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.command != "HEAD":
            self.wfile.write(contents)

    def _reset(self) -> None:
        """Ends the connection by a reset instead of an orderly close."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


def faulty(upstream: str, **options: object) -> contextlib.AbstractContextManager[str]:
    """Runs a proxy as a separate process; gives its URL. The options are those of the command line."""
    return serving("tests.support.faulty_gcs", upstream=upstream, **options)


@contextlib.contextmanager
def between(upstream: str, **options: object) -> Iterator[str]:
    """As `faulty`, and the libraries of this process go through it while the block runs."""
    with faulty(upstream, **options) as url, pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, url)
        yield url


def told(url: str) -> dict[str, Any]:
    """How many requests a proxy has seen and, by kind, the faults that it has injected."""
    with urllib.request.urlopen(f"{url}/_faults") as answer:
        return json.loads(answer.read())


def outage(url: str, kind: str, seconds: float) -> None:
    """Has a proxy spoil every request for some seconds; returns at once."""
    with urllib.request.urlopen(f"{url}/_outage?kind={kind}&seconds={seconds}"):
        pass


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; prints `listening on URL` and serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="URL of the object store")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--seed", default="0", help="any text")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the requests that are spoilt")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), metavar="A,B,..")
    parser.add_argument("--most", type=int, default=sys.maxsize, help="faults, after which all is well")
    parser.add_argument("--hang", type=float, default=3600.0, help="seconds of silence")
    parser.add_argument("--only", default="", help="regular expression of `METHOD PATH`; other requests are left alone")
    proxy = Proxy(parser.parse_args(argv))
    print(f"listening on {proxy.url}", flush=True)
    proxy.serve_forever()


if __name__ == "__main__":
    main()
