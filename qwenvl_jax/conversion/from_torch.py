"""Import: checkpoints of ours and of others into our parameter tree, every name and shape checked before any is read.

params, config = open_release("Qwen-VL")                # nothing is read yet
import_release("Qwen-VL", "runs/qwen_vl")               # one array at a time into a checkpoint
import_towers(config, "runs/start", vision="open_clip_pytorch_model.bin", decoder="Qwen-7B")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax import config as config_lib
from qwenvl_jax.checkpoint import restore
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.config import Config, TokenizerConfig
from qwenvl_jax.conversion import mapping, released_config, streaming, tensor_files
from qwenvl_jax.conversion.manifest import MANIFEST, TRAINING_CONFIG, read_manifest, release_component
from qwenvl_jax.conversion.stored_tensors import check_tensors, identity, open_checkpoint, refuse_other_kinds
from qwenvl_jax.conversion.tensor_files import Stored
from qwenvl_jax.conversion.to_torch import VOCABULARY_FILES
from qwenvl_jax.data.tokenizer import load_tokenizer, packaged_qwen_vocabulary
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.rules import param_shardings

IMPORTED_CONFIG = "imported_config.json"


def open_release(folder: epath.PathLike) -> tuple[dict[str, Any], Config]:
    """A release, ours or the published Qwen-VL or Qwen-VL-Chat, as a tree of arrays to be read.

    Args:
      folder: safetensors or `.bin` shards with their index, and config.json.

    Returns:
      The nested tree of `Deferred` leaves in their stored dtype, and the training config (for a foreign release one
      that states model, vocabulary, image size and kind of chat). The vocabulary's path points into `folder` if it
      is there.

    Raises:
      UserError: naming the file or the tensor that is missing, unknown, misshapen or cut short.
    """
    folder = storage.path(folder)
    config = read_config(folder)
    stored = open_checkpoint(folder)
    rules = mapping.COMPONENTS[release_component(folder)]
    check_tensors(folder, stored, mapping.released_tensors(config.model, rules))
    return mapping.unflatten(_leaves(config, stored, rules)), config


def load_release(folder: epath.PathLike, mesh: Mesh | None = None) -> tuple[dict[str, Any], Config]:
    """`open_release` with every leaf read: into sharded arrays of `mesh`, each host memory holding one at a time.

    Without a mesh the leaves are NumPy arrays.
    """
    params, config = open_release(folder)
    if mesh is None:
        return jax.tree.map(lambda leaf: leaf.load(), params), config
    return jax.tree.map(_sharded, params, param_shardings(params, mesh)), config


def _sharded(leaf: Deferred, sharding: jax.sharding.Sharding) -> jax.Array:
    array = leaf.load()
    return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index]))


def import_release(folder: epath.PathLike, workdir: epath.PathLike) -> None:
    """Makes a checkpoint of stage "import" in `workdir` out of a release, every array in the dtype it is stored in.

    The vocabulary and the config of the release stay beside it, so that it can be chatted with and released again.

    Raises:
      UserError: if the release is damaged or `workdir` already holds a run.
    """
    params, config = open_release(folder)
    load_tokenizer(config.tokenizer)  # one that does not load is found before anything is written
    workdir = storage.path(workdir)
    vocabulary = workdir / VOCABULARY_FILES[config.tokenizer.kind]
    named = config.tokenizer.path
    payload = storage.read_bytes(storage.path(named) if named else packaged_qwen_vocabulary())
    source = _identity(folder)
    config = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))
    restore.check_empty(workdir)
    with artifacts.undone_on_failure(workdir):
        storage.write_bytes(vocabulary, payload)
        artifacts.write_json(workdir / IMPORTED_CONFIG, config_lib.to_dict(config))
        restore.save_params(workdir, params, config, source=source)


def import_towers(
    config: Config, workdir: epath.PathLike, *, vision: epath.PathLike = "", decoder: epath.PathLike = ""
) -> list[str]:
    """Makes a checkpoint that stage 1 can start from out of a vision tower, a language model, or both.

    Args:
      config: of the run that will start from it; the tensors must be those of its model.
      workdir: a folder without a run.
      vision: an OpenCLIP checkpoint, a file or a folder, with or without its text tower; or a vision release of ours.
        What OpenCLIP does not have (resampler, `ln_post`, `proj`) is initialised by the seed of `config`.
      decoder: the folder of Qwen-7B, or a decoder release of ours.

    Returns:
      The top-level names that the checkpoint has.

    Raises:
      UserError: if a tensor is missing, unknown, misshapen or damaged, or `workdir` already holds a run.
    """
    for path in filter(None, (vision, decoder)):
        _check_finished(path)
    leaves: dict[str, Deferred] = {}
    source: dict[str, dict[str, Any]] = {}
    if vision:
        stored = open_checkpoint(vision)
        ours = any(name.startswith(mapping.RELEASED_VISION) for name in stored)
        rules = mapping.VISION_RULES if ours else mapping.OPENCLIP_RULES
        left_out = None if ours else mapping.OPENCLIP_LEFT_OUT
        check_tensors(vision, stored, mapping.released_tensors(config.model, rules), left_out)
        leaves |= _leaves(config, stored, rules)
        known = _identity(vision)
        source["vit"] = source["resampler"] = known
        if not ours:
            leaves |= _fresh(config, leaves)
            source["vit"] = known | {"fresh": ["ln_post", "proj"], "seed": config.train.seed}
            source["resampler"] = {"stage": "fresh", "seed": config.train.seed}
    if decoder:
        stored = open_checkpoint(decoder)
        check_tensors(decoder, stored, mapping.released_tensors(config.model, mapping.DECODER_RULES))
        leaves |= _leaves(config, stored, mapping.DECODER_RULES)
        source["decoder"] = _identity(decoder)
    restore.save_params(workdir, mapping.unflatten(leaves), config, source=source)
    return sorted({path.split("/")[0] for path in leaves})


def _check_finished(path: epath.PathLike) -> bool:
    """Whether a checkpoint is a release of ours; raises UserError for one without its end."""
    return storage.is_folder(storage.path(path)) and read_manifest(path) is not None


def _identity(path: epath.PathLike) -> dict[str, Any]:
    """What the lineage says of a checkpoint that has been opened."""
    return identity(path, MANIFEST if _check_finished(path) else "")


def _leaves(config: Config, stored: Mapping[str, Stored], rules: Sequence[mapping.Rule]) -> dict[str, Deferred]:
    """The leaves that `rules` make of stored tensors, by path."""
    shapes = mapping.shapes_of(config.model)
    leaves = {}
    for rule in rules:
        layers = shapes[rule.ours[0]][0] if rule.stacked else 1
        found = [stored[rule.released.replace(mapping.LAYER, str(layer))] for layer in range(layers)]
        dtypes = {tensor.dtype for tensor in found}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)  # holds what any of them does
        for part, path in enumerate(rule.ours):
            load = functools.partial(_load_leaf, rule, part, found, mapping.shapes_of_ours(rule, shapes), dtype)
            leaves[path] = Deferred(shapes[path], dtype, load)
    return leaves


def _load_leaf(
    rule: mapping.Rule, part: int, found: Sequence[Stored], shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> np.ndarray:
    """The `part`-th leaf of a rule: every layer read, brought into our layout and put into its place."""
    leaf = np.empty((len(found), *shapes[part]), dtype)

    def place(layer: int) -> None:
        tensor = tensor_files.read_tensor(found[layer]).astype(dtype, copy=False)
        streaming.copy_into(streaming.bits(leaf[layer]), rule.restore(streaming.bits(tensor), shapes)[part])

    for _ in streaming.in_order(place, range(len(found))):
        pass
    return leaf if rule.stacked else leaf[0]


def _fresh(config: Config, loaded: Mapping[str, Deferred]) -> dict[str, Deferred]:
    """The leaves of the vision side that are not in `loaded`, initialised in float32."""

    def initialise(key: jax.Array) -> dict[str, jax.Array]:
        params = mapping.flatten(qwen_vl.init_params(config.model, key))
        return {path: leaf for path, leaf in params.items() if _is_vision(path) and path not in loaded}

    fresh = jax.jit(initialise)(jax.random.key(config.train.seed))  # those that are left out are never computed
    return {
        path: Deferred(leaf.shape, np.dtype(leaf.dtype), functools.partial(np.asarray, leaf))
        for path, leaf in fresh.items()
    }


def _is_vision(path: str) -> bool:
    return path.startswith(("vit/", "resampler/"))


def original_config(workdir: epath.PathLike) -> Config | None:
    """The training config that an imported checkpoint was released with; None for a checkpoint trained here."""
    path = storage.path(workdir) / IMPORTED_CONFIG
    return config_lib.from_config_dict(Config, artifacts.read_json(path), str(path)) if storage.exists(path) else None


def read_config(folder: epath.Path) -> Config:
    """The training config of a release; its sizes must be those of config.json.

    Raises:
      UserError: if a file is missing or the two disagree.
    """
    ours = read_manifest(folder) is not None
    refuse_other_kinds(folder)
    content = artifacts.read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise UserError(f"{folder / 'config.json'} is not the config of a Qwen-VL release; copy it again")
    if not ours:
        model = released_config.model_from_released(content, str(folder / "config.json"))
        return _foreign_config(folder, model, content["visual"].get("image_size"))
    training = artifacts.read_json(folder / TRAINING_CONFIG)
    config = config_lib.from_config_dict(Config, training, f"{folder / TRAINING_CONFIG}")
    if release_component(folder) == "decoder":  # its config.json says nothing of the vision side
        vision = released_config.released_config(config.model, image_size=1, image_start_id=0, dtype="")["visual"]
        content = content | {"visual": vision}
    model = released_config.model_from_released(content, str(folder / "config.json"))
    if config.model != dataclasses.replace(model, name=config.model.name):
        raise UserError(
            f"{folder}/config.json and {TRAINING_CONFIG} describe two different models; copy the release again"
        )
    if config.tokenizer.kind not in VOCABULARY_FILES:
        raise UserError(f"{folder / TRAINING_CONFIG} names the vocabulary {config.tokenizer.kind!r}; copy it again")
    vocabulary = folder / VOCABULARY_FILES[config.tokenizer.kind]
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path=str(vocabulary)))


def _foreign_config(folder: epath.Path, model: config_lib.ModelConfig, image_size: Any) -> Config:
    """What a release says of itself that was not trained here."""
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
