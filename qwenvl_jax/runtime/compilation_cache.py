"""Where compiled programs are kept, so that the next start of a run need not compile them again."""

from __future__ import annotations

import jax
from etils import epath

from qwenvl_jax.runtime import storage

IN_WORKDIR = "workdir"  # the setting that names a folder in the run's


def use(setting: str, default: epath.PathLike) -> None:
    """Makes JAX keep the programs that take it a second or more to compile; call it before anything is compiled.

    The folder appears with the first program. All processes of a run read it and the first one writes, so it must be
    shared by the hosts, as the run's folder is. A damaged entry is reported and compiled anew.

    Args:
      setting: a folder, `IN_WORKDIR`, or "" for no cache. `JAX_COMPILATION_CACHE_DIR` of the environment wins.
      default: the folder that `IN_WORKDIR` stands for.
    """
    if not setting or jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = storage.absolute(default if setting == IN_WORKDIR else setting)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if storage.is_remote(folder):
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA writes them itself, to disks alone


def require_common_keys() -> None:
    """Gives the cache up on CPUs of several processes; call it when the devices are known, before anything is compiled.

    There every process has keys of its own, and the first one alone writes. It would read its programs at once and then
    wait for the others, which compile, for longer than their collectives allow (30 s).
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
