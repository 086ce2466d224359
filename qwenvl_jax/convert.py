"""Checkpoints to and from PyTorch.

    python -m qwenvl_jax.convert release --workdir=RUN --output=DIR [--dtype=bfloat16] [--noparity]
    python -m qwenvl_jax.convert import --release=DIR --workdir=RUN
    python -m qwenvl_jax.convert verify --release=DIR [--workdir=RUN]

`release` writes a directory with the released tensor names and proves it (parity.json); `import` makes a checkpoint
that training can start from; `verify` proves a directory again, against a checkpoint or against its own tensors.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import app, flags, logging
from etils import epath

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import from_torch, parity, to_torch
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error, nearest

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the training run.")
_STEP = flags.DEFINE_integer("step", -1, "Step of its checkpoint; -1 means the last.")
_OUTPUT = flags.DEFINE_string("output", "", "release: the directory to write.")
_RELEASE = flags.DEFINE_string("release", "", "import, verify: the directory to read.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "release: dtype of the stored tensors.")
_PARITY = flags.DEFINE_bool("parity", True, "release: compare with PyTorch afterwards.")

COMMANDS = ("release", "import", "verify")


def _required(value: str, flag: str, command: str) -> str:
    if not value:
        raise UserError(f"`convert {command}` needs --{flag}; name it")
    return value


def _load_checkpoint() -> tuple[dict[str, Any], Config]:
    params, config, _ = restore.load_params(_WORKDIR.value, step=None if _STEP.value < 0 else _STEP.value)
    return params, from_torch.original_config(_WORKDIR.value) or config


def release() -> None:
    """Writes the release and, unless told otherwise, its parity; exits with 1 where the two disagree."""
    workdir, output = _required(_WORKDIR.value, "workdir", "release"), _required(_OUTPUT.value, "output", "release")
    params, config = _load_checkpoint()
    folder = to_torch.release(params, config, output, dtype=_DTYPE.value)
    size = sum(path.stat().length for path in folder.iterdir())
    print(f"released {workdir} to {folder}: {size / 1e6:.1f} MB, {_DTYPE.value}", flush=True)
    if _PARITY.value:
        _verify(params, config, folder)


def import_release() -> None:
    """Writes the tensors of a release as a checkpoint of stage "import"."""
    source, workdir = _required(_RELEASE.value, "release", "import"), _required(_WORKDIR.value, "workdir", "import")
    from_torch.import_release(source, workdir)
    print(f"imported {source} into {workdir}")


def verify() -> None:
    """Compares a release with a checkpoint, or, without one, with the tensors of the release itself."""
    folder = epath.Path(_required(_RELEASE.value, "release", "verify"))
    params, config = from_torch.load_release(folder)
    if _WORKDIR.value:
        params, checkpoint = _load_checkpoint()
        if checkpoint.model != config.model:
            raise UserError(
                f"{_WORKDIR.value} and {folder} are two different models; name the run it was released from"
            )
    _verify(params, config, folder)


def _verify(params: dict[str, Any], config: Config, folder: epath.Path) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    prompts = parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)
    report = parity.verify(params, config, folder, tokenizer, prompts)
    print(
        f"parity over {report['prompts']} prompts: image embeddings {report['image_embedding_relative_error']:.1e}, "
        f"logits {report['logits_relative_error']:.1e} relative (allowed {report['tolerance']:.0e}), greedy text "
        f"{'equal' if report['greedy_equal'] else 'DIFFERENT'}: {'passed' if report['passed'] else 'FAILED'}"
    )
    if not report["passed"]:
        print(f"error: {folder} does not agree with its checkpoint; see {folder / parity.PARITY}", file=sys.stderr)
        sys.exit(1)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    logging.set_verbosity(logging.ERROR)  # the checkpoint library reports every file
    with exit_on_user_error():
        command = argv[1] if len(argv) == 2 else ""
        if command not in COMMANDS:
            given = " ".join(argv[1:]) or "nothing"
            raise UserError(
                f"say one of {', '.join(COMMANDS)} after `convert`, not {given}{nearest(command, COMMANDS)}"
            )
        {"release": release, "import": import_release, "verify": verify}[command]()


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, ending with one sentence on a mistake."""
    with exit_on_user_error():
        return commandline.parse(argv)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
