"""Runs on every host: starts the training detached from the ssh session, starts it again, stops it, tells its state.

python -m launch.host start --workdir=gs://.. [--env=NAME=VALUE] [--secret=VARIABLE=SECRET] [--members=..] [--follows]
    -- COMMAND
python -m launch.host once  (the same flags) -- COMMAND          in the foreground, e.g. for the pre-flight
python -m launch.host status | stop [--seconds=900] | follow --worker=3

It is run in the source folder; the folder above it holds `venv`, `log.txt`, `state.json` and `lock`.

A program that ssh starts ends with the session, unless it leaves it. The supervisor leaves it by setsid: tmux is not on
every image, systemd needs root. It starts the command again if the exit code says that this helps
(`qwenvl_jax/runtime/exit_codes.py`), passes SIGTERM on, which a shell between them would swallow, and copies the log to
the bucket. SIGTERM also comes from the system when the machine is taken away, so a checkpoint is written then, too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

from launch import finished, gce_metadata
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.child import end_with_parent
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from qwenvl_jax.runtime.exit_codes import retryable

FIRST_PAUSE_S = 10.0  # before the first restart; doubled for each further one
LONGEST_PAUSE_S = 300.0
HEALTHY_S = 600.0  # a run that lasted so long was healthy: pauses begin anew
MOST_RESTARTS = 12  # in a row that were not healthy
UPLOAD_S = 30.0
ENDING_S = 3600.0  # for which `--follows` waits: evaluations come after the last checkpoint


class Folder(NamedTuple):
    """The folder of a job on this host."""

    path: Path

    @property
    def log(self) -> Path:
        """All output of the command and of the supervisor."""
        return self.path / "log.txt"

    def state(self) -> dict[str, Any]:
        """The state that the supervisor has written last; empty if none ever ran, or a power failure spoilt it."""
        try:
            state = json.loads((self.path / "state.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, **values: Any) -> None:
        """Replaces the state."""
        temporary = self.path / "state.json.tmp"
        temporary.write_text(json.dumps({**values, "time": time.time()}))
        temporary.rename(self.path / "state.json")

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Takes the lock that a supervisor holds while it lives; whether it was free."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_locked_by(self, process: int) -> bool:
        """Whether a process has the lock's file open, and is not one that got its number later."""
        lock = os.path.realpath(self.path / "lock")
        try:
            return any(os.readlink(file) == lock for file in Path(f"/proc/{process}/fd").iterdir())
        except OSError:  # it has ended, or belongs to somebody else
            return False


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The environment of the command: ours, `--env`, the values of `--secret`, and the members of the run."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment.setdefault("PYTHONUNBUFFERED", "1")
    environment.setdefault("QWENVL_JOIN_SECONDS", "600")  # hosts that start again need minutes to meet
    environment |= dict(entry.split("=", 1) for entry in arguments.env)
    for entry in arguments.secret:
        variable, secret = entry.split("=", 1)
        environment[variable] = read_secret(secret)
    if arguments.members:
        slice_index, slices = map(int, arguments.members.split("/"))
        environment |= gce_metadata.variables(slice_index, slices, arguments.workdir)
    return environment


def read_secret(name: str) -> str:
    """The newest version of a secret, read with the account of this host.

    Args:
      name: `SECRET`, or `projects/PROJECT/secrets/SECRET`.

    Raises:
      UserError: if it cannot be read.
    """
    command = ["gcloud", "secrets", "versions", "access", "latest", f"--secret={name}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("gcloud, which reads secrets, is not on this host; install it in the image") from None
    if done.returncode:
        cause = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"the secret {name} cannot be read: {cause}; give the account of the host the role Secret Manager Secret "
            "Accessor"
        )
    if b"\0" in done.stdout:
        raise UserError(f"the secret {name} has a zero byte, which no variable can hold; store it as text")
    return os.fsdecode(done.stdout.removesuffix(b"\n"))


