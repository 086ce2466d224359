"""A thousand requests to a server, most of them hostile: none may break it, cost memory, or go without a clear end.

    python benchmarks/serving_abuse.py --workdir=runs/quickstart/stage3_sft [--requests=1000] [--clients=16] [--seed=0]

Starts `python -m qwenvl_jax.serve` and asks from many clients at once, in random order: answers and streams; clients
that leave before or during their answer, send slowly, read slowly, or send no HTTP; bodies that are malformed, too deep
or too large; unknown parameters; pictures that are none, bombs, too many, of the server's files or its network. Checks
the end of every request, then that the server is idle and answers as before. Prints a line per kind and, as the last
line, one JSON object with the memory of the server after each fifth of the requests.
"""

from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import http.client
import io
import json
import random
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

BODY_MIB = 4
Outcome = str
PATH = "/v1/chat/completions"


class Client:
    """Asks one server in every way."""

    def __init__(self, url: str, model: str):
        self.address = urllib.parse.urlsplit(url).netloc
        self.model = model
        host, _, port = self.address.rpartition(":")
        self.socket_address = (host, int(port))

    def body(self, *addresses: str, **parameters: Any) -> dict[str, Any]:
        shown = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
        content = [*shown, {"type": "text", "text": "What is in the picture?"}]
        message = {"role": "user", "content": content}
        return {"model": self.model, "messages": [message], "max_tokens": 24, **parameters}

    def post(self, body: Any) -> tuple[int, dict[str, Any]]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request("POST", PATH, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def open_stream(self, body: dict[str, Any]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("POST", PATH, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def raw(self, content: bytes) -> socket.socket:
        connection = socket.create_connection(self.socket_address, timeout=60)
        connection.sendall(content)
        return connection

    def head(self, length: int) -> bytes:
        return (
            f"POST {PATH} HTTP/1.1\r\nHost: {self.address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()


def picture(side: int = 64) -> str:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bomb() -> str:
    """A small PNG of 30,000 x 30,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    head = (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return f"data:image/png;base64,{base64.b64encode(png + chunk(b'IEND', b'')).decode()}"


def refused(client: Client, body: Any, *expected: int) -> Outcome:
    status, content = client.post(body)
    assert status in (*expected, 429), (status, content)
    assert content["error"]["message"] and content["error"]["code"], content
    return str(status)


def whole(client: Client, draw: random.Random) -> Outcome:
    status, content = client.post(client.body(*[picture()] * draw.randint(0, 2)))
    if status == 429:
        assert content["error"]["code"] == "queue_full"
    else:
        assert status == 200 and content["choices"][0]["finish_reason"] in ("stop", "length"), content
    return str(status)


def stream(client: Client, draw: random.Random, pause: float = 0.0) -> Outcome:
    connection, response = client.open_stream(client.body(picture()))
    try:
        if response.status == 429:
            return "429"
        assert response.status == 200
        last = b""
        for line in response:
            last = line.strip() or last
            time.sleep(pause)
        assert last == b"data: [DONE]", last
        return "200"
    finally:
        connection.close()


def leave_early(client: Client, draw: random.Random) -> Outcome:
    content = json.dumps(client.body(picture(), max_tokens=200)).encode()
    with client.raw(client.head(len(content)) + content):
        time.sleep(draw.random() * 0.1)
    return "left"


def leave_in_a_stream(client: Client, draw: random.Random) -> Outcome:
    connection, response = client.open_stream(client.body(max_tokens=200))
    response.read(draw.randint(1, 500))
    connection.close()
    return "left"


def leave_in_a_body(client: Client, draw: random.Random) -> Outcome:
    with client.raw(client.head(100_000) + b'{"model": "x", "messages": [' + b" " * draw.randint(0, 50_000)):
        time.sleep(draw.random() * 0.2)
    return "left"


def drip(client: Client, draw: random.Random) -> Outcome:
    content = json.dumps(client.body()).encode()
    with client.raw(client.head(len(content))) as connection:
        for start in range(0, len(content), 16):
            connection.sendall(content[start : start + 16])
            time.sleep(0.02)
        return status_of(connection, 200, 429)


def no_http(client: Client, draw: random.Random) -> Outcome:
    with client.raw(draw.randbytes(draw.randint(1, 5000)) + b"\r\n\r\n") as connection:
        return status_of(connection, 400)


def status_of(connection: socket.socket, *expected: int) -> Outcome:
    """The status in the first line of a response."""
    line = connection.makefile("rb").readline().split()
    assert len(line) > 1 and int(line[1]) in expected, line
    return line[1].decode()


BOMB = bomb()
KINDS: dict[str, Callable[[Client, random.Random], Outcome]] = {
    "whole answer": whole,
    "stream": stream,
    "stream read slowly": lambda client, draw: stream(client, draw, 0.05),
    "leaves before its answer": leave_early,
    "leaves in its stream": leave_in_a_stream,
    "leaves in its body": leave_in_a_body,
    "body in drops": drip,
    "no HTTP": no_http,
    "malformed JSON": lambda client, draw: refused(client, draw.randbytes(200), 400),
    "deep JSON": lambda client, draw: refused(client, b'{"a":' + b"[" * 500_000, 400),
    "unknown parameter": lambda client, draw: refused(client, client.body(beams=4), 400),
    "other model": lambda client, draw: refused(client, {**client.body(), "model": "other"}, 404),
    "oversized body": lambda client, draw: refused(client, b"{" + bytes((BODY_MIB << 20) + 1), 413),
    "no picture": lambda client, draw: refused(client, client.body("data:image/png;base64,AAAA"), 400),
    "bomb": lambda client, draw: refused(client, client.body(BOMB), 400),
    "10,000 pictures": lambda client, draw: refused(client, client.body(*["a.png"] * 10_000), 400),
    "file of the server": lambda client, draw: refused(client, client.body("../../etc/passwd"), 400),
    "network of the server": lambda client, draw: refused(client, client.body(f"http://{client.address}/health"), 400),
    "long text": lambda client, draw: refused(client, client.body(stop=["x" * 10_000]), 400),
}


def memory_mib(process: subprocess.Popen[str]) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{process.pid}/status") as file:
        return int(re.findall(r"VmRSS:\s+(\d+)", file.read())[0]) >> 10


def figure(client: Client, name: str) -> float:
    connection = http.client.HTTPConnection(client.address, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


def start(workdir: str) -> tuple[subprocess.Popen[str], Client]:
    """A server that is ready."""
    flags = [f"--workdir={workdir}", "--port=0", "--name=model", f"--max_body_mib={BODY_MIB}", "--fetch_images"]
    command = [
        sys.executable,
        "-m",
        "qwenvl_jax.serve",
        *flags,
        "--slots=8",
        "--waiting=4",
        "--images_under=benchmarks",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        url = url or "".join(re.findall(r"http://[\d.:]+", line))
        if line.startswith("ready"):
            return process, Client(url, "model")
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    process, client = start(args.workdir)
    assert process.stdout is not None
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    memory: list[int] = []
    began = time.monotonic()

    def one(number: int) -> None:
        draw = random.Random(args.seed * 1_000_003 + number)
        kind = draw.choice(list(KINDS))
        try:
            outcomes[kind][KINDS[kind](client, draw)] += 1
        except Exception as error:
            outcomes[kind][f"WRONG {error!r:.200}"] += 1

    with concurrent.futures.ThreadPoolExecutor(args.clients + 1) as pool:
        reading = pool.submit(process.stdout.read)  # or its pipe fills up
        part = -(-args.requests // 5)
        for first in range(0, args.requests, part):
            list(pool.map(one, range(first, min(first + part, args.requests))))
            memory.append(memory_mib(process))
        seconds = time.monotonic() - began
        time.sleep(2)
        left = figure(client, "qwenvl_active") + figure(client, "qwenvl_waiting")
        last = whole(client, random.Random(0))
        process.terminate()
        code = process.wait(60)
        log = reading.result()
    for kind, counts in outcomes.items():
        print(f"{kind:26} {dict(counts)}")
    wrong = sum(count for counts in outcomes.values() for name, count in counts.items() if name.startswith("WRONG"))
    answered = {
        "requests": args.requests,
        "wrong": wrong,
        "seconds": round(seconds, 1),
        "memory_mib": memory,
        "questions_left": left,
        "last_answer": last,
        "exit_code": code,
        "tracebacks": log.count("Traceback"),
    }
    print(json.dumps(answered))
    sys.exit(bool(wrong or left or last != "200" or code or answered["tracebacks"]))


if __name__ == "__main__":
    main()
