"""Runs steps on Apache Beam: sets its options, holds back its log, and carries errors of steps through it.

    run_steps([Step("clean", partial(parts_of, job), partial(clean, job)), ..], options(flags, workers))

A step is a list of elements, each of which is worked on once, by any worker, in any order; the next step begins when
all are done. Elements and results go through files, so nothing here depends on the runner: one process, several, or
Dataflow, Flink and Spark, all run the same pipeline.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import functools
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

from qwenvl_jax.runtime.errors import StorageError, StorageOutage, UserError, file_errors_of, nearest, one_line

LOCAL_RUNNER = "DirectRunner"
_MOST_WORKERS = 1000  # more processes than the cores of any machine
_LOOKS_FOR_THE_DRIVER = 0.2  # seconds between two checks whether the main process still runs
_SIGNAL = signal.SIGUSR2  # to the main thread; in the background of a shell, SIGINT is ignored
_ENDS_BY_ITSELF = 3.0  # seconds that the runner gets to notice that its processes are gone


class StepModel(Protocol):
    """A model that the processes of a machine share. Its methods take and return values that can be pickled."""

    @property
    def identifier(self) -> str:
        """A name that is different for every model; pipelines on the same machine share models by it."""

    def load(self) -> Any:
        """The loaded model."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
      name: of the step in Beam's graph and in errors.
      plan: () -> the elements; called on a worker when the step before has ended.
      work: (element) -> None; it writes files. If the step has a model, (element, model) -> None.
      model: loaded once per machine, when there is an element; `work` runs in RunInference.
    """

    name: str
    plan: Callable[[], Iterable[Any]]
    work: Callable[..., None]
    model: StepModel | None = None


def options(flags: Sequence[str], workers: int, of_command: Iterable[str] = ()) -> PipelineOptions:
    """The options of Beam for some of its flags; the direct runner gets `workers` processes.

    Args:
      flags: those that the command itself does not have.
      workers: number of processes of the direct runner.
      of_command: names of the flags of the command, which may be meant by a misspelt one.

    Raises:
      UserError: for too many workers, a flag that Beam does not have, or a value that Beam or the runner refuses.
    """
    if workers > _MOST_WORKERS:
        raise UserError(f"{workers} processes are too many for one machine; name at most {_MOST_WORKERS}")
    runner = next((flag.split("=", 1)[1] for flag in flags if flag.startswith("--runner=")), LOCAL_RUNNER)
    _check_flags(flags, of_command)
    chosen = [] if any(flag.startswith("--runner=") for flag in flags) else [f"--runner={LOCAL_RUNNER}"]
    if runner == LOCAL_RUNNER:
        mode = "multi_processing" if workers > 1 else "in_memory"
        chosen += [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]
        chosen += ["--default_sdk_harness_log_level=ERROR"]
    _check_values([*chosen, *flags])
    return PipelineOptions([*chosen, *flags])


def _check_values(flags: Sequence[str]) -> None:
    """Raises UserError for values that Beam or the runner would refuse only after the input was read."""
    all_options = PipelineOptions(flags)  # a pipeline changes its options
    said = io.StringIO()
    try:
        with quiet(), contextlib.redirect_stderr(said):
            processes = all_options.get_all_options()["direct_num_workers"]
            unused = beam.Pipeline(options=all_options)
            shutil.rmtree(unused.local_tempdir, ignore_errors=True)  # as it does itself when it has run
    except SystemExit:  # the parser of Beam has printed its usage and a sentence
        raise UserError(f"{said.getvalue().rpartition('error: ')[2].strip()}; see the flags of Apache Beam") from None
    except Exception as error:  # each runner has errors of its own
        raise UserError(f"Apache Beam refuses these flags: {one_line(error)}") from None
    if processes < 0:
        raise UserError(f"--direct_num_workers={processes} must be 0 or more; --workers sets it too")


def _check_flags(flags: Sequence[str], of_command: Iterable[str]) -> None:
    known: set[str] = set()
    kinds = [PipelineOptions]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "_add_argparse_args" in vars(kind):
            parser = _BeamArgumentParser()
            kind._add_argparse_args(parser)
            known.update(parser._option_string_actions)
    for flag in flags:
        name = flag.split("=", 1)[0]
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {flag!r}; flags are written as --name=value")
        if name not in known:
            meant = nearest(name, {*of_command, *known}) or "; see --help"
            raise UserError(f"unknown flag {name}{meant}")


def is_local(pipeline_options: PipelineOptions) -> bool:
    """Whether the pipeline runs on this machine, in processes that this one starts."""
    return pipeline_options.get_all_options().get("runner") == LOCAL_RUNNER


def run_steps(steps: Sequence[Step], pipeline_options: PipelineOptions) -> None:
    """Runs steps one after the other.

    Raises:
      UserError, StorageError, OSError, MemoryError: as a step raised it; other errors as Beam reports them.
    """
    driver = _process(os.getpid()) if is_local(pipeline_options) else ""
    with quiet(), _lost_worker_ends(bool(driver)):
        try:
            with beam.Pipeline(options=pipeline_options) as pipeline:
                done: Any = pipeline | "start" >> beam.Create([0])
                for step in steps:
                    done = (
                        done
                        | f"{step.name}: plan" >> beam.FlatMap(_planned, step=step)
                        | f"{step.name}: spread" >> beam.Reshuffle()
                        | f"{step.name}: work" >> _work(step, driver)
                        | f"{step.name}: end" >> beam.combiners.Count.Globally()
                    )
        except Exception as error:
            carried = _carried(error)
            if carried is None and not driver and not hasattr(pipeline, "result"):
                runner = pipeline_options.get_all_options()["runner"]
                carried = UserError(f"--runner={runner} did not start the pipeline: {one_line(error)}")
            if carried is None:
                raise
            raise carried from None


@contextlib.contextmanager
def _lost_worker_ends(local: bool) -> Iterator[None]:
    """Ends the block when a process of the direct runner ends by itself.

    The runner would wait for the work of all other processes before it says so, which may take hours.
    """
    if not local or threading.current_thread() is not threading.main_thread():
        yield
        return
    lost = threading.Event()
    ended = threading.Event()
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if _WORKER_ENDED not in str(arguments.exc_value):
            before(arguments)
        elif not lost.is_set():
            lost.set()
            for process in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not ended.wait(_ENDS_BY_ITSELF):  # it may wait for a process that was lost before it had connected
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    threading.excepthook = hook
    handler = signal.signal(_SIGNAL, interrupted)
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise UserError(_LOST) from None
    finally:
        ended.set()
        threading.excepthook = before
        signal.signal(_SIGNAL, handler)


def _descendants(ancestor: int) -> list[int]:
    """The processes that a process has started, and those that they have started."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    family = {ancestor}
    while len(grown := family | {process for process, parent in parents.items() if parent in family}) > len(family):
        family = grown
    return sorted(family - {ancestor})


