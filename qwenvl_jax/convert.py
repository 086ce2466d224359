"""Converts checkpoints to and from PyTorch.

    python -m qwenvl_jax.convert import  --release=DIR --workdir=RUN [--adapters=DIR]
    python -m qwenvl_jax.convert import  --config=configs/stage1_pretrain.py --vision=OPENCLIP --decoder=QWEN_7B --workdir=RUN
    python -m qwenvl_jax.convert release --workdir=RUN --output=DIR [--dtype=bfloat16] [--format=bin] [--component=decoder]
    python -m qwenvl_jax.convert adapters --workdir=RUN --output=DIR [--release=BASE]
    python -m qwenvl_jax.convert verify  --release=DIR [--workdir=RUN] [--compare_in=bfloat16] [--trust_release_code]

`import` writes a checkpoint from which training, evaluation and chat can start. Its source is a release of ours, the
published Qwen-VL or Qwen-VL-Chat, with or without adapters of PEFT, or OpenCLIP ViT-bigG and Qwen-7B (or one of these
two). `adapters` writes the low-rank adapters of a run as a folder for PEFT. `release` writes a directory
with the released tensor names and, if memory suffices, compares it with the checkpoint in PyTorch (parity.json).
`verify` repeats the comparison, also for a published model, with a checkpoint or with the tensors of the release itself.
All paths may be gs://.
"""  # noqa: E501  commands on one line each, to be copied

from __future__ import annotations

import sys
from typing import Any

from absl import flags, logging
from etils import epath

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.checkpoint.starting_point import find_starting_point
from qwenvl_jax.config import FORMER_KEYS, Config, load_config
from qwenvl_jax.conversion import from_torch, manifest, mapping, parity, peft_adapters, to_torch
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime import commandline, distributed, exit_codes, storage
from qwenvl_jax.runtime.errors import UserError, nearest

_CONFIG = commandline.define_config("import of towers: the stage that will start from them.", FORMER_KEYS)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the training run; import: the folder to write.")
_STEP = flags.DEFINE_integer("step", -1, "Step of its checkpoint; -1 is the newest.", lower_bound=-1)
_OUTPUT = flags.DEFINE_string("output", "", "release, adapters: the directory to write.")
_RELEASE = flags.DEFINE_string("release", "", "import, verify: the directory to read; adapters: their base.")
_VISION = flags.DEFINE_string("vision", "", "import: an OpenCLIP ViT-bigG checkpoint, or a vision release of ours.")
_DECODER = flags.DEFINE_string("decoder", "", "import: the folder of Qwen-7B, or a decoder release of ours.")
_ADAPTERS = flags.DEFINE_string("adapters", "", "import: a folder of adapters of PEFT to merge into the release.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "", ["", "float32", "bfloat16"], "release: dtype of the stored tensors; default that of the checkpoint."
)
_FORMAT = flags.DEFINE_enum("format", "safetensors", to_torch.FORMATS, "release: format of the shards.")
_SCOPE = flags.DEFINE_enum("component", "all", list(mapping.RELEASE_SCOPES), "release: the part of the model to write.")
_PARITY = flags.DEFINE_bool("parity", True, "release: compare with PyTorch afterwards, if memory suffices.")
_COMPARE_IN = flags.DEFINE_enum("compare_in", "float32", ["float32", "bfloat16"], "verify: dtype of both sides.")
_TRUST = flags.DEFINE_bool(
    "trust_release_code", False, "verify: run the code in the release instead of our own copy of it."
)


def _required(value: str, flag: str, command: str) -> epath.Path:
    if not value:
        raise UserError(f"`convert {command}` needs --{flag}; name it")
    return storage.path(value)


def _open_checkpoint(workdir: epath.Path) -> tuple[dict[str, Any], Config]:
    starting_point = find_starting_point(workdir, _STEP.value)
    params, config = restore.deferred_params(workdir, step=starting_point.step)
    original = from_torch.original_config(workdir)
    if original is None and starting_point.step < config.train.steps:
        print(
            f"{workdir} is at step {starting_point.step:,} of {config.train.steps:,}: its stage is not finished",
            flush=True,
        )
    return params, original or config


def release() -> None:
    """Writes the release and compares it with PyTorch; exits with 1 if the two disagree."""
    workdir = _required(_WORKDIR.value, "workdir", "release")
    output = _required(_OUTPUT.value, "output", "release")
    params, config = _open_checkpoint(workdir)
    folder = to_torch.release(params, config, output, dtype=_DTYPE.value, file_format=_FORMAT.value, scope=_SCOPE.value)
    size = sum(size or 0 for size in storage.sizes(folder).values())
    print(f"released {workdir} to {folder}: {size / 1e6:.1f} MB", flush=True)
    if _PARITY.value and not parity.fits(config):
        print(
            "parity: the memory of this machine cannot hold the model twice; run `convert verify "
            f"--release={folder}` on a larger machine"
        )
    elif _PARITY.value:
        _verify(params, config, folder)


