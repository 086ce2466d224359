"""The mapping table: every released name and shape, and the permutations against independent constructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from configs import model as model_configs
from qwenvl_jax.config import Config, ModelConfig, from_config_dict
from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.torch_model.visual import VisualAttention

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def full() -> Any:
    model = from_config_dict(ModelConfig, model_configs.qwen_vl_9b6())
    return mapping.shapes_of(model), {t.name: t.shape for t in mapping.released_tensors(model)}


def released_names_and_shapes() -> dict[str, tuple[int, ...]]:
    """The released index, written out from its documentation and not from the table."""
    d, w, v, m, f = 4096, 1664, 151936, 11008, 8192
    names = {"transformer.wte.weight": (v, d), "transformer.ln_f.weight": (d,), "lm_head.weight": (v, d)}
    for n in range(32):
        h = f"transformer.h.{n}"
        names |= {f"{h}.ln_1.weight": (d,), f"{h}.ln_2.weight": (d,)}
        names |= {f"{h}.attn.c_attn.weight": (3 * d, d), f"{h}.attn.c_attn.bias": (3 * d,)}
        names |= {f"{h}.attn.c_proj.weight": (d, d), f"{h}.mlp.c_proj.weight": (d, m)}
        names |= {f"{h}.mlp.w1.weight": (m, d), f"{h}.mlp.w2.weight": (m, d)}
    top = "transformer.visual"
    names |= {f"{top}.conv1.weight": (w, 3, 14, 14), f"{top}.positional_embedding": (256, w), f"{top}.proj": (d, d)}
    for norm, width in (("ln_pre", w), ("ln_post", d), ("attn_pool.ln_q", d), ("attn_pool.ln_kv", d)):
        names |= {f"{top}.{norm}.weight": (width,), f"{top}.{norm}.bias": (width,)}
    for n in range(48):
        r = f"{top}.transformer.resblocks.{n}"
        names |= {f"{r}.{norm}.{part}": (w,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        for layer, out, inner in (
            ("attn.in_proj", 3 * w, w), ("attn.out_proj", w, w), ("mlp.c_fc", f, w), ("mlp.c_proj", w, f)
        ):  # fmt: skip
            names |= {f"{r}.{layer}.weight": (out, inner), f"{r}.{layer}.bias": (out,)}
    pool = f"{top}.attn_pool"
    names |= {f"{pool}.query": (256, d), f"{pool}.pos_embed": (256, d), f"{pool}.kv_proj.weight": (d, w)}
    names |= {f"{pool}.attn.in_proj_weight": (3 * d, d), f"{pool}.attn.in_proj_bias": (3 * d,)}
    names |= {f"{pool}.attn.out_proj.weight": (d, d), f"{pool}.attn.out_proj.bias": (d,)}
    return names


def test_the_released_model_has_853_tensors(full: Any) -> None:
    _, tensors = full
    assert tensors == released_names_and_shapes()
    assert len(tensors) == 853
    assert sum("visual" not in name for name in tensors) == 259


def test_parameters_add_up(full: Any) -> None:
    _, tensors = full

    def count(wanted: Any) -> Any:
        return sum(int(np.prod(shape)) for name, shape in tensors.items() if wanted(name))

    assert count(lambda name: True) == 9_656_935_168
    assert count(lambda name: "visual" not in name) == 7_721_324_544
    assert count(lambda name: "attn_pool" in name) == 76_054_528
    assert count(lambda name: "ln_post" in name or name.endswith("visual.proj")) == 16_785_408


def test_every_leaf_of_ours_is_in_one_rule(full: Any) -> None:
    shapes, _ = full
    mapped = [path for rule in mapping.RULES for path in rule.ours]
    assert sorted(mapped) == sorted(shapes)


@pytest.mark.parametrize("rule", (*mapping.RULES, *mapping.OPENCLIP_RULES), ids=lambda rule: rule.released)
def test_restore_is_the_exact_inverse_of_release(rule: Any, config: Config) -> None:
    shapes = mapping.shapes_of_ours(rule, mapping.shapes_of(config.model))
    ours = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
    released = rule.release(ours)
    for a, b in zip(ours, rule.restore(np.ascontiguousarray(released), shapes), strict=True):
        np.testing.assert_array_equal(a, b)


def openclip_names_and_shapes() -> dict[str, tuple[int, ...]]:
    """The vision tower of OpenCLIP's ViT-bigG-14, written out from its documentation and not from the table."""
    w, f = 1664, 8192
    names = {"visual.class_embedding": (w,), "visual.positional_embedding": (257, w), "visual.proj": (w, 1280)}
    names |= {"visual.conv1.weight": (w, 3, 14, 14)}
    names |= {f"visual.{norm}.{part}": (w,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for n in range(48):
        r = f"visual.transformer.resblocks.{n}"
        names |= {f"{r}.{norm}.{part}": (w,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        names |= {f"{r}.attn.in_proj_weight": (3 * w, w), f"{r}.attn.in_proj_bias": (3 * w,)}
        for layer, out, inner in (("attn.out_proj", w, w), ("mlp.c_fc", f, w), ("mlp.c_proj", w, f)):
            names |= {f"{r}.{layer}.weight": (out, inner), f"{r}.{layer}.bias": (out,)}
    return names


def test_openclip_tensors_are_kept_or_left_out_by_name() -> None:
    """1,844,907,264 parameters; all but class token, its position, `ln_post` and `proj` go on."""
    model = from_config_dict(ModelConfig, model_configs.qwen_vl_9b6())
    theirs = openclip_names_and_shapes()
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == 1_844_907_264
    kept = {tensor.name: tensor.shape for tensor in mapping.released_tensors(model, mapping.OPENCLIP_RULES)}
    assert kept.items() <= theirs.items()
    left_out = {name for name in theirs if mapping.OPENCLIP_LEFT_OUT.fullmatch(name)}
    assert kept.keys() | left_out == theirs.keys() and not kept.keys() & left_out
    for name in ("text_projection", "logit_scale", "token_embedding.weight", "ln_final.bias", "positional_embedding"):
        assert mapping.OPENCLIP_LEFT_OUT.fullmatch(name)
    assert mapping.OPENCLIP_LEFT_OUT.fullmatch("transformer.resblocks.31.attn.in_proj_weight")
    assert not mapping.OPENCLIP_LEFT_OUT.fullmatch("visual.transformer.resblocks.48.ln_1.weight")


def rule_for(ending: str) -> mapping.Rule:
    return next(rule for rule in mapping.RULES if rule.released.endswith(ending))


def test_vit_rows_are_interleaved_per_head() -> None:
    """Released row h*3K + c*K + d holds what OpenCLIP has in row c*W + h*K + d."""
    heads, size, width = 3, 5, 15
    clip = RNG.normal(size=(3 * width, width))
    ours = clip.reshape(3, heads, size, width).transpose(3, 0, 1, 2)
    released = rule_for("attn.in_proj.weight").release([ours])
    bias = RNG.normal(size=3 * width)
    released_bias = rule_for("attn.in_proj.bias").release([bias.reshape(3, heads, size)])
    for h in range(heads):
        for c in range(3):
            for d in range(size):
                row, clip_row = h * 3 * size + c * size + d, c * width + h * size + d
                np.testing.assert_array_equal(released[row], clip[clip_row])
                assert released_bias[row] == bias[clip_row]


def test_vit_attention_after_the_permutation_equals_torch_multihead_attention() -> None:
    heads, width = 4, 24
    size = width // heads
    theirs = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    torch.nn.init.normal_(theirs.in_proj_bias)
    weight, bias = theirs.in_proj_weight.detach().numpy(), theirs.in_proj_bias.detach().numpy()
    ours = VisualAttention(width, heads)
    state = {
        "in_proj.weight": rule_for("attn.in_proj.weight").release(
            [weight.reshape(3, heads, size, width).transpose(3, 0, 1, 2)]
        ),
        "in_proj.bias": rule_for("attn.in_proj.bias").release([bias.reshape(3, heads, size)]),
        "out_proj.weight": theirs.out_proj.weight.detach().numpy(),
        "out_proj.bias": theirs.out_proj.bias.detach().numpy(),
    }
    ours.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    x = torch.randn(2, 7, width)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-5)


def test_c_attn_is_not_interleaved_and_proj_not_transposed() -> None:
    heads, size, width = 2, 3, 6
    kernel = RNG.normal(size=(width, 3, heads, size))
    released = rule_for("attn.c_attn.weight").release([kernel])
    np.testing.assert_array_equal(released[: heads * size], kernel[:, 0].reshape(width, -1).T)
    np.testing.assert_array_equal(released[-heads * size :], kernel[:, 2].reshape(width, -1).T)
    proj = RNG.normal(size=(width, width))
    np.testing.assert_array_equal(rule_for("visual.proj").release([proj]), proj)


def test_up_is_w1_and_gate_is_w2() -> None:
    assert rule_for("mlp.w1.weight").ours == ("decoder/blocks/mlp/up/kernel",)
    assert rule_for("mlp.w2.weight").ours == ("decoder/blocks/mlp/gate/kernel",)
