"""The command `python -m qwenvl_jax.serve`: its mistakes, its key, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwenvl_jax import serve
from qwenvl_jax.serving.api import ApiSettings
from tests.support.api_server import PATIENCE_S, get, post, question, wait_for

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-a-test-0123456789"


class Running:
    """A server in a process of its own."""

    def __init__(self, *flags: str, **environment: str):
        command = [sys.executable, "-m", "qwenvl_jax.serve", "--port=0", *flags]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def url(self) -> str:
        wait_for(lambda: any("http://" in line for line in self.lines) or self.process.poll() is not None)
        line = next(line for line in self.lines if "http://" in line)
        return line[line.index("http://") :].removesuffix("/v1")

    def wait_until_ready(self) -> None:
        wait_for(lambda: any(line.startswith("ready") for line in self.lines))

    def end(self) -> int:
        """The exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code


@contextlib.contextmanager
def running(checkpoint: Path, *flags: str, **environment: str) -> Iterator[Running]:
    server = Running(f"--workdir={checkpoint}", *flags, **environment)
    try:
        yield server
    finally:
        server.process.kill()
        server.end()


@pytest.mark.slow
def test_it_listens_while_it_loads_and_ends_with_the_last_answer(checkpoint: Path) -> None:
    with running(checkpoint, "--page", "--name=tiny", QWENVL_API_KEY=KEY) as server:
        assert get(server.url, "/health")[0] == 200, "before the model is there"
        server.wait_until_ready()
        header = {"Authorization": f"Bearer {KEY}"}
        assert get(server.url, "/v1/models")[0] == 401
        status, _, body = post(server.url, question(), **header)
        assert status == 200 and body["choices"][0]["finish_reason"]
        answers: list[Any] = []

        def ask() -> None:
            for seed in range(30):
                asked = question("Go on.", max_tokens=150, temperature=2.0, seed=seed)
                answers.append(post(server.url, asked, **header)[0])
                if answers[-1] != 200:
                    return

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: len(answers) > 2)
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError, httpx.HTTPError):
            asking.join(PATIENCE_S)
        assert server.end() == 0
        assert set(answers) <= {200, 503}
        assert KEY not in "\n".join(server.lines)
        assert not any("Traceback" in line for line in server.lines), server.lines


@pytest.mark.slow
def test_a_signal_while_the_model_loads_ends_at_once(checkpoint: Path) -> None:
    with running(checkpoint) as server:
        assert server.url
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port=99999"], "--port=99999 is no port"),
        (["--host=no-such-name.invalid"], "--host=no-such-name.invalid"),
        (["--images_under=/no/such/folder"], "is no folder"),
        (["--key_file=/no/such/file"], "does not exist"),
        (["--fetch_from=here"], "is no network"),
        (["--max_pictures=0"], "must be at least 1"),
        (["--drain_seconds=-1"], "--drain_seconds=-1 must be 0 or more"),
        (["--drain_seconds=nan"], "--drain_seconds=nan must be 0 or more"),
        (["--slots=0"], "slots 0 must be at least 1"),
        (["--context=100000"], "context"),
    ],
)
def test_a_mistake_is_one_sentence(
    checkpoint: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main([f"--workdir={checkpoint}", "--port=0", *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line


def test_a_port_that_is_taken_is_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            serve.main([f"--workdir={checkpoint}", f"--port={port}"])
    assert f"--port={port} cannot be used (Address already in use)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"brief\n", "schlüssel-mit-umlaut".encode(), b"with a space inside\n"]
)
def test_keys_that_protect_nothing_are_refused_without_being_shown(
    checkpoint: Path, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(SystemExit):
        serve.main([f"--workdir={checkpoint}", "--port=0", f"--key_file={file}"])
    error = capsys.readouterr().err
    assert str(file) in error and "openssl" in error
    assert not content.strip() or content.strip().decode() not in error


@pytest.mark.parametrize(
    ("keys", "is_local", "stage", "warned"),
    [
        ((), False, "sft", ["whoever reaches"]),
        ((), True, "multitask", ["has not learned dialogues"]),
        ((KEY.encode(),), False, "sft", []),
        ((), True, "sft", []),
    ],
)
def test_what_may_surprise_is_said_first(
    keys: tuple[bytes, ...], is_local: bool, stage: str, warned: list[str]
) -> None:
    settings = ApiSettings("tiny", "tiny, step 3", keys=keys)
    first, *warnings = serve._greeting(settings, "http://10.0.0.1:80", stage, is_local=is_local)
    assert first == "tiny, step 3: http://10.0.0.1:80/v1"
    assert len(warnings) == len(warned) and all(part in line for part, line in zip(warned, warnings, strict=True))
    assert KEY not in "".join(warnings)


@pytest.mark.slow
def test_hostile_requests_break_nothing(checkpoint: Path) -> None:
    command = [sys.executable, "benchmarks/serving_abuse.py", f"--workdir={checkpoint}", "--requests=150"]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