def import_checkpoint() -> None:
    """Writes the tensors of a release, or of separate towers, as a checkpoint of stage "import"."""
    workdir = _required(_WORKDIR.value, "workdir", "import")
    vision = storage.path(_VISION.value) if _VISION.value else ""
    decoder = storage.path(_DECODER.value) if _DECODER.value else ""
    towers = [str(path) for path in (vision, decoder) if path]
    if bool(_RELEASE.value) == bool(towers):
        raise UserError("`convert import` needs either --release, or at least one of --vision and --decoder")
    if towers and _ADAPTERS.value:
        raise UserError("--adapters belong to a whole model; name it with --release instead of --vision and --decoder")
    if not towers:
        folder = storage.path(_RELEASE.value)
        from_torch.import_release(folder, workdir, adapters=_ADAPTERS.value)
        merged = f" with the adapters {_ADAPTERS.value}" if _ADAPTERS.value else ""
        print(f"imported {folder}{merged} into {workdir}")
        return
    if _CONFIG.value is None:
        raise UserError("`convert import` of towers needs --config; name the stage that will start from them")
    config = load_config(_CONFIG.value)
    names = from_torch.import_towers(config, workdir, vision=vision, decoder=decoder)
    print(f"imported {' and '.join(towers)} into {workdir}, which now has {', '.join(names)}")


def export_adapters() -> None:
    """Writes the adapters of a run for PEFT."""
    workdir = _required(_WORKDIR.value, "workdir", "adapters")
    output = _required(_OUTPUT.value, "output", "adapters")
    start = find_starting_point(workdir, _STEP.value)
    folder = peft_adapters.export(start, output, _RELEASE.value)
    size = sum(size or 0 for size in storage.sizes(folder).values())
    print(f"wrote the adapters of step {start.step} of {workdir} to {folder}: {size / 1e6:.1f} MB", flush=True)


def verify() -> None:
    """Compares a release with a checkpoint or, without `--workdir`, with the tensors of the release itself."""
    folder = _required(_RELEASE.value, "release", "verify")
    listed = manifest.read_manifest(folder)
    if listed:
        manifest.check_files(folder, listed)  # before any of the files is interpreted
    else:
        print(f"{folder} has no manifest, so its bytes cannot be checked: it is not a release of qwenvl_jax")
    params, config = from_torch.open_release(folder)
    if _WORKDIR.value:
        workdir = storage.path(_WORKDIR.value)
        params, checkpoint = _open_checkpoint(workdir)
        if checkpoint.model.architecture() != config.model.architecture():
            raise UserError(f"{workdir} and {folder} are different models; name the run that was released")
    _verify(params, config, folder)


def _verify(params: dict[str, Any], config: Config, folder: epath.Path) -> None:
    tokenizer = load_tokenizer(config.tokenizer)
    prompts = parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)
    options: dict[str, Any] = {"compare_in": _COMPARE_IN.value, "trust_release_code": _TRUST.value}
    report = parity.verify(params, config, folder, tokenizer, prompts, **options)
    print(
        f"parity in {report['compared_in']} over {report['prompts']} prompts: image embeddings "
        f"{report['image_embedding_relative_error']:.1e}, logits {report['logits_relative_error']:.1e} relative, "
        f"top-1 {100 * report['top1_agreement']:.1f} %, greedy text "
        f"{'equal' if report['greedy_equal'] else 'DIFFERENT'}: {'passed' if report['passed'] else 'FAILED'}"
    )
    if not report["passed"]:
        print(f"error: {folder} does not agree with its checkpoint; see {folder / manifest.PARITY}", file=sys.stderr)
        sys.exit(exit_codes.ERROR)


COMMANDS = {"release": release, "import": import_checkpoint, "adapters": export_adapters, "verify": verify}


def main(command: str = "") -> None:
    """Runs one of the commands."""
    if command not in COMMANDS:
        given = command or "nothing"
        raise UserError(f"say one of {', '.join(COMMANDS)} after `convert`, not {given}{nearest(command, COMMANDS)}")
    distributed.require_alone(f"`convert {command}`")
    COMMANDS[command]()


if __name__ == "__main__":
    # Orbax logs every file, and the tracebacks of its threads.
    commandline.run(main, positional=1, needs_config=False, verbosity=logging.FATAL)
