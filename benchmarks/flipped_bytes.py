"""Changes single bytes of checkpoints and counts how many of the changes are found when the checkpoint is read.

    python -m benchmarks.flipped_bytes [--flips=1000] [--seed=0]

A run of a small model has trained and frozen weights, moments and progress; another folder has imported weights. Every
flip changes one random byte of one file: in half of the cases every file of its kind is as likely, in the other half
every byte. Then the checkpoint is read by one of its readers. A change is found if the reader refuses the checkpoint;
the message must name the file, and for a file of arrays the tensor too. Before and after all flips every reader must
accept the checkpoints. Prints a table, and fails if any change was missed.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.checkpoint.failures import DamagedError, quiet
from qwenvl_jax.checkpoint.imported import save_params
from qwenvl_jax.checkpoint.manager import Checkpoints, check_state, restore_params, restore_state, save_frozen
from qwenvl_jax.checkpoint.restore import deferred_params, frozen_of, load_params
from qwenvl_jax.config import TOWERS
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import PyTree, split
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.optimizer import make_optimizer
from tests.support import tiny_run

STEP = 3
Reader = Callable[[], object]


def shapes(tree: PyTree, dtype: str = "") -> PyTree:
    """Shapes of a tree, in its dtypes or in another one."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), tree)


def write(folder: Path) -> dict[str, tuple[Path, list[Reader]]]:
    """Writes the checkpoints; returns, by kind of file, the folder of the checkpoint and its readers."""
    config = tiny_run.make_config(train__trainable=("vit", "resampler"), train__steps=STEP, optimizer__warmup_steps=1)
    params = qwen_vl.init_params(config.model, jax.random.key(7))
    trainable, frozen = split(params, config.train.trainable)
    opt_state = make_optimizer(config.optimizer, STEP, config.model.vit.layers).init(trainable)
    run = folder / "run"
    save_frozen(run, frozen)
    lineage.write(run, config, dict.fromkeys(TOWERS))
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(STEP, trainable, opt_state, {"loader": list(range(100))})
    late = jax.tree.map(lambda leaf: Deferred(leaf.shape, np.dtype(leaf.dtype), lambda: np.asarray(leaf)), params)
    save_params(folder / "import", late, config)

    def train() -> None:
        check_state(*restore_state(run, STEP, trainable, opt_state))

    step = run / "checkpoints" / str(STEP)
    converted = shapes(trainable, "bfloat16")
    chat = [lambda: load_params(run), lambda: deferred_params(run)]
    return {
        "params": (step, [train, *chat, lambda: restore_params(run, STEP, converted)]),
        "optimizer": (step, [train]),
        "progress": (step, [train]),
        "the step itself": (step, [train]),
        "frozen": (run / "frozen", [lambda: frozen_of(run, shapes(frozen)), *chat]),
        "imported": (
            folder / "import/frozen",
            [lambda: load_params(folder / "import"), lambda: deferred_params(folder / "import")],
        ),
    }


def files_of(kind: str, folder: Path) -> list[Path]:
    """The files of a checkpoint that belong to a kind."""
    if kind == "the step itself":
        return sorted(file for file in folder.iterdir() if file.is_file())
    below = folder / kind if (folder / kind).is_dir() else folder
    return sorted(file for file in below.rglob("*") if file.is_file())


def choose(files: list[Path], rng: np.random.Generator) -> tuple[Path, int]:
    """A file and the offset of a byte in it."""
    sizes = np.array([file.stat().st_size for file in files], float)
    file = files[rng.choice(len(files), p=sizes / sizes.sum() if rng.random() < 0.5 else None)]
    return file, int(rng.integers(file.stat().st_size))


def is_of_arrays(file: Path) -> bool:
    """Whether a file holds the bytes of arrays: a data file of OCDBT, or a chunk of a Zarr array."""
    return file.parent.name == "d" or file.name.replace(".", "").isdigit()


def flip(folder: Path, file: Path, offset: int, change: int, read: Reader) -> tuple[bool, bool, bool]:
    """Whether a changed byte is found, and whether the message names the file and a tensor."""
    payload = bytearray(file.read_bytes())
    whole = bytes(payload)
    payload[offset] ^= change
    file.write_bytes(bytes(payload))
    try:
        read()
    except (DamagedError, UserError) as error:
        return True, str(file.relative_to(folder)) in str(error), "weights or moments of" in str(error)
    finally:
        file.write_bytes(whole)
    return False, False, False


def main() -> None:
    """Flips bytes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000, help="How many bytes are changed, one after the other.")
    parser.add_argument("--seed", type=int, default=0, help="Of the choice of bytes.")
    options = parser.parse_args()
    quiet()
    rng = np.random.default_rng(options.seed)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as name:
        kinds = write(Path(name))
        for _, readers in kinds.values():
            for read in readers:
                read()
        for number in range(options.flips):
            kind = list(kinds)[number % len(kinds)]
            folder, readers = kinds[kind]
            file, offset = choose(files_of(kind, folder), rng)
            read = readers[int(rng.integers(len(readers)))]
            found, file_named, tensor_named = flip(folder, file, offset, int(rng.integers(1, 256)), read)
            arrays = is_of_arrays(file)
            counts[kind].update(flips=1, found=found, file=file_named, arrays=arrays, tensor=arrays and tensor_named)
            if number % 100 == 99:
                print(f"{number + 1} flips", file=sys.stderr, flush=True)
            if not found:
                print(f"missed: byte {offset} of {file.relative_to(name)}", flush=True)
        for _, readers in kinds.values():
            for read in readers:
                read()
    print("kind | flips | found | file named | in files of arrays | of these: tensor named")
    for kind, count in {**counts, "all": sum(counts.values(), collections.Counter())}.items():
        print(kind, *(count[key] for key in ("flips", "found", "file", "arrays", "tensor")), sep=" | ")
    if sum(count["found"] for count in counts.values()) != options.flips:
        raise SystemExit("some changes were not found")


if __name__ == "__main__":
    main()
