"""The batch of an anomaly as files, `anomalies/step_N/` in the folder of a run.

Every process writes its part: `part_K.npz`, the arrays of its streams, and `part_K.json`, the samples in them. Process
0 writes `anomaly.json` last; a folder without it is not complete.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.checkpoint.layout import ANOMALIES
from qwenvl_jax.config import Config
from qwenvl_jax.data.decoded_batches import ReturnedBatch
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.runtime import artifacts, distributed, storage
from qwenvl_jax.runtime.errors import UserError, one_line

_FACTS = "anomaly.json"
# By stream: what the process that built it says about its part, its arrays, and the place of the stream in them.
_Parts = dict[int, tuple[dict[str, Any], dict[str, np.ndarray], int]]


def folder_of(workdir: epath.PathLike, step: int) -> epath.Path:
    """Where the batch of a step is, whether it was written or not."""
    return storage.path(workdir) / ANOMALIES / f"step_{step}"


def command(workdir: epath.PathLike, step: int) -> str:
    """The command that replays a step."""
    return f"python -m qwenvl_jax.replay --workdir={workdir} --step={step}"


def write(
    workdir: epath.Path, facts: Mapping[str, Any], batch: ReturnedBatch, streams: Sequence[int], config: Config
) -> epath.Path:
    """Writes the part of this process, and the facts if it is process 0; returns the folder.

    Raises:
      OSError, StorageError: if that fails.
    """
    folder = folder_of(workdir, facts["step"])
    index = distributed.process_index()
    with storage.local_output(folder / f"part_{index}.npz") as file, file.open("wb") as opened:
        np.savez(opened, **batch.batch._asdict())
    names = [source.name for source in config.data.mixture]
    samples = [
        {
            "stream": packed.stream,
            "microbatch": packed.microbatch,
            "row": packed.row,
            "tokens": [packed.tokens.start, packed.tokens.stop],
            "source": names[packed.example.source],
            "id": packed.example.record_id,
            "fragment": packed.example.fragment,
            "error": packed.example.error or packed.error.result(),
        }
        for packed in batch.packed
    ]
    artifacts.write_json(folder / f"part_{index}.json", {"streams": list(streams), "samples": samples})
    if distributed.is_primary():
        artifacts.write_json(folder / _FACTS, _strict(facts))
    return folder


def _strict(value: Any) -> Any:
    """The same value with texts instead of numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def read(workdir: epath.PathLike, step: int, config: Config) -> tuple[dict[str, Any], Batch, list[dict[str, Any]]]:
    """The facts, the whole batch, and its samples with the rows of the whole batch.

    Raises:
      UserError: if the step was not written, or not by all processes, or if its files are damaged.
    """
    folder = folder_of(workdir, step)
    if not storage.exists(folder / _FACTS):
        steps = ", ".join(map(str, _written(folder.parent))) or "none"
        raise UserError(f"{folder} holds no batch of an anomaly; steps that were written: {steps}")
    facts = artifacts.read_json(folder / _FACTS)
    try:
        parts = _parts(folder, int(facts["processes"]))
        numbers(facts)
        facts = {**facts, "reason": str(facts["reason"]), "updates": int(facts["updates"])}
        return facts, _joined(parts, config), _samples(parts, config)
    except (LookupError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"the files in {folder} are damaged ({one_line(error)}); replay another step") from None


def _written(folder: epath.Path) -> list[int]:
    """The steps of which a folder has a batch."""
    names = storage.names(folder) if storage.exists(folder) else []
    numbers = [name.removeprefix("step_") for name in names if name.startswith("step_")]
    return sorted(int(number) for number in numbers if number.isdecimal())


def _parts(folder: epath.Path, processes: int) -> _Parts:
    """What every process has written, by stream; several may have built the same one. Raises UserError."""
    parts: _Parts = {}
    for index in range(processes):
        if not storage.exists(folder / f"part_{index}.json"):
            raise UserError(
                f"{folder} lacks the part of process {index}, which ended before it was written; replay another step"
            )
        described = artifacts.read_json(folder / f"part_{index}.json")
        with storage.open_read(folder / f"part_{index}.npz") as file, np.load(file) as opened:
            arrays = {name: opened[name] for name in Batch._fields}
        for position, stream in enumerate(described["streams"]):
            parts.setdefault(stream, (described, arrays, position))
    return parts


def _joined(parts: _Parts, config: Config) -> Batch:
    """The rows and images of all streams, one after the other."""
    fields = {}
    for name in Batch._fields:
        of_streams = []
        for stream in range(config.data.streams):
            described, arrays, position = parts[stream]
            many = arrays[name].shape[1] // len(described["streams"])
            of_streams.append(arrays[name][:, position * many : (position + 1) * many])
        fields[name] = np.concatenate(of_streams, axis=1)
    return Batch(**fields)


def _samples(parts: _Parts, config: Config) -> list[dict[str, Any]]:
    rows = config.data.rows_per_microbatch // config.data.streams
    samples = []
    for stream in range(config.data.streams):
        described, _, position = parts[stream]
        for sample in described["samples"]:
            if sample["stream"] == stream:
                samples.append(sample | {"row": sample["row"] + (stream - position) * rows})
    return samples


def numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """The recorded loss and gradient norm, with the numbers that JSON lacks."""
    return {name: float(facts["metrics"][name]) for name in ("loss", "grad_norm")}
