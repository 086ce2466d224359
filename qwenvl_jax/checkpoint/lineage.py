"""Where every component of a run came from, and whether a folder belongs to the run that wants to use it."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import file_checksums, layout, steps
from qwenvl_jax.checkpoint.layout import CONFIG, LINEAGE
from qwenvl_jax.config import COMPONENTS, Config, Mark, config_hash, from_config_dict, marks, to_dict
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.versions import commit, versions

VOCABULARY = "vocabulary"  # key of the lineage: sha256 of the vocabulary's file
_CHECKSUMS = "checksums"  # key of the lineage: the frozen weights have checksums, which cannot be missing
_CODE = "code"  # key of the lineage: versions, and the commit if there is one
_DATA = "data"  # key of the lineage: digest of everything that the batches depend on
_TENSORS = "tensors"  # key of the lineage: which tensors were loaded, resized, skipped or begun anew
_RETURNS = "returns"  # key of the lineage: the steps that the run has gone back to, and what was moved aside then
_RUN = "run"  # key of the lineage: a random name, if the run has local checkpoints
_LORA = "lora"  # key of the lineage: the adapters that are trained, if there are any
_MOVES = "moves"  # key of the lineage: paths that had changed when the run was continued


def differences(here: Any, there: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, value here, value there) of all leaves in which two trees of JSON values differ, in order."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from differences(here.get(key), there.get(key), f"{path}.{key}")
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for index, (a, b) in enumerate(zip(here, there, strict=True)):
            yield from differences(a, b, f"{path}[{index}]")
    elif here != there:
        yield path, here, there


def read_config(workdir: epath.PathLike) -> Config:
    """The config that a run was started with.

    Raises:
      UserError: if the folder is not that of a run.
    """
    path = storage.path(workdir) / CONFIG
    if not storage.exists(path):
        raise UserError(f"{workdir} is not the folder of a run (it has no {CONFIG}); check the path")
    values = artifacts.read_json(path)
    try:
        return from_config_dict(Config, dict(values))
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not that of a run of this project ({error}); check the path") from None


def read_lineage(workdir: epath.PathLike) -> dict[str, Any]:
    """The lineage of a run; see `write`. Raises UserError if there is none."""
    path = storage.path(workdir) / LINEAGE
    values = artifacts.read_json(path)
    components = values.get("components") if isinstance(values, dict) else None
    whole = isinstance(components, dict) and all(isinstance(entry, dict) for entry in components.values())
    if not whole or "stage" not in values or not isinstance(values.get(_MOVES, []), list):
        raise UserError(f"{path} is not that of a run of this project; copy the whole folder of the run again")
    return values


def has_run(workdir: epath.PathLike) -> bool:
    """Whether a run has begun in the folder: its lineage is written last."""
    return storage.exists(storage.path(workdir) / LINEAGE)


def check_free(workdir: epath.PathLike) -> None:
    """Refuses to begin a run among files of somebody else that have the names of a run's.

    A beginning that was cut short is recognised by its config, which is written first.

    Raises:
      UserError: naming the file.
    """
    folder = storage.path(workdir)
    if not storage.exists(folder):
        return
    if not storage.is_folder(folder):
        raise UserError(f"{workdir} is a file; name a folder")
    names = set(storage.names(folder))
    if CONFIG in names:
        read_config(workdir)
        return
    for name in layout.ALL:
        if name in names:
            raise UserError(f"{folder / name} is there, but no run ({CONFIG} is missing); choose an empty folder")


def check_resumable(workdir: epath.PathLike, config: Config) -> None:
    """Refuses to continue a run with another config than it was started with. An empty folder is fine.

    Raises:
      UserError: naming the first key that differs, or the file that is in the way of a new run.
    """
    steps.check_name(workdir)
    if not has_run(workdir) and not steps.finished_steps(workdir):
        check_free(workdir)
        return
    aside = steps.damaged_names(workdir)
    if aside and not steps.finished_steps(workdir):
        raise UserError(
            f"all checkpoints of {workdir} were damaged and are set aside ({', '.join(aside)}); copy one there from "
            "elsewhere, or name another --workdir to start anew"
        )
    for key, here, there in differences(to_dict(config), to_dict(read_config(workdir)), "config"):
        if not marks(Config, key.removeprefix("config.")):
            raise UserError(
                f"{workdir} was started with {key} = {there!r}, not {here!r}; "
                "use the old value to continue, or another --workdir to start anew"
            )


def note_moves(workdir: epath.PathLike, config: Config, step: int) -> list[str]:
    """Writes the new paths of what a continued run finds elsewhere into its config, and the old ones into its lineage.

    Returns:
      The keys that have changed.
    """
    old = to_dict(read_config(workdir))
    moves = [
        {"key": key, "from": there, "to": here, "after_step": step}
        for key, here, there in differences(to_dict(config), old, "config")
        if Mark.MOVABLE in marks(Config, key.removeprefix("config."))
    ]
    if moves:
        lineage = read_lineage(workdir)
        noted = lineage.get(_MOVES, [])
        lineage[_MOVES] = noted + [move for move in moves if move not in noted]
        artifacts.write_json(storage.path(workdir) / LINEAGE, lineage)
        for move in moves:
            _put(old, move["key"], move["to"])
        artifacts.write_json(storage.path(workdir) / CONFIG, old)
    return [move["key"] for move in moves]


def expects_checksums(workdir: epath.PathLike) -> bool:
    """Whether the frozen weights of the run were written with checksums."""
    return has_run(workdir) and bool(read_lineage(workdir).get(_CHECKSUMS))


def last_return(workdir: epath.PathLike) -> int | None:
    """The step that the run has gone back to last, or None."""
    returns = read_lineage(workdir).get(_RETURNS, [])
    return returns[-1]["to"] if returns else None


def note_return(workdir: epath.PathLike, step: int, moved: list[str]) -> None:
    """Notes that the run goes back to a step, and the names of the checkpoints that were moved aside."""
    lineage = read_lineage(workdir)
    lineage[_RETURNS] = [*lineage.get(_RETURNS, []), {"to": step, "moved": moved}]
    artifacts.write_json(storage.path(workdir) / LINEAGE, lineage)


def identity(workdir: epath.PathLike, *, create: bool = False) -> tuple[str, list[int]]:
    """A name that belongs to one run in one folder, "" if it has none; and the steps that the run has gone back to.

    Args:
      workdir: the run's folder.
      create: gives the run a name if it has none. A run that begins anew in the same folder gets another one.
    """
    lineage = read_lineage(workdir) if has_run(workdir) else {}
    if create and _RUN not in lineage:
        lineage[_RUN] = uuid.uuid4().hex
        artifacts.write_json(storage.path(workdir) / LINEAGE, lineage)
    returns = [int(entry["to"]) for entry in lineage.get(_RETURNS, [])]
    if _RUN not in lineage:
        return "", returns
    return hashlib.sha256(f"{lineage[_RUN]} {storage.absolute(workdir)}".encode()).hexdigest()[:16], returns


def _put(values: Any, key: str, value: Any) -> None:
    """Sets a leaf that `differences` named, e.g. `config.data.mixture[0].records`."""
    *parts, last = re.findall(r"\w+", key)[1:]
    for part in parts:
        values = values[int(part)] if isinstance(values, list) else values[part]
    values[last] = value


def begin(workdir: epath.PathLike, config: Config) -> None:
    """Writes `config.json`, the first file of a new run, after `check_free`."""
    check_free(workdir)
    artifacts.write_json(storage.path(workdir) / CONFIG, to_dict(config))


def write(
    workdir: epath.PathLike,
    config: Config,
    origins: dict[str, dict[str, Any] | None],
    *,
    vocabulary: str | None = None,
    data: str | None = None,
    tensors: dict[str, str] | None = None,
) -> None:
    """Writes `config.json` and, last of all files of a new run, `lineage.json`.

    Args:
      workdir: the run's folder.
      config: its config.
      origins: per tower (`vit`, `resampler`, `decoder`) the `origin_of` the checkpoint that it starts from, or None for
        fresh initialisation. A tower that is not in it is not in the run.
      vocabulary: sha256 of the vocabulary's file.
      data: digest of everything that its batches depend on (`data.fingerprint`).
      tensors: what became of every tensor (`handoff.to_json`).
    """
    artifacts.write_json(storage.path(workdir) / CONFIG, to_dict(config))
    lineage: dict[str, Any] = {"stage": config.train.stage, "config": config_hash(config), "model": config.model.name}
    lineage[_CODE] = versions() | ({"commit": commit()} if commit() else {})
    noted = {VOCABULARY: vocabulary, _DATA: data, _TENSORS: tensors}
    lineage |= {key: value for key, value in noted.items() if value is not None}
    if file_checksums.has_any(storage.path(workdir) / layout.FROZEN):
        lineage[_CHECKSUMS] = True
    if config.lora.rank:
        lineage[_LORA] = {"rank": config.lora.rank, "alpha": config.lora.alpha, "targets": list(config.lora.adapted)}
    components = {}
    for name in COMPONENTS:
        tower = "vit" if name == "vit_head" else name
        if tower not in origins:
            continue
        components[name] = {
            "trained": name in config.train.trainable,
            "from": origins[tower] or {"stage": "fresh", "seed": config.train.seed},
        }
    artifacts.write_json(storage.path(workdir) / LINEAGE, {**lineage, "components": components})


def origin_of(workdir: epath.PathLike, step: int, tower: str) -> dict[str, Any]:
    """What a later run notes of the checkpoint it starts from, with that checkpoint's own history."""
    lineage = read_lineage(workdir)
    return {
        "path": str(workdir),
        "step": step,
        "stage": lineage["stage"],
        "config": lineage["config"],
        **{key: lineage[key] for key in (_DATA, _CODE, _LORA) if key in lineage},
        **lineage["components"][tower],
    }
