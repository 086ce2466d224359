"""Import of releases and published checkpoints. All names and shapes are checked before any tensor is read.

params, config = open_release("Qwen-VL")                # reads no tensor yet
import_release("Qwen-VL", "runs/qwen_vl")               # writes a checkpoint, one array at a time
import_towers(config, "runs/start", vision="open_clip_pytorch_model.bin", decoder="Qwen-7B")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from qwenvl_jax import config as config_lib
from qwenvl_jax.checkpoint import imported, layout
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.config import Config, TokenizerConfig
from qwenvl_jax.conversion import mapping, peft_adapters, released_config
from qwenvl_jax.conversion.manifest import MANIFEST, TRAINING_CONFIG, read_manifest, release_scope
from qwenvl_jax.conversion.stored_tensors import (
    check_tensors,
    deferred_leaves,
    identity,
    open_checkpoint,
    refuse_other_kinds,
)
from qwenvl_jax.conversion.to_torch import VOCABULARY_FILES
from qwenvl_jax.data.tokenizer import load_tokenizer, packaged_qwen_vocabulary
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import flatten_paths, unflatten_paths
from qwenvl_jax.runtime import artifacts, log, storage
from qwenvl_jax.runtime.errors import UserError


def open_release(folder: epath.PathLike) -> tuple[dict[str, Any], Config]:
    """Opens a release of ours, or the published Qwen-VL or Qwen-VL-Chat, without reading its tensors.

    Args:
      folder: contains safetensors or `.bin` shards with their index, and config.json.

    Returns:
      The nested tree of `Deferred` leaves in their stored dtype, and the training config. The config of a published
      release states only model, vocabulary, image size and chat format. The vocabulary path points into `folder` if the
      vocabulary is there.

    Raises:
      UserError: if a file or tensor is missing, unknown, misshapen or truncated; the message names it.
    """
    folder = storage.path(folder)
    config = read_config(folder)
    stored = open_checkpoint(folder)
    rules = mapping.RELEASE_SCOPES[release_scope(folder)].rules
    check_tensors(folder, stored, mapping.released_tensors(config.model, rules))
    return unflatten_paths(deferred_leaves(mapping.shapes_of(config.model), stored, rules)), config


def import_release(folder: epath.PathLike, workdir: epath.PathLike, *, adapters: epath.PathLike = "") -> None:
    """Writes a release as a checkpoint of stage "import", with every array in its stored dtype.

    With `adapters`, a folder of PEFT, these are merged into the weights; those that change are stored in float32.

    The vocabulary and the config of the release are copied into `workdir`, so that the checkpoint can be used by `chat`
    and released again.

    Raises:
      UserError: if the release is damaged or `workdir` already contains a run.
    """
    params, config = open_release(folder)
    load_tokenizer(config.tokenizer)  # raises for a damaged vocabulary, before anything is written
    if adapters:
        opened = peft_adapters.open_adapters(adapters, config.model)
        if sentence := peft_adapters.differing_base(opened, folder):
            log.line(log.printable(sentence))
        params = peft_adapters.merged(params, opened)
    workdir = storage.path(workdir)
    vocabulary = workdir / VOCABULARY_FILES[config.tokenizer.kind]
    released_vocabulary = config.tokenizer.path
    payload = storage.read_bytes(
        storage.path(released_vocabulary) if released_vocabulary else packaged_qwen_vocabulary()
    )
    source = _identity(folder)
    if adapters:
        source |= {"adapters": identity(storage.path(adapters) / peft_adapters.TENSORS)}
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))
    imported.check_empty(workdir)
    with artifacts.undone_on_failure(workdir):
        storage.write_bytes(vocabulary, payload)
        artifacts.write_json(workdir / layout.IMPORTED_CONFIG, config_lib.to_dict(config))
        imported.save_params(workdir, params, config, source=source)


def import_towers(
    config: Config, workdir: epath.PathLike, *, vision: epath.PathLike = "", decoder: epath.PathLike = ""
) -> list[str]:
    """Writes a vision tower, a language model, or both as a checkpoint from which stage 1 can start.

    Args:
      config: of the run that will start from the checkpoint; the tensors must be those of its model.
      workdir: a folder that does not contain a run.
      vision: the file or folder of an OpenCLIP checkpoint, with or without its text tower, or a vision release of ours.
        The parts that OpenCLIP lacks (resampler, `ln_post`, `proj`) are initialised with the seed of `config`.
      decoder: the folder of Qwen-7B, or a decoder release of ours.

    Returns:
      The top-level keys of the checkpoint's parameters.

    Raises:
      UserError: if a tensor is missing, unknown, misshapen or damaged, or `workdir` already contains a run.
    """
    for path in filter(None, (vision, decoder)):
        refuse_unfinished(path)
    leaves: dict[str, Deferred] = {}
    source: dict[str, dict[str, Any]] = {}
    if vision:
        stored = open_checkpoint(vision)
        ours = any(name.startswith(mapping.RELEASED_VISION) for name in stored)
        rules = mapping.VISION_RULES if ours else mapping.OPENCLIP_RULES
        left_out = None if ours else mapping.OPENCLIP_LEFT_OUT
        check_tensors(vision, stored, mapping.released_tensors(config.model, rules), left_out)
        leaves |= deferred_leaves(mapping.shapes_of(config.model), stored, rules)
        vision_source = _identity(vision)
        source["vit"] = vision_source
        source["resampler"] = vision_source
        if not ours:
            leaves |= _fresh(config, leaves)
            source["vit"] = vision_source | {"fresh": ["ln_post", "proj"], "seed": config.train.seed}
            source["resampler"] = {"stage": "fresh", "seed": config.train.seed}
    if decoder:
        stored = open_checkpoint(decoder)
        check_tensors(decoder, stored, mapping.released_tensors(config.model, mapping.DECODER_RULES))
        leaves |= deferred_leaves(mapping.shapes_of(config.model), stored, mapping.DECODER_RULES)
        source["decoder"] = _identity(decoder)
    imported.save_params(workdir, unflatten_paths(leaves), config, source=source)
    return sorted({path.split("/")[0] for path in leaves})


def refuse_unfinished(path: epath.PathLike) -> None:
    """Raises UserError if a checkpoint is an unfinished release of ours."""
    if storage.is_folder(storage.path(path)):
        read_manifest(path)


def _is_our_release(path: epath.PathLike) -> bool:
    """Whether a checkpoint is a release of ours. Raises UserError if it is an unfinished one."""
    return storage.is_folder(storage.path(path)) and read_manifest(path) is not None


def _identity(path: epath.PathLike) -> dict[str, Any]:
    """The entry of lineage.json for a checkpoint."""
    return identity(path, MANIFEST if _is_our_release(path) else "")


def _fresh(config: Config, loaded: Mapping[str, Deferred]) -> dict[str, Deferred]:
    """The leaves of the vision side that are not in `loaded`, initialised in float32."""

    def initialise(key: jax.Array) -> dict[str, jax.Array]:
        params = flatten_paths(qwen_vl.init_params(config.model, key))
        return {path: leaf for path, leaf in params.items() if _is_vision(path) and path not in loaded}

    fresh = jax.jit(initialise)(jax.random.key(config.train.seed))  # XLA drops the leaves that are not returned
    return {
        path: Deferred(leaf.shape, np.dtype(leaf.dtype), functools.partial(np.asarray, leaf))
        for path, leaf in fresh.items()
    }


def _is_vision(path: str) -> bool:
    return path.startswith(("vit/", "resampler/"))


def original_config(workdir: epath.PathLike) -> Config | None:
    """The training config of the release that a checkpoint was imported from; None if it was not imported."""
    path = storage.path(workdir) / layout.IMPORTED_CONFIG
    return config_lib.from_config_dict(Config, artifacts.read_json(path), str(path)) if storage.exists(path) else None


def read_config(folder: epath.Path) -> Config:
    """The training config of a release.

    Raises:
      UserError: if a file is missing, or training_config.json and config.json disagree about the model.
    """
    ours = read_manifest(folder) is not None
    refuse_other_kinds(folder)
    content = artifacts.read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise UserError(f"{folder / 'config.json'} is not the config of a Qwen-VL release; copy it again")
    if not ours:
        model = released_config.model_from_released(content, str(folder / "config.json"))
        return _published_config(folder, model, content["visual"].get("image_size"))
    training = artifacts.read_json(folder / TRAINING_CONFIG)
    config = config_lib.from_config_dict(Config, training, f"{folder / TRAINING_CONFIG}")
    if release_scope(folder) == "decoder":  # its config.json has no `visual`
        vision = released_config.released_config(config.model, image_size=1, image_start_id=0, dtype="")["visual"]
        content = content | {"visual": vision}
    model = released_config.model_from_released(content, str(folder / "config.json"))
    if config.model.architecture() != model.architecture():
        raise UserError(
            f"{folder}/config.json and {TRAINING_CONFIG} describe two different models; copy the release again"
        )
    if config.tokenizer.kind not in VOCABULARY_FILES:
        raise UserError(f"{folder / TRAINING_CONFIG} names the vocabulary {config.tokenizer.kind!r}; copy it again")
    vocabulary = folder / VOCABULARY_FILES[config.tokenizer.kind]
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))


def _published_config(folder: epath.Path, model: config_lib.ModelConfig, image_size: Any) -> Config:
    """The config of a release that has no training_config.json of ours."""
    if not isinstance(image_size, int):
        raise UserError(f"{folder / 'config.json'} lacks visual.image_size; it is not the config of a Qwen-VL release")
    path = folder / "generation_config.json"
    generation = artifacts.read_json(path) if storage.exists(path) else {}
    chat = isinstance(generation, dict) and generation.get("chat_format") == "chatml"
    vocabulary = folder / VOCABULARY_FILES["qwen"]
    return released_config.untrained_config(
        dataclasses.replace(model, name=folder.name),
        TokenizerConfig("qwen", str(vocabulary) if storage.exists(vocabulary) else ""),
        image_size=image_size,
        stage="sft" if chat else "multitask",
    )
