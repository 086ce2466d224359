"""An OpenAI-compatible server that answers from the annotations it gets, and fails in the ways that real ones do.

    python -m tests.support.chat_server --log=FILE [--faults=none|all|down|unauthorized|refused|redirect|drip|garbage]
        [--replies=good|mixed|bad]

The log has a line of JSON per request: its time, its header Authorization, its body, and what was done.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import threading
import time
from typing import Any

_FAULTS = ("429", "503", "hang", "cut", "not JSON", "drop", "none")


class Server(http.server.ThreadingHTTPServer):
    """Its threads share the counts of requests and the log."""

    daemon_threads = True

    def __init__(self, flags: argparse.Namespace):
        super().__init__(("127.0.0.1", 0), Handler)
        self.flags = flags
        self.seen: dict[str, int] = {}
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that are killed or do not wait are part of the tests."""

    def note(self, entry: dict[str, Any]) -> None:
        """Adds a line to the log."""
        with self.lock, open(self.flags.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing goes to stderr."""

    def do_POST(self) -> None:
        """Answers, or fails as the flags say; of `--faults=all` each request has one fault, then its answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        digest = hashlib.sha256(body).hexdigest()
        with self.server.lock:
            number = self.server.seen[digest] = self.server.seen.get(digest, 0) + 1
        faults = self.server.flags.faults
        fault = _FAULTS[int(digest, 16) % len(_FAULTS)] if faults == "all" and number == 1 else "none"
        if faults in ("down", "unauthorized", "refused", "redirect", "drip", "garbage"):
            fault = faults
        entry = {"time": time.time(), "path": self.path, "key": self.headers.get("Authorization"), "fault": fault}
        self.server.note({**entry, "body": json.loads(body)})
        getattr(self, f"_{fault.replace(' ', '_')}", self._answer)(json.loads(body))

    def _send(self, code: int, payload: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload) if length is None else length))
        self.end_headers()
        self.wfile.write(payload)

    def _429(self, _: Any) -> None:
        self._send(429, b"slow down", Retry_After="0.05")

    def _503(self, _: Any) -> None:
        self._send(503, b"<html>busy</html>")

    _down = _503

    def _hang(self, _: Any) -> None:
        time.sleep(3)

    def _cut(self, _: Any) -> None:
        self._send(200, b'{"choices": [', length=5000)

    def _not_JSON(self, _: Any) -> None:
        self._send(200, b"<html>gateway</html>")

    def _drop(self, _: Any) -> None:
        self.connection.close()

    def _drip(self, _: Any) -> None:
        """A byte now and then of headers that never end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Name: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def _garbage(self, _: Any) -> None:
        self.wfile.write(bytes(range(256)) * 8)

    def _redirect(self, _: Any) -> None:
        self._send(307, b"moved", Location=f"http://localhost:{self.server.server_address[1]}/stolen")

    def _unauthorized(self, _: Any) -> None:
        self._send(401, f"wrong key {self.headers.get('Authorization')}".encode())

    def _refused(self, _: Any) -> None:
        self._send(400, f"no such parameter; your header was {self.headers.get('Authorization')}".encode())

    def _none(self, request: dict[str, Any]) -> None:
        self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        text = good_reply(request)
        finish = "stop"
        kind = self.server.flags.replies
        if kind == "bad" or (kind == "mixed" and len(request["messages"]) == 2):
            choice = request["seed"] % 5
            text, finish = (
                ("I cannot do that.", "stop"),
                (text.replace("[region 1]", "[region 99]") if "[region 1]" in text else "{}", "stop"),
                (text[: len(text) // 2], "length"),
                (text.replace('"assistant"', '"user"'), "stop"),
                ("bad" if kind == "bad" else text, "stop"),
            )[choice]
        choice_of = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        self._send(200, json.dumps({"choices": [choice_of], "usage": usage}).encode())


def good_reply(request: dict[str, Any]) -> str:
    """A dialogue about the annotations in a request."""
    system, user = (message["content"] for message in request["messages"][:2])
    data = json.loads(user.splitlines()[1])
    chinese = "in Chinese" in system
    said = (data["captions"] or ["图中有东西" if chinese else "There is something to see"])[0]
    turns = [
        {"role": "user", "text": "图里有什么？" if chinese else "What is in the picture?"},
        {"role": "assistant", "text": said},
    ]
    if data["regions"]:
        turns.append({"role": "user", "text": "在哪里？" if chinese else "Where is it?"})
        turns.append({"role": "assistant", "text": "在这里：[region 1]。" if chinese else "Here: [region 1]."})
    return json.dumps({"turns": turns}, ensure_ascii=False)


def main() -> None:
    """Serves until it is ended; the first line of output has the URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--faults", default="none")
    parser.add_argument("--replies", default="good")
    server = Server(parser.parse_args())
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