class Supervisor:
    """Keeps one command running until it has finished, cannot go on, or is to stop."""

    def __init__(self, folder: Folder, command: Sequence[str], environment: Mapping[str, str], log: TextIO) -> None:
        self._folder = folder
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT: the command gets SIGTERM each time, and is not started again."""
        del number, frame
        self._stopping.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Runs the command as often as its exit codes ask for; the last one."""
        restarts = unhealthy = 0
        while True:
            began = time.monotonic()
            code = self._once(restarts)
            self._say(f"ended with exit code {code}")
            unhealthy = 0 if time.monotonic() - began > HEALTHY_S else unhealthy + 1
            if self._stopping.is_set() or not retryable(code):
                return code
            if unhealthy > MOST_RESTARTS:
                self._say(f"no restart after {MOST_RESTARTS} in a row that failed within {HEALTHY_S:.0f} s")
                return code
            pause = min(FIRST_PAUSE_S * 2 ** max(0, unhealthy - 1), LONGEST_PAUSE_S)
            self._note(state="waiting", code=code, **self._facts(restarts))
            self._say(f"restart in {pause:.0f} s")
            if self._stopping.wait(pause):
                return code
            restarts += 1

    def _once(self, restarts: int) -> int:
        self._child = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a signal to the supervisor's group reaches the command once, through `forward`
            # A command that nobody looks after would hold the chips.
            preexec_fn=functools.partial(end_with_parent, os.getpid()),
        )
        self._note(state="running", child=self._child.pid, **self._facts(restarts))
        if self._stopping.is_set():  # the signal came while the command was being started
            self._child.send_signal(signal.SIGTERM)
        code = self._child.wait()
        return 128 - code if code < 0 else code

    def _facts(self, restarts: int) -> dict[str, Any]:
        return {"supervisor": os.getpid(), "command": self._command, "restarts": restarts}

    def _note(self, **values: Any) -> None:
        """Writes the state. On a full disk the old one stays: nobody would look after a command that goes on."""
        try:
            self._folder.write_state(**values)
        except OSError as error:
            self._say(f"the state was not written: {error}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._log.fileno(), f"supervisor {time.strftime('%Y-%m-%d %H:%M:%S')}: {text}\n".encode())


class LogCopy:
    """Copies the log to the run's folder from time to time, because a host may vanish with its disk."""

    def __init__(self, log: Path, workdir: str) -> None:
        self._log = log
        self._target = storage.path(workdir) / "logs" / f"{socket.gethostname()}.txt"
        self._copied = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._ended.wait(UPLOAD_S):
            self._copy()

    def _copy(self) -> None:
        try:
            content = self._log.read_bytes()
            if len(content) == self._copied:
                return
            storage.make_folder(self._target.parent)
            storage.write_bytes(self._target, content)
            self._copied = len(content)
        except Exception as error:  # the run goes on without the copy; the next one may succeed
            print(f"supervisor: the log was not copied to {self._target}: {error}", flush=True)

    def close(self) -> None:
        """Copies the rest."""
        self._ended.set()
        self._thread.join()
        self._copy()


def start(folder: Folder, arguments: argparse.Namespace) -> None:
    """Starts the supervisor, which leaves this session; returns when the command runs. Again, it does nothing.

    Raises:
      UserError: if another one is running, or the command cannot be started.
    """
    deadline = time.monotonic() + (ENDING_S if arguments.follows else 0.0)
    while True:
        with folder.lock() as free:
            if not free and folder.state().get("command") == arguments.command:
                print(f"{socket.gethostname()}: this run is active already")
                return
        if free or time.monotonic() > deadline:
            break
        time.sleep(1)
    environment = environment_of(arguments)
    finished.forget_ends(arguments.workdir)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.setsid()
        if os.fork():
            os._exit(0)
        _become_supervisor(folder, arguments, environment, writing)
    os.close(writing)
    os.wait()
    with os.fdopen(reading) as answers:
        answer = answers.read()
    if not answer.startswith("started"):
        raise UserError(f"{socket.gethostname()}: {answer or 'the supervisor died; see ' + str(folder.log)}")
    print(f"{socket.gethostname()}: {answer}")


def _become_supervisor(
    folder: Folder, arguments: argparse.Namespace, environment: Mapping[str, str], writing: int
) -> None:
    """The rest of the life of the supervisor; never returns."""
    code = 1
    with folder.lock() as free, folder.log.open("a") as log:
        if not free:
            os.write(writing, b"another run is active here; stop it first")
            os._exit(2)
        # `stop` finds this supervisor from now on.
        folder.write_state(state="waiting", supervisor=os.getpid(), command=arguments.command, restarts=0)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        supervisor = Supervisor(folder, arguments.command, environment, log)
        signal.signal(signal.SIGTERM, supervisor.forward)
        signal.signal(signal.SIGINT, supervisor.forward)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        copy = LogCopy(folder.log, arguments.workdir)
        os.write(writing, f"started, supervisor {os.getpid()}, log {folder.log}".encode())
        os.close(writing)
        try:
            code = supervisor.run()
        except Exception as error:
            print(f"supervisor: {type(error).__name__}: {error}", flush=True)
        with contextlib.suppress(OSError):  # of a full disk
            folder.write_state(state="ended", code=code)
        copy.close()
        finished.note_end(arguments.workdir, socket.gethostname(), code)
    os._exit(code)


def status(folder: Folder) -> str:
    """One line about the run on this host."""
    state = folder.state()
    with folder.lock() as free:
        name = state.get("state", "never started")
        if free and name in ("running", "waiting"):
            name = "lost (the supervisor was killed, or the host was restarted)"
    words = [f"{socket.gethostname()}: {name}"]
    words += [f"{key} {state[key]}" for key in ("restarts", "code") if key in state]
    if folder.log.exists():
        lines = folder.log.read_bytes()[-4096:].decode(errors="replace").split("\n")
        words.append(next((line for line in reversed(lines) if line.strip()), ""))
    return "; ".join(words)


def stop(folder: Folder, seconds: float) -> str:
    """Sends SIGTERM to the supervisor and waits for its end, which comes after the last checkpoint.

    Raises:
      UserError: if it has not ended after so many seconds.
    """
    deadline = time.monotonic() + seconds
    asked = 0
    while True:
        with folder.lock() as free:
            if free:
                return status_after(folder)
        supervisor = folder.state().get("supervisor")
        if isinstance(supervisor, int) and supervisor != asked and folder.is_locked_by(supervisor):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(supervisor, signal.SIGTERM)
            asked = supervisor
        if time.monotonic() > deadline:
            raise UserError(
                f"{socket.gethostname()}: the run has not ended within {seconds:.0f} s; read its log, and do not kill "
                "it by force, because the TPU's driver may not come back"
            )
        time.sleep(0.2)


def status_after(folder: Folder) -> str:
    """`status` of a run that is not active."""
    state = folder.state()
    code = f", exit code {state['code']}" if "code" in state else ""
    return f"{socket.gethostname()}: {state.get('state', 'never started')}{code}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one call. Raises UserError if they are wrong."""
    parser = Parser("python -m launch.host", __doc__)
    parser.add_argument("verb", choices=("start", "once", "status", "stop", "follow"))
    parser.add_argument("--workdir", default="", help="Folder of the run, which gets the log.")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="For the command.")
    parser.add_argument("--secret", action="append", default=[], metavar="VARIABLE=SECRET", help="Of Secret Manager.")
    parser.add_argument("--members", default="", metavar="SLICE/SLICES", help="The slice of this host, on gce.")
    parser.add_argument("--follows", action="store_true", help="`start` waits until another run here has ended.")
    parser.add_argument("--seconds", type=float, default=900.0, help="How long `stop` waits for the end.")
    parser.add_argument("--worker", type=int, default=0, help="The host of the slice whose log `follow` shows.")
    ours = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
    arguments = parser.parse_args(ours)
    arguments.command = list(argv[len(ours) + 1 :])
    if arguments.verb in ("start", "once") and not arguments.command:
        parser.error("the command is missing; write it after --")
    return arguments


def main(argv: Sequence[str]) -> int:
    """One verb on this host; its exit code."""
    arguments = parse(argv)
    folder = Folder(Path.cwd().parent)
    if arguments.verb == "start":
        start(folder, arguments)
    elif arguments.verb == "once":
        code = subprocess.run(arguments.command, env=environment_of(arguments), check=False).returncode
        return 128 - code if code < 0 else code
    elif arguments.verb == "status":
        print(status(folder))
    elif arguments.verb == "follow":
        if gce_metadata.worker_and_addresses()[0] == arguments.worker:
            os.execvp("tail", ["tail", "--lines=200", "--follow=name", str(folder.log)])
    else:
        print(stop(folder, arguments.seconds))
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
