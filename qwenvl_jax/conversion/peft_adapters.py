"""Low-rank adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`, in both directions.

PEFT names a tensor after the module of the released model that it belongs to: a factor of an adapter
`base_model.model.MODULE.lora_A.weight` [r, in] or `lora_B.weight` [out, r], a module that is trained whole
(`modules_to_save`) `base_model.model.MODULE.weight`. The modules are those of `mapping`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.checkpoint.deferred import Deferred, host_array
from qwenvl_jax.checkpoint.manager import params_folder, read_host_leaf, stored_leaves, verify_params
from qwenvl_jax.checkpoint.starting_point import IMPORT, StartingPoint, damage_reported
from qwenvl_jax.config import LORA_TARGETS, LoraConfig, ModelConfig, validate
from qwenvl_jax.config.values import LARGE
from qwenvl_jax.conversion import mapping, tensor_files
from qwenvl_jax.conversion.mapping import LAYER, Rule
from qwenvl_jax.conversion.tensor_files import Entry, Stored
from qwenvl_jax.models import lora
from qwenvl_jax.params import LORA_A, LORA_B, flatten_paths, is_stacked, parse_path, unflatten_paths
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SHOWN = 500  # characters of a value in a message
_FACTORS = {LORA_A: "lora_A.weight", LORA_B: "lora_B.weight"}

# The ends of module names by which PEFT finds the targets, where no other module ends alike.
_SUFFIXES = {
    "decoder/blocks/attn/qkv": "c_attn",
    "decoder/blocks/attn/out": "attn.c_proj",
    "decoder/blocks/mlp/up": "w1",
    "decoder/blocks/mlp/gate": "w2",
}
# Modules that a run may train whole beside its adapters, by the paths of our leaves.
_WHOLE = {"decoder/embedding": "wte", "decoder/lm_head": "lm_head"}

# Keys of an `adapter_config.json` that are read here, are seen in the tensors, or were of use in training alone. Any
# other one that says something may change what the tensors mean.
_KNOWN = frozenset(
    {
        "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
        "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "modules_to_save",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "eva_config", "megatron_config", "megatron_core", "runtime_config", "qalora_group_size",
    }
)  # fmt: skip
_SAYS_NOTHING: tuple[Any, ...] = (None, False, "none", {}, [])
# First values that leave the kernels as they are. PEFT takes others (PiSSA, OLoRA, CorDA, LoftQ) out of the base model
# when it loads the adapters, so that these belong beside other kernels.
_FIRST_VALUES = (True, False, None, "gaussian", "eva", "orthogonal")


def _rule_of(path: str) -> Rule:
    """The rule of one of our leaves."""
    return next(rule for rule in mapping.RULES if rule.ours == (path,))


def _kernel_rule(target: str) -> Rule:
    return _rule_of(f"{target}/kernel")


def _modules(target: str, layers: int) -> list[str]:
    """The modules of the released model that a target stands for, one per layer."""
    module = _kernel_rule(target).released.removesuffix(".weight")
    return [module.replace(LAYER, str(layer)) for layer in range(layers)] if LAYER in module else [module]


def _released_b(target: str, lora_b: np.ndarray) -> np.ndarray:
    """[r, *outputs] to [out, r], with the outputs in the order of the released tensor."""
    rank, *outputs = lora_b.shape
    return _kernel_rule(target).release([lora_b.reshape(rank, *[1] * (LORA_TARGETS[target] - 1), *outputs)])


def _restored_b(target: str, tensor: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_released_b`."""
    rank = tensor.shape[1]
    shape = (rank, *[1] * (LORA_TARGETS[target] - 1), *outputs)
    return _kernel_rule(target).restore(tensor, [shape])[0].reshape(rank, *outputs)


def export(start: StartingPoint, output: epath.PathLike, base: str = "") -> epath.Path:
    """Writes the adapters of a checkpoint as a folder that `peft.PeftModel.from_pretrained` loads over the base model.

    Args:
      start: the checkpoint.
      output: a folder that does not exist yet, or one of adapters, which is replaced.
      base: what the folder calls the base model, e.g. the path of its release.

    Raises:
      UserError: if the run has no adapters, trains more than PEFT can express, or `output` is something else.
    """
    output = storage.path(output)
    config = start.config
    if start.stage == IMPORT or not config.lora.rank:
        raise UserError(f"{start.workdir} has no adapters (config.lora.rank is 0); use `convert release`")
    if storage.exists(output) and not storage.exists(output / CONFIG):
        raise UserError(f"{output} exists and is no folder of adapters; name another folder or remove it")
    with damage_reported(start):
        verify_params(start.workdir, start.step)
        paths = ["/".join(path) for path in stored_leaves(params_folder(start.workdir, start.step))]
        others = [path for path in paths if path not in _WHOLE and not lora.is_adapter(parse_path(path))]
        if others:
            raise UserError(
                f"{start.workdir} trains {others[0]} beside its adapters, which their files cannot hold; use "
                "`convert release`, which merges them"
            )
        trained = {path: _read(start, path) for path in paths}
    tensors = _tensors(config.lora, trained)
    modules = [name for path, name in _WHOLE.items() if path in trained]
    entries = [Entry(name, array.shape) for name, array in tensors.items()]
    with artifacts.built_beside(output) as building:
        tensor_files.write_shard(building / TENSORS, entries, "float32", iter(tensors.values()))
        artifacts.write_json(building / CONFIG, _adapter_config(config.lora, config.model, modules, base))
    return output