def _planned(_: int, step: Step) -> list[Any]:
    with _carrying(step.name):
        return list(step.plan())


def _work(step: Step, driver: str) -> beam.PTransform:
    if step.model is None:
        return beam.Map(_worked, step=step, driver=driver)
    from data_pipelines.score.inference import with_model  # Beam's RunInference takes seconds to import

    load = functools.partial(_loaded, step.model)
    return with_model(step.model.identifier, load, functools.partial(_worked_with_model, step, driver))


def _loaded(model: StepModel) -> Any:
    with _carrying("load the model"):
        return model.load()


def _worked(element: Any, step: Step, driver: str) -> int:
    _end_with(driver)
    with _carrying(step.name):
        step.work(element)
    return 0


def _worked_with_model(step: Step, driver: str, element: Any, model: Any) -> int:
    _end_with(driver)
    with _carrying(step.name):
        step.work(element, model)
    return 0


# Beam wraps an error of a worker into texts with tracebacks, each runner in its own way. The mark survives them all.
_WORKER_ENDED = "Worker subprocess exited"  # as the direct runner says it when a process of it ends by itself
_WORKER_GONE = "Channel closed prematurely"  # and when it asks that process for its results
_LOST = (
    "a worker process was ended, by somebody or because memory ran out; run the same command again, "
    "with fewer --workers if that happens again"
)
_MARK = re.compile(r"<<carried ([A-Za-z0-9+/=]+)>>")


@contextlib.contextmanager
def _carrying(step: str) -> Iterator[None]:
    try:
        with file_errors_of(f"the step {step}"):
            yield
    except (UserError, StorageError, OSError, MemoryError) as error:
        values: dict[str, Any] = {"kind": type(error).__name__, "text": one_line(error)}
        if isinstance(error, OSError):
            values |= {"kind": "OSError", "errno": error.errno, "file": str(error.filename or "")}
        packed = base64.b64encode(json.dumps(values).encode()).decode()
        raise RuntimeError(f"{one_line(error)} <<carried {packed}>>") from None


def _carried(error: BaseException) -> BaseException | None:
    """The error that a step raised, from the text of the one that Beam raised; None if it was another kind."""
    match = _MARK.search(str(error))
    if match is None:
        if _WORKER_GONE not in str(error):
            return None
        return UserError(_LOST)
    values = json.loads(base64.b64decode(match[1]))
    if values["kind"] == "OSError" and values["errno"] is not None:
        return OSError(values["errno"], os.strerror(values["errno"]), values["file"] or None)
    kinds = {
        "UserError": UserError,
        "StorageError": StorageError,
        "StorageOutage": StorageOutage,
        "MemoryError": MemoryError,
    }
    return kinds.get(values["kind"], UserError)(values["text"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back the log of Beam and the stderr of its processes, and prints both if the block fails unexpectedly.

    An error that a step raised on purpose says everything in its sentence.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    log = logging.getLogger("apache_beam")
    before = (log.level, log.propagate)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        handler = logging.StreamHandler(os.fdopen(os.dup(chatter.fileno()), "w"))
        log.addHandler(handler)
        log.setLevel(logging.ERROR)
        log.propagate = False
        try:
            yield
        except (UserError, StorageError, OSError, MemoryError, KeyboardInterrupt):
            raise
        except BaseException:
            os.dup2(stderr, 2)
            chatter.seek(0)
            sys.stderr.write(chatter.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            log.removeHandler(handler)
            handler.stream.close()
            log.level, log.propagate = before


_watching = threading.Lock()


def _end_with(driver: str) -> None:
    """Ends this process when the process that started the pipeline on this machine has ended in any way.

    Beam's processes would otherwise finish their elements, next to a run that is started again.
    """
    if not driver or driver == _process(os.getpid()) or not _watching.acquire(blocking=False):
        return

    def watch() -> None:
        while _process(int(driver.split()[0])) == driver:
            time.sleep(_LOOKS_FOR_THE_DRIVER)
        os._exit(errno.EPIPE)

    threading.Thread(target=watch, name="driver", daemon=True).start()


def _process(number: int) -> str:
    """The number of a process and the time of its start, because a number is used again later; "" if it has ended."""
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{number} {fields[19]}" if fields[0] != "Z" else ""
