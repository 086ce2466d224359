"""Traces of the devices over a few steps, for xprof and TensorBoard's profile plug-in.

`config.watching.profile_steps` and `profile_every` choose the steps, and SIGUSR1 asks a running process for the next
three. The files are in `profile/plugins/profile/<steps>/` of the run's folder, one per process.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import threading
from types import FrameType
from typing import Any

import jax
from etils import epath

from qwenvl_jax.checkpoint.layout import PROFILE
from qwenvl_jax.config import WatchingConfig
from qwenvl_jax.runtime import log, storage
from qwenvl_jax.runtime.errors import StorageError, one_line

STEPS = 3  # of a trace that `profile_every` or a signal asks for
_TRACE = ".xplane.pb"


class Profiler:
    """Traces the devices while it is active and steps are chosen.

    A trace that cannot be made or written is reported in one line; it never ends a run.

    Args:
      settings: the run's `config.watching`.
      workdir: the run's folder.
    """

    def __init__(self, settings: WatchingConfig, workdir: epath.Path) -> None:
        self._settings = settings
        self._folder = workdir / PROFILE
        self._asked = False
        self._first = self._last = 0
        self._temporary: tempfile.TemporaryDirectory[str] | None = None  # while a trace is taken
        self._former: Any = None

    def __enter__(self) -> Profiler:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGUSR1, self._former)
        if self._temporary:
            with contextlib.suppress(RuntimeError):
                jax.profiler.stop_trace()
            self._temporary.cleanup()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    @property
    def active(self) -> bool:
        """Whether a trace is being taken."""
        return self._temporary is not None

    def begin(self, step: int) -> None:
        """Starts a trace if it begins with `step`."""
        if self.active:
            return
        every = self._settings.profile_every
        if step in self._settings.profile_steps[:1]:
            last = self._settings.profile_steps[1]
        elif self._asked or (every and step % every == 0):
            last = step + STEPS - 1
        else:
            return
        self._asked = False
        self._first, self._last = step, last
        self._temporary = tempfile.TemporaryDirectory(prefix="qwenvl-profile-")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python functions would be most of the file
        try:
            jax.profiler.start_trace(self._temporary.name, profiler_options=options)
        except RuntimeError as error:
            self._give_up(error)

    def end(self, step: int, outputs: Any) -> None:
        """Ends a trace whose last step is `step`, when the devices have computed `outputs`."""
        if not self._temporary or step < self._last:
            return
        jax.block_until_ready(outputs)
        try:
            jax.profiler.stop_trace()
            self._keep(epath.Path(self._temporary.name))
        except (RuntimeError, OSError, StorageError) as error:
            self._give_up(error)
            return
        self._temporary.cleanup()
        self._temporary = None

    def _keep(self, temporary: epath.Path) -> None:
        """Copies what the profiler wrote into the run's folder."""
        name = socket.gethostname()
        if jax.process_count() > 1:
            name += f"_{jax.process_index()}"
        folder = self._folder / "plugins" / "profile" / f"steps_{self._first}_to_{self._last}"
        for file in storage.files_below(temporary):
            if file.endswith(_TRACE):
                storage.write_bytes(folder / f"{name}{_TRACE}", storage.read_bytes(temporary / file))
        log.line(
            f"profile of steps {self._first} to {self._last} in {folder}; show it with xprof --logdir={self._folder}"
        )

    def _give_up(self, error: Exception) -> None:
        log.line(f"warning: no profile of steps {self._first} to {self._last} ({one_line(error)}); training goes on")
        if self._temporary:
            self._temporary.cleanup()
        self._temporary = None
