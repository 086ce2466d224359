"""The table that maps our parameters to the released tensors and back.

Every `Rule` relates one or more of our leaves to one released tensor (one per layer if the name has `{layer}`), and
gives the transform in both directions. All code that converts, counts or checks tensors reads this table; apart
from the PyTorch model itself and the ends of names by which PEFT finds modules (`peft_adapters`), no other file
contains released names.

Legend: W vision width, N heads, K head size, F hidden width of an MLP, D decoder width, Q queries, V vocabulary,
S stacked layers. Our kernels are `in x out` with a separate axis for heads; released weights are `out x in`.

Sources: released modeling_qwen.py and visual.py, and the released index (853 tensors).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from qwenvl_jax.config import TOWERS, ModelConfig
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import flatten_paths

Arrays = Sequence[np.ndarray]
LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One released tensor (one per layer if `released` has `{layer}`) and the leaves of ours that it consists of.

    Attributes:
      ours: paths of our leaves, `/`-separated. Stacked leaves have a leading layer axis S, which the transforms do not
        see.
      released: the name in the released checkpoint.
      release: maps our arrays (of one layer) to the released array.
      restore: the exact inverse: maps the released array and the shapes of our arrays, without S, to our arrays.
    """

    ours: tuple[str, ...]
    released: str
    release: Callable[[Arrays], np.ndarray]
    restore: Callable[[np.ndarray, Sequence[tuple[int, ...]]], list[np.ndarray]]

    @property
    def stacked(self) -> bool:
        """Whether there is one released tensor per layer."""
        return LAYER in self.released


def _same(ours: str, released: str) -> Rule:
    return Rule((ours,), released, lambda a: a[0], lambda t, shapes: [t.reshape(shapes[0])])


def _transposed(ours: str, released: str, inputs: int = 1) -> Rule:
    """A kernel whose first `inputs` axes are inputs and the rest outputs <-> torch [out, in]."""

    def release(arrays: Arrays) -> np.ndarray:
        (kernel,) = arrays
        return kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1).T

    return Rule((ours,), released, release, lambda t, shapes: [t.T.reshape(shapes[0])])


def _convolution(ours: str, released: str) -> Rule:
    """Ours HWIO <-> torch OIHW."""
    return Rule((ours,), released, lambda a: a[0].transpose(3, 2, 0, 1), lambda t, s: [t.transpose(2, 3, 1, 0)])


def _without_class_row(ours: str, released: str) -> Rule:
    """A position table [G*G, W] <-> OpenCLIP's [1 + G*G, W]. We do not keep the class token; its row becomes zero."""
    return Rule((ours,), released, lambda a: np.concatenate([np.zeros_like(a[0][:1]), a[0]]), lambda t, shapes: [t[1:]])


def _concatenated_qkv(ours: str, released: str) -> list[Rule]:
    """Kernel [D, 3, N, K], bias [3, N, K] <-> rows q;k;v, each with its heads in order (LLM `c_attn`)."""
    return [_transposed(f"{ours}/kernel", f"{released}.weight"), _flat(f"{ours}/bias", f"{released}.bias")]


def _flat(ours: str, released: str) -> Rule:
    return Rule((ours,), released, lambda a: a[0].reshape(-1), lambda t, shapes: [t.reshape(shapes[0])])