def _read(start: StartingPoint, path: str) -> np.ndarray:
    return read_host_leaf(params_folder(start.workdir, start.step), parse_path(path))


def _tensors(config: LoraConfig, trained: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the file by name, C-contiguous float32."""
    tensors: dict[str, np.ndarray] = {}
    for target in config.adapted:
        lora_a, lora_b = trained[f"{target}/{LORA_A}"], trained[f"{target}/{LORA_B}"]
        if not is_stacked(parse_path(target)):
            lora_a, lora_b = lora_a[None], lora_b[None]
        for layer, module in enumerate(_modules(target, len(lora_a))):
            tensors[f"{_PREFIX}{module}.{_FACTORS[LORA_A]}"] = lora_a[layer].reshape(-1, config.rank).T
            tensors[f"{_PREFIX}{module}.{_FACTORS[LORA_B]}"] = _released_b(target, lora_b[layer])
    for path in _WHOLE:
        if path in trained:
            rule = _rule_of(path)
            tensors[f"{_PREFIX}{rule.released}"] = rule.release([trained[path]])
    return {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}


def _adapter_config(config: LoraConfig, model: ModelConfig, modules: list[str], base: str) -> dict[str, Any]:
    layers = {"decoder": model.decoder.layers, "vit": model.vit.layers, "resampler": 1}
    if all(target in _SUFFIXES for target in config.adapted):
        targets = [_SUFFIXES[target] for target in config.adapted]
    else:
        targets = [name for target in config.adapted for name in _modules(target, layers[target.split("/")[0]])]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "modules_to_save": modules or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


@dataclasses.dataclass(frozen=True)
class Adapters:
    """A folder of adapters, opened: the settings, and the stored tensors by our paths (with layers, by layer).

    `base` is what the folder calls the model that they were trained on: a path, a name of the hub, or nothing.
    """

    folder: epath.Path
    base: str
    config: LoraConfig
    factors: dict[str, list[tuple[Stored, Stored]]]
    whole: dict[str, Stored]


def open_adapters(folder: epath.PathLike, model: ModelConfig) -> Adapters:
    """Reads the settings and the header of a folder of adapters.

    Raises:
      UserError: if it is damaged, of another kind than LoRA, or of another model than `model`.
    """
    folder = storage.path(folder)
    content = artifacts.read_json(folder / CONFIG)
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG} is not of LoRA; only adapters of that kind can be read")
    rank, alpha = _rank_and_alpha(content, folder / CONFIG)
    path = folder / TENSORS
    if not storage.exists(path):
        raise UserError(f"{path} is missing; copy it, or convert adapter_model.bin to it with save_pretrained of peft")
    stored = tensor_files.read_header(path)
    factors, whole = _by_path(path, stored, model, rank)
    kept = [name for ours, name in _WHOLE.items() if ours in whole]
    saved = content.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise UserError(f"{folder / CONFIG} has modules_to_save={str(saved)[:100]}, not a list of names; copy it again")
    if lost := [name for name in saved if name.split(".")[-1] not in kept]:
        raise UserError(f"{folder / CONFIG} names the module {lost[0]}, but {path} does not have it; copy both again")
    config = LoraConfig(rank=rank, alpha=alpha, dropout=0.0, targets=tuple(factors))
    base = str(content.get("base_model_name_or_path") or "")
    return Adapters(folder, base, validate(config, str(folder / CONFIG)), factors, whole)


def differing_base(adapters: Adapters, release: epath.PathLike) -> str:
    """A sentence if the base that adapters name is no part of the path of `release`; otherwise nothing.

    Models of one architecture cannot be told apart by the shapes of their tensors, and people rename folders.
    """
    parts = {part.rpartition("--")[2].lower() for part in storage.absolute(release).parts}  # -- as in the hub's cache
    if not adapters.base or PurePosixPath(adapters.base).name.lower() in parts:  # epath refuses http:// and file://
        return ""
    return (
        f"{adapters.folder} says that it was trained on {adapters.base[:_SHOWN]}, and is merged into {release}; if "
        "these are two models, remove the result and name the first one with --release"
    )


def _rank_and_alpha(content: dict[str, Any], path: epath.Path) -> tuple[int, float]:
    """Rank and alpha of an `adapter_config.json`, the latter so that their quotient is the scale.

    Raises:
      UserError: if they are missing, or another key changes the meaning of the tensors.
    """
    other = {key: value for key, value in content.items() if key not in _KNOWN and value not in _SAYS_NOTHING}
    if content.get("init_lora_weights") not in _FIRST_VALUES:
        other["init_lora_weights"] = content["init_lora_weights"]
    if type(content.get("use_rslora", False)) is not bool:
        other["use_rslora"] = content["use_rslora"]
    for key, value in other.items():
        raise UserError(f"{path} has {key}={str(value)[:100]}, which is not supported; merge it with peft")
    rank: Any = content.get("r")
    alpha: Any = content.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise UserError(f"{path} lacks the numbers r and lora_alpha; copy it again")
    alpha = float(min(alpha, 2 * int(LARGE)))  # an integer may be too large for a float
    return rank, alpha * math.sqrt(rank) if content.get("use_rslora") else alpha  # rsLoRA's scale is alpha / sqrt(r)


def _by_path(
    path: epath.Path, stored: dict[str, Stored], model: ModelConfig, rank: int
) -> tuple[dict[str, list[tuple[Stored, Stored]]], dict[str, Stored]]:
    """The factors by target and layer, and the whole tensors by our path."""
    waiting = dict(stored)

    def take(name: str, shape: tuple[int, ...]) -> Stored:
        if name not in waiting:
            raise UserError(f"{path} lacks the tensor {name}; the adapters must cover all layers of this model")
        if waiting[name].shape != shape:
            raise UserError(
                f"{path} has {name} in the shape {waiting[name].shape}, this model needs {shape}; name the base model "
                "that the adapters were trained on"
            )
        return waiting.pop(name)

    tensors = {tensor.name: tensor for tensor in mapping.released_tensors(model)}
    factors: dict[str, list[tuple[Stored, Stored]]] = {}
    for target in LORA_TARGETS:
        layers = sum(tensor.rule is _kernel_rule(target) for tensor in tensors.values())
        names = [f"{_PREFIX}{module}." for module in _modules(target, layers)]
        if not any(name + _FACTORS[LORA_A] in waiting for name in names):
            continue
        outputs, inputs = next(tensor.shape for tensor in tensors.values() if tensor.rule is _kernel_rule(target))
        factors[target] = [
            (take(name + _FACTORS[LORA_A], (rank, inputs)), take(name + _FACTORS[LORA_B], (outputs, rank)))
            for name in names
        ]
    whole = {}
    for ours in _WHOLE:
        name = _rule_of(ours).released
        if _PREFIX + name in waiting:
            whole[ours] = take(_PREFIX + name, tensors[name].shape)
    if waiting:
        name = min(waiting)
        raise UserError(
            f"{path} has the tensor {name}, which has no place in this model; "
            "merge the adapters with peft and import the result"
        )
    if not factors:
        raise UserError(f"{path} holds no adapters; copy it again")
    return factors, whole


def merged(params: dict[str, Any], adapters: Adapters) -> dict[str, Any]:
    """The tree of a base model with the adapters merged in.

    Args:
      params: of the base model; every leaf is read when it is needed.
      adapters: of `open_adapters`, of the same model.

    Returns:
      The tree, in which changed leaves are `Deferred` and float32.
    """
    leaves = flatten_paths(params)
    for target, layers in adapters.factors.items():
        kernel = leaves[f"{target}/kernel"]
        load = functools.partial(_load_kernel, target, kernel, layers, adapters.config.scale)
        leaves[f"{target}/kernel"] = Deferred(kernel.shape, np.dtype(np.float32), load)
    for path, stored in adapters.whole.items():
        shape = leaves[path].shape
        load = functools.partial(_load_whole, path, stored, shape)
        leaves[path] = Deferred(shape, np.dtype(np.float32), load)
    return unflatten_paths(leaves)


def _load_kernel(target: str, kernel: Any, layers: list[tuple[Stored, Stored]], scale: float) -> np.ndarray:
    array = np.asarray(host_array(kernel))
    stacked = is_stacked(parse_path(target))
    shape = array.shape[1:] if stacked else array.shape
    outputs = shape[LORA_TARGETS[target] :]
    lora_a = np.stack([_finite(a).T for a, _ in layers])
    lora_b = np.stack([_restored_b(target, _finite(b), outputs) for _, b in layers])
    if not stacked:
        return lora.merged_kernel(array, lora_a[0], lora_b[0], np.float32(scale))
    return lora.merged_kernel(array, lora_a, lora_b, np.full(len(layers), scale, np.float32))


def _load_whole(path: str, stored: Stored, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(_rule_of(path).restore(_finite(stored), [shape])[0])


def _finite(stored: Stored) -> np.ndarray:
    """A tensor in float32. Raises UserError if one of its numbers is not finite, as of a training that diverged."""
    tensor = tensor_files.read_tensor(stored).astype(np.float32)
    if not np.isfinite(tensor).all():
        raise UserError(
            f"{stored.file} has numbers that are not finite; copy it again, or take those of an earlier step"
        )
    return tensor
