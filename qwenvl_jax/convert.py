"""Checkpoints to and from PyTorch.

    python -m qwenvl_jax.convert import  --release=DIR --workdir=RUN
    python -m qwenvl_jax.convert import  --config=configs/stage1_pretrain.py --vision=OPENCLIP --decoder=QWEN_7B --workdir=RUN
    python -m qwenvl_jax.convert release --workdir=RUN --output=DIR [--dtype=bfloat16] [--format=bin] [--component=decoder]
    python -m qwenvl_jax.convert verify  --release=DIR [--workdir=RUN] [--compare_in=bfloat16]

`import` makes a checkpoint that training, evaluation and chat can start from: out of a release of ours or the published
Qwen-VL or Qwen-VL-Chat, or out of OpenCLIP ViT-bigG and Qwen-7B (either of them alone as well). `release` writes a
directory with the released tensor names and, where the machine holds it, proves it (parity.json). `verify` proves a
directory again, against a checkpoint or against its own tensors.
"""  # noqa: E501  commands on one line each, to be copied

from __future__ import annotations

import sys
from typing import Any

from absl import flags, logging
from etils import epath

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config, from_config_dict
from qwenvl_jax.conversion import from_torch, mapping, parity, to_torch
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime import commandline, distributed
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error, nearest

_CONFIG = commandline.define_config("import of towers: the stage that will start from them.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the training run; import: the folder to write.")
_STEP = flags.DEFINE_integer("step", -1, "Step of its checkpoint; -1 means the last.")
_OUTPUT = flags.DEFINE_string("output", "", "release: the directory to write.")
_RELEASE = flags.DEFINE_string("release", "", "import, verify: the directory to read.")
_VISION = flags.DEFINE_string("vision", "", "import: an OpenCLIP ViT-bigG checkpoint, or a vision release of ours.")
_DECODER = flags.DEFINE_string("decoder", "", "import: the folder of Qwen-7B, or a decoder release of ours.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16"], "release: dtype of the stored tensors; default that of the checkpoint."
)
_FORMAT = flags.DEFINE_enum("format", "safetensors", to_torch.FORMATS, "release: of the shards.")
_COMPONENT = flags.DEFINE_enum("component", "all", list(mapping.COMPONENTS), "release: what of the model.")
_PARITY = flags.DEFINE_bool("parity", True, "release: compare with PyTorch afterwards, if memory holds both.")
_COMPARE_IN = flags.DEFINE_enum("compare_in", "float32", ["float32", "bfloat16"], "verify: dtype of both sides.")

COMMANDS = ("release", "import", "verify")


def _required(value: str, flag: str, command: str) -> str:
    if not value:
        raise UserError(f"`convert {command}` needs --{flag}; name it")
    return value


def _open_checkpoint() -> tuple[dict[str, Any], Config]:
    params, config = restore.deferred_params(_WORKDIR.value, step=None if _STEP.value < 0 else _STEP.value)
    return params, from_torch.original_config(_WORKDIR.value) or config


def release() -> None:
    """Writes the release and, unless told otherwise, its parity; exits with 1 where the two disagree."""
    workdir, output = _required(_WORKDIR.value, "workdir", "release"), _required(_OUTPUT.value, "output", "release")
    params, config = _open_checkpoint()
    folder = to_torch.release(
        params, config, output, dtype=_DTYPE.value, file_format=_FORMAT.value, component=_COMPONENT.value
    )
    size = sum(path.stat().length for path in folder.iterdir())
    print(f"released {workdir} to {folder}: {size / 1e6:.1f} MB", flush=True)
    if _PARITY.value and not parity.fits(config):
        print(f"parity: this machine cannot hold the model twice; run `convert verify --release={folder}` on a larger")
    elif _PARITY.value:
        _verify(params, config, folder)


def import_checkpoint() -> None:
    """Writes the tensors of a release, or of separate towers, as a checkpoint of stage "import"."""
    workdir = _required(_WORKDIR.value, "workdir", "import")
    towers = [path for path in (_VISION.value, _DECODER.value) if path]
    if bool(_RELEASE.value) == bool(towers):
        raise UserError("`convert import` needs either --release, or --vision and --decoder or one of them")
    if not towers:
        from_torch.import_release(_RELEASE.value, workdir)
        print(f"imported {_RELEASE.value} into {workdir}")
        return
    if _CONFIG.value is None:
        raise UserError("`convert import` of towers needs --config; name the stage that will start from them")
    config = from_config_dict(Config, dict(_CONFIG.value.items()))
    names = from_torch.import_towers(config, workdir, vision=_VISION.value, decoder=_DECODER.value)
    print(f"imported {' and '.join(towers)} into {workdir}, which now has {', '.join(names)}")


def verify() -> None:
    """Compares a release with a checkpoint, or, without one, with the tensors of the release itself."""
    folder = epath.Path(_required(_RELEASE.value, "release", "verify"))
    params, config = from_torch.open_release(folder)
    if _WORKDIR.value:
        params, checkpoint = _open_checkpoint()
        if checkpoint.model != config.model:
            raise UserError(
                f"{_WORKDIR.value} and {folder} are two different models; name the run it was released from"
            )
    _verify(params, config, folder)


def _verify(params: dict[str, Any], config: Config, folder: epath.Path) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    prompts = parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)
    report = parity.verify(params, config, folder, tokenizer, prompts, compare_in=_COMPARE_IN.value)
    print(
        f"parity in {report['compared_in']} over {report['prompts']} prompts: image embeddings "
        f"{report['image_embedding_relative_error']:.1e}, logits {report['logits_relative_error']:.1e} relative, "
        f"top-1 {100 * report['top1_agreement']:.1f} %, greedy text "
        f"{'equal' if report['greedy_equal'] else 'DIFFERENT'}: {'passed' if report['passed'] else 'FAILED'}"
    )
    if not report["passed"]:
        print(f"error: {folder} does not agree with its checkpoint; see {folder / parity.PARITY}", file=sys.stderr)
        sys.exit(1)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    logging.set_verbosity(logging.FATAL)  # the checkpoint library reports every file, and tracebacks of its threads
    with exit_on_user_error():
        command = argv[1] if len(argv) == 2 else ""
        if command not in COMMANDS:
            given = " ".join(argv[1:]) or "nothing"
            raise UserError(
                f"say one of {', '.join(COMMANDS)} after `convert`, not {given}{nearest(command, COMMANDS)}"
            )
        distributed.alone(f"`convert {command}`")
        {"release": release, "import": import_checkpoint, "verify": verify}[command]()


if __name__ == "__main__":
    commandline.run(main, needs_config=False)