def _interleaved_qkv(ours: str, released: str) -> list[Rule]:
    """Kernel [W, 3, N, K], bias [3, N, K] <-> rows head-major: row h*3K + c*K + d, c in q, k, v (ViT `in_proj`).

    The released tower reshapes its 3W outputs to [N, 3K] and splits the last axis. Weights that were not permuted have
    the same shape, so a mistake here raises no error.
    """

    def release_kernel(arrays: Arrays) -> np.ndarray:
        kernel = arrays[0]
        return kernel.transpose(2, 1, 3, 0).reshape(-1, kernel.shape[0])

    def restore_kernel(tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        width, three, heads, head = shapes[0]
        return [tensor.reshape(heads, three, head, width).transpose(3, 1, 0, 2)]

    def restore_bias(tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        three, heads, head = shapes[0]
        return [tensor.reshape(heads, three, head).transpose(1, 0, 2)]

    return [
        Rule((f"{ours}/kernel",), f"{released}.weight", release_kernel, restore_kernel),
        Rule((f"{ours}/bias",), f"{released}.bias", lambda a: a[0].transpose(1, 0, 2).reshape(-1), restore_bias),
    ]


def _packed_qkv(ours: str, released: str) -> list[Rule]:
    """Three projections [D, N, K] / [N, K] <-> one matrix, rows q;k;v (torch.nn.MultiheadAttention)."""

    def restore(tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        thirds = np.split(tensor, 3, axis=0)
        return [third.T.reshape(shape) for third, shape in zip(thirds, shapes, strict=True)]

    kernels = tuple(f"{ours}/{part}/kernel" for part in ("query", "key", "value"))
    biases = tuple(f"{ours}/{part}/bias" for part in ("query", "key", "value"))
    return [
        Rule(
            kernels,
            f"{released}.in_proj_weight",
            lambda a: np.concatenate([kernel.reshape(kernel.shape[0], -1).T for kernel in a]),
            restore,
        ),
        Rule(biases, f"{released}.in_proj_bias", lambda a: np.concatenate([bias.reshape(-1) for bias in a]), restore),
    ]


def _norm(ours: str, released: str) -> list[Rule]:
    return [_same(f"{ours}/scale", f"{released}.weight"), _same(f"{ours}/bias", f"{released}.bias")]


def _dense(ours: str, released: str, inputs: int = 1) -> list[Rule]:
    return [_transposed(f"{ours}/kernel", f"{released}.weight", inputs), _same(f"{ours}/bias", f"{released}.bias")]


_H, _V = "transformer.h.{layer}", "transformer.visual"
RELEASED_VISION = f"{_V}."
_B, _P = f"{_V}.transformer.resblocks.{{layer}}", f"{_V}.attn_pool"

DECODER_RULES: tuple[Rule, ...] = (
    _same("decoder/embedding", "transformer.wte.weight"),
    _same("decoder/blocks/ln_1/scale", f"{_H}.ln_1.weight"),
    *_concatenated_qkv("decoder/blocks/attn/qkv", f"{_H}.attn.c_attn"),
    _transposed("decoder/blocks/attn/out/kernel", f"{_H}.attn.c_proj.weight", inputs=2),
    _same("decoder/blocks/ln_2/scale", f"{_H}.ln_2.weight"),
    _transposed("decoder/blocks/mlp/up/kernel", f"{_H}.mlp.w1.weight"),  # the linear branch
    _transposed("decoder/blocks/mlp/gate/kernel", f"{_H}.mlp.w2.weight"),  # the SiLU branch
    _transposed("decoder/blocks/mlp/down/kernel", f"{_H}.mlp.c_proj.weight"),
    _same("decoder/ln_f/scale", "transformer.ln_f.weight"),
    _transposed("decoder/lm_head", "lm_head.weight"),
)

VIT_RULES: tuple[Rule, ...] = (
    _same("vit/position_embedding", f"{_V}.positional_embedding"),
    _convolution("vit/patch_embed/kernel", f"{_V}.conv1.weight"),
    *_norm("vit/ln_pre", f"{_V}.ln_pre"),
    *_norm("vit/blocks/ln_1", f"{_B}.ln_1"),
    *_norm("vit/blocks/ln_2", f"{_B}.ln_2"),
    *_interleaved_qkv("vit/blocks/attn/qkv", f"{_B}.attn.in_proj"),
    *_dense("vit/blocks/attn/out", f"{_B}.attn.out_proj", inputs=2),
    *_dense("vit/blocks/mlp/up", f"{_B}.mlp.c_fc"),
    *_dense("vit/blocks/mlp/down", f"{_B}.mlp.c_proj"),
)

RESAMPLER_RULES: tuple[Rule, ...] = (
    _same("resampler/query", f"{_P}.query"),
    _same("resampler/position_embedding", f"{_P}.pos_embed"),  # stored, never regenerated
    _transposed("resampler/kv_proj/kernel", f"{_P}.kv_proj.weight"),
    *_packed_qkv("resampler/attn", f"{_P}.attn"),  # not interleaved, unlike the ViT
    *_dense("resampler/attn/out", f"{_P}.attn.out_proj", inputs=2),
    *_norm("resampler/ln_q", f"{_P}.ln_q"),
    *_norm("resampler/ln_kv", f"{_P}.ln_kv"),
)

VIT_HEAD_RULES: tuple[Rule, ...] = (
    *_norm("vit/ln_post", f"{_V}.ln_post"),
    _same("vit/proj", f"{_V}.proj"),  # used as x @ proj: already in x out
)

VISION_RULES: tuple[Rule, ...] = (*VIT_RULES, *RESAMPLER_RULES, *VIT_HEAD_RULES)

RULES: tuple[Rule, ...] = (*DECODER_RULES, *VISION_RULES)


@dataclasses.dataclass(frozen=True)
class ReleaseScope:
    """The part of a model that a release contains.

    Attributes:
      rules: the rules of its tensors.
      towers: the top-level keys of its parameters.
    """

    rules: tuple[Rule, ...]
    towers: tuple[str, ...]


# The values of `convert release --component`, which manifest.json and parity.json state as `component`.
RELEASE_SCOPES = {
    "all": ReleaseScope(RULES, TOWERS),
    "decoder": ReleaseScope(DECODER_RULES, ("decoder",)),
    "vision": ReleaseScope(VISION_RULES, ("vit", "resampler")),
}


def _openclip_blocks(ours: str, released: str) -> list[Rule]:
    """The blocks of a tower of OpenCLIP. Their projections are not interleaved."""
    block = f"{released}.resblocks.{LAYER}"
    return [
        *_norm(f"{ours}/ln_1", f"{block}.ln_1"),
        *_norm(f"{ours}/ln_2", f"{block}.ln_2"),
        _transposed(f"{ours}/attn/qkv/kernel", f"{block}.attn.in_proj_weight"),
        _flat(f"{ours}/attn/qkv/bias", f"{block}.attn.in_proj_bias"),
        *_dense(f"{ours}/attn/out", f"{block}.attn.out_proj", inputs=2),
        *_dense(f"{ours}/mlp/up", f"{block}.mlp.c_fc"),
        *_dense(f"{ours}/mlp/down", f"{block}.mlp.c_proj"),
    ]


# The part of an OpenCLIP vision tower that Qwen-VL keeps.
OPENCLIP_RULES: tuple[Rule, ...] = (
    _without_class_row("vit/position_embedding", "visual.positional_embedding"),
    _convolution("vit/patch_embed/kernel", "visual.conv1.weight"),
    *_norm("vit/ln_pre", "visual.ln_pre"),
    *_openclip_blocks("vit/blocks", "visual.transformer"),
)

# The rest of an OpenCLIP checkpoint: class token, output norm and projection of the vision tower, and the text tower.
OPENCLIP_LEFT_OUT = re.compile(
    r"visual\.(class_embedding|proj|ln_post\.(weight|bias))|positional_embedding|text_projection|logit_(scale|bias)"
    r"|attn_mask|token_embedding\.weight|ln_final\.(weight|bias)|transformer\.resblocks\.\d+\..+"
)

# Both towers of an OpenCLIP checkpoint, whole (`models.clip`).
CLIP_RULES: tuple[Rule, ...] = (
    _same("vision/class_embedding", "visual.class_embedding"),
    _same("vision/position_embedding", "visual.positional_embedding"),
    _convolution("vision/patch_embed/kernel", "visual.conv1.weight"),
    *_norm("vision/ln_pre", "visual.ln_pre"),
    *_openclip_blocks("vision/blocks", "visual.transformer"),
    *_norm("vision/ln_post", "visual.ln_post"),
    _same("vision/proj", "visual.proj"),  # used as x @ proj, as the next one
    _same("text/proj", "text_projection"),
    _same("text/embedding", "token_embedding.weight"),
    _same("text/position_embedding", "positional_embedding"),
    *_openclip_blocks("text/blocks", "transformer"),
    *_norm("text/ln_final", "ln_final"),
)

# A cosine needs neither; the mask is the causal one.
CLIP_LEFT_OUT = re.compile(r"logit_(scale|bias)|attn_mask|input_resolution|context_length|vocab_size")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One released tensor of a model: its rule, its layer (None if the rule is not stacked), name and torch shape."""

    rule: Rule
    layer: int | None
    name: str
    shape: tuple[int, ...]


def shapes_of(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The full shape of each of our leaves by path; allocates nothing."""
    return {path: tuple(leaf.shape) for path, leaf in flatten_paths(qwen_vl.abstract_params(model)).items()}


def shapes_of_ours(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of the rule's leaves without the layer axis; `shapes` are those of `shapes_of`."""
    return [tuple(shapes[path])[1:] if rule.stacked else tuple(shapes[path]) for path in rule.ours]


def _shape_of(rule: Rule, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    # Transforms only reshape, transpose and concatenate, so broadcast zeros, which need no memory, give the shape. A
    # concatenation would allocate, so its length is computed from that of one part.
    placeholders = [np.broadcast_to(np.int8(0), shape) for shape in shapes_of_ours(rule, shapes)]
    if len(placeholders) > 1:
        length, *rest = rule.release([placeholders[0]]).shape
        return (length * len(placeholders), *rest)
    return rule.release(placeholders).shape


def released_tensors(model: ModelConfig, rules: Sequence[Rule] = RULES) -> Iterator[Tensor]:
    """The released tensors of `model`, as `tensors_of` yields them."""
    return tensors_of(shapes_of(model), rules)


def tensors_of(shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]) -> Iterator[Tensor]:
    """The released tensors of leaves with these shapes, ordered by rule and then by layer.

    Our leaves are large because they contain all layers; in this order only those of one rule are needed at a time.
    Nothing is allocated.
    """
    for rule in rules:
        shape = _shape_of(rule, shapes)
        if not rule.stacked:
            yield Tensor(rule, None, rule.released, shape)
            continue
        for layer in range(shapes[rule.ours[0]][0]):
            yield Tensor(rule, layer, rule.released.replace(LAYER, str(layer)), shape)
