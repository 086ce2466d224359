"""The PyTorch model of a release, compared with Qwen2, torch's layers and formulas by hand; training; loading."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    dynamic_module_utils,
)

from qwenvl_jax.conversion import released_config
from qwenvl_jax.conversion.torch_model.configuration_qwen import QWenConfig
from qwenvl_jax.conversion.torch_model.modeling_qwen import QWenLMHeadModel, QWenVisionModel
from qwenvl_jax.conversion.torch_model.visual import VisualAttentionBlock, sincos_table
from qwenvl_jax.models.layers import sincos_positions
from tests.conversion.torch_tiny import (
    CODE,
    QUERIES,
    TRAIN_LENGTH,
    VOCABULARY,
    make_config,
    make_model,
    pixels,
    random_ids,
    write_model,
)

START = 440  # of <img>


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(make_config(START))


def image_block() -> Any:
    return torch.tensor([START, *[START + 2] * QUERIES, START + 1])


def as_qwen2(model: Any, rope_theta: Any) -> Any:
    """The decoder as a Qwen2 model of transformers, which has neither log-n attention nor dynamic NTK."""
    config = model.config
    theirs = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size // 2,
            num_hidden_layers=config.num_hidden_layers, num_attention_heads=4, num_key_value_heads=4,
            rms_norm_eps=config.layer_norm_epsilon, rope_theta=rope_theta, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    names = {
        "transformer.wte.weight": "model.embed_tokens.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if "visual" in name:
            continue
        if "c_attn" in name:
            layer, kind = name.split(".")[2], name.rsplit(".", 1)[1]
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] = rows
            continue
        for ours, other in {
            "transformer.h.": "model.layers.", ".ln_1.": ".input_layernorm.", ".ln_2.": ".post_attention_layernorm.",
            "attn.c_proj": "self_attn.o_proj", "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj",
            "mlp.c_proj": "mlp.down_proj",
        }.items():  # fmt: skip
            name = names.get(name, name).replace(ours, other)
        state[name] = tensor
    theirs.load_state_dict(state)
    return theirs


@torch.no_grad()
def test_the_decoder_is_qwen2_up_to_the_trained_length(model: Any) -> None:
    ids = random_ids(2, TRAIN_LENGTH)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    theirs = as_qwen2(model, 10000.0)(ids, attention_mask=mask).logits
    ours = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[0, 5:], theirs[0, 5:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length,alpha", [(TRAIN_LENGTH, 1), (TRAIN_LENGTH + 1, 3), (2 * TRAIN_LENGTH, 3), (70, 7)])
def test_dynamic_ntk_is_a_larger_rotary_base(length: int, alpha: Any) -> None:
    model = make_model(make_config(START, use_logn_attn=False))
    ids = random_ids(1, length)
    size = model.config.kv_channels
    theirs = as_qwen2(model, 10000.0 * alpha ** (size / (size - 2)))(ids).logits
    torch.testing.assert_close(model(ids).logits, theirs, rtol=1e-4, atol=1e-4)


def by_hand(model: Any, ids: Any, alpha: Any) -> Any:
    """Logits [L, V] of one row in float64, every formula written out."""
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    heads, size, base = 4, model.config.kv_channels, model.config.rotary_emb_base

    def norm(x: Any, name: str) -> Any:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * state[f"transformer.{name}.weight"]

    length = len(ids)
    x = state["transformer.wte.weight"][ids]
    frequency = (base * alpha ** (size / (size - 2))) ** -(np.arange(0, size, 2) / size)
    turn = np.exp(1j * np.arange(length)[:, None] * frequency)[:, None]
    logn = np.array([max(1.0, math.log(i) / math.log(TRAIN_LENGTH)) for i in range(1, length + 1)])
    for layer in range(model.config.num_hidden_layers):
        name = f"h.{layer}"
        weight, bias = (state[f"transformer.{name}.attn.c_attn.{kind}"] for kind in ("weight", "bias"))
        q, k, v = np.split((norm(x, f"{name}.ln_1") @ weight.T + bias).reshape(length, 3 * heads, size), 3, axis=1)

        def rotate(z: Any) -> Any:
            turned = (z[..., : size // 2] + 1j * z[..., size // 2 :]) * turn
            return np.concatenate([turned.real, turned.imag], axis=-1)

        scores = np.einsum("qhd,khd->hqk", rotate(q) * logn[:, None, None], rotate(k)) / math.sqrt(size)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(length, -1)
        x = x + mixed @ state[f"transformer.{name}.attn.c_proj.weight"].T
        h = norm(x, f"{name}.ln_2")
        gate = h @ state[f"transformer.{name}.mlp.w2.weight"].T
        up = h @ state[f"transformer.{name}.mlp.w1.weight"].T
        x = x + (up * gate / (1 + np.exp(-gate))) @ state[f"transformer.{name}.mlp.c_proj.weight"].T
    return norm(x, "ln_f") @ state["lm_head.weight"].T


@torch.no_grad()
def test_rows_of_a_batch_have_their_own_ntk_and_logn(model: Any) -> None:
    """Left-padded rows below, above and far above the trained length."""
    lengths, longest = {20: 1, 50: 3, 80: 7}, 80
    rows = [random_ids(1, length)[0] for length in lengths]
    ids, mask = torch.zeros(2, 3, longest, dtype=torch.long)
    for row, alone in enumerate(rows):
        ids[row, longest - len(alone) :], mask[row, longest - len(alone) :] = alone, 1
    logits = model(ids, attention_mask=mask).logits
    for row, (alone, alpha) in enumerate(zip(rows, lengths.values(), strict=True)):
        expected = torch.from_numpy(by_hand(model, alone.numpy(), alpha)).float()
        torch.testing.assert_close(logits[row, longest - len(alone) :], expected, rtol=1e-4, atol=1e-4)
    training = model.train()(ids[2:]).logits[0]
    model.eval()
    assert not torch.allclose(training, logits[2], atol=1e-2)  # neither acts in training


@torch.no_grad()
def test_cached_decoding_is_a_full_forward(model: Any) -> None:
    """One token at a time, and several at once; the prompt is beyond the trained length and has a picture."""
    ids = torch.cat([random_ids(1, 20), image_block()[None], random_ids(1, 12)], dim=1)
    full = model(ids, pixel_values=pixels(1)).logits
    step = model(ids[:, :44], pixel_values=pixels(1), use_cache=True)
    logits = [step.logits]
    for start, end in ((44, 45), (45, 46), (46, 50)):
        step = model(ids[:, start:end], past_key_values=step.past_key_values, use_cache=True)
        logits.append(step.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), full, rtol=1e-4, atol=1e-4)
    options = dict(pixel_values=pixels(1), do_sample=False, max_new_tokens=10, eos_token_id=None, pad_token_id=0)
    cached, again = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert cached.tolist() == again.tolist() and cached.shape == (1, ids.shape[1] + 10)


@torch.no_grad()
def test_a_growing_answer_keeps_the_factor_of_its_prompt(model: Any) -> None:
    """The rotary base of cached keys stays, while log-n sets in beyond the trained length."""
    ids = random_ids(1, TRAIN_LENGTH + 6)
    step = model(ids[:, :30], use_cache=True)
    for at in range(30, ids.shape[1]):
        step = model(ids[:, at : at + 1], past_key_values=step.past_key_values, use_cache=True)
    expected = torch.from_numpy(by_hand(model, ids[0].numpy(), 1)[-1]).float()
    torch.testing.assert_close(step.logits[0, 0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_visual_block_is_torchs_encoder_layer() -> None:
    width, heads = 24, 3
    block = VisualAttentionBlock(width, heads, 48, 1e-6)
    theirs = torch.nn.TransformerEncoderLayer(
        width, heads, 48, activation="gelu", norm_first=True, batch_first=True, layer_norm_eps=1e-6
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    order = torch.arange(3 * width).view(3, heads, -1).transpose(0, 1).flatten()  # head-major rows
    state = theirs.state_dict()
    block.load_state_dict(
        {
            "attn.in_proj.weight": state["self_attn.in_proj_weight"][order],
            "attn.in_proj.bias": state["self_attn.in_proj_bias"][order],
            **{f"attn.out_proj.{kind}": state[f"self_attn.out_proj.{kind}"] for kind in ("weight", "bias")},
            **{f"ln_{k}.{kind}": state[f"norm{k}.{kind}"] for k in (1, 2) for kind in ("weight", "bias")},
            **{f"mlp.c_fc.{kind}": state[f"linear1.{kind}"] for kind in ("weight", "bias")},
            **{f"mlp.c_proj.{kind}": state[f"linear2.{kind}"] for kind in ("weight", "bias")},
        }
    )
    x = torch.randn(2, 9, width)
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_beams_and_several_answers_keep_the_pictures_of_their_row(model: Any) -> None:
    block, text = image_block(), random_ids(1, 2)[0]
    ids = torch.stack([torch.cat([block, block, text]), torch.cat([block, random_ids(1, QUERIES + 2)[0], text])])
    options = dict(do_sample=False, max_new_tokens=4, eos_token_id=None, pad_token_id=0, num_beams=3)
    together = model.generate(ids, pixel_values=pixels(3), num_return_sequences=3, **options)
    for row, images in enumerate((pixels(3)[:2], pixels(3)[2:])):
        alone = model.generate(ids[row : row + 1], pixel_values=images, num_return_sequences=3, **options)
        assert together[3 * row : 3 * row + 3].tolist() == alone.tolist()


def gradients(model: Any, ids: Any, **inputs: Any) -> Any:
    model.zero_grad()
    loss = model(ids, labels=ids, **inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("with_image", [True, False])
def test_every_parameter_has_a_gradient(with_image: Any) -> None:
    model = make_model(make_config(START)).train()
    names = {name for name, _ in model.named_parameters()}
    assert model.state_dict().keys() - names == {"transformer.visual.attn_pool.pos_embed"}  # fixed
    ids = torch.cat([image_block(), random_ids(1, 9)[0]])[None] if with_image else random_ids(1, 9)
    loss, actual = gradients(model, ids, **({"pixel_values": pixels(1)} if with_image else {}))
    assert actual.keys() == names and loss.isfinite()
    moved = {name for name, gradient in actual.items() if gradient.abs().sum() > 0}
    assert moved == (names if with_image else {name for name in names if "visual" not in name})


def test_a_frozen_tower_does_not_run_without_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(make_config(START)).train()
    model.transformer.visual.requires_grad_(False)
    monkeypatch.setattr(model.transformer.visual, "forward", None)
    gradients(model, random_ids(1, 9))


@pytest.mark.parametrize("reentrant", [None, False])
def test_gradient_checkpointing_changes_nothing(reentrant: Any) -> None:
    model = make_model(make_config(START)).train()
    ids = torch.cat([image_block(), random_ids(1, 9)[0]])[None]
    loss, expected = gradients(model, ids, pixel_values=pixels(1))
    model.gradient_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
    calls = []
    model.transformer.h[1].ln_2.register_forward_hook(lambda *_: calls.append("decoder"))
    model.transformer.visual.transformer.resblocks[1].ln_2.register_forward_hook(lambda *_: calls.append("visual"))
    again, actual = gradients(model, ids, pixel_values=pixels(1))
    assert sorted(calls) == ["decoder"] * 2 + ["visual"] * 2  # computed once more on the way back
    torch.testing.assert_close(again, loss)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name])


@torch.no_grad()
def test_loss_and_kept_logits(model: Any) -> None:
    ids = random_ids(2, 7)
    logits = model(ids).logits
    labels = ids.clone()
    labels[:, :3] = -100
    expected = torch.nn.functional.cross_entropy(logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=4).loss, expected * 8 / 4)
    for name in ("logits_to_keep", "num_logits_to_keep"):
        torch.testing.assert_close(model(ids, **{name: 2}).logits, logits[:, -2:])
    embedded, middle, final = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(embedded, model.transformer.wte(ids))
    torch.testing.assert_close(model.lm_head(final), logits)
    assert middle.shape == final.shape and model(ids).hidden_states is None


def test_embeddings_can_be_exchanged() -> None:
    model = make_model(make_config(START))
    for get, put, layer in (
        (model.get_input_embeddings, model.set_input_embeddings, torch.nn.Embedding(VOCABULARY, 32)),
        (model.get_output_embeddings, model.set_output_embeddings, torch.nn.Linear(32, VOCABULARY, bias=False)),
    ):
        put(layer)
        assert get() is layer
    model.resize_token_embeddings(VOCABULARY + 8)
    assert model(random_ids(1, 3)).logits.shape[-1] == VOCABULARY + 8


@pytest.mark.parametrize("with_visual,count", [(True, 853), (False, 259)])
def test_full_size_names(with_visual: Any, count: int) -> None:
    visual = dict(
        heads=16, image_size=448, image_start_id=151857, layers=48, mlp_ratio=4.9231, output_dim=4096, patch_size=14,
        width=1664,
    )  # fmt: skip
    with torch.device("meta"):
        config = QWenConfig(visual=visual) if with_visual else QWenConfig()
        state = QWenLMHeadModel(config).state_dict()
        assert len(state) == count
        if with_visual:
            tower = QWenVisionModel(config).state_dict()
            assert {n: t.shape for n, t in tower.items()} == {n: state[n].shape for n in state if "visual" in n}
            assert len(tower) == 594 and sum(t.numel() for t in state.values()) == 9_656_935_168


def test_a_model_from_nothing() -> None:
    torch.manual_seed(0)
    model = QWenLMHeadModel(make_config(START, hidden_size=64, visual={}, num_hidden_layers=8))
    std = {name: parameter.std().item() for name, parameter in model.named_parameters()}
    assert std["transformer.h.3.attn.c_proj.weight"] == pytest.approx(0.02 / 4, rel=0.1)
    assert std["transformer.h.3.mlp.c_proj.weight"] == pytest.approx(0.02 / 4, rel=0.1)
    assert std["transformer.h.3.mlp.w1.weight"] == pytest.approx(0.02, rel=0.1)
    visual: Any = QWenVisionModel(make_config(START)).transformer["visual"]
    np.testing.assert_allclose(visual.attn_pool.pos_embed, sincos_positions(4, 32), atol=1e-6)
    np.testing.assert_allclose(sincos_table(16, 64), sincos_positions(16, 64), atol=2e-6)
    assert visual.proj.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert visual.attn_pool.query.std() > 0.01 and visual.positional_embedding.std() > 0.1


def test_a_release_needs_none_of_our_packages() -> None:
    """Every file lies in the release, finds its neighbours there, and imports what a PyTorch user has."""
    assert set(released_config.CODE_FILES) == {path.name for path in CODE.glob("*.py")} - {"__init__.py"}
    for name in released_config.CODE_FILES:
        neighbours = dynamic_module_utils.check_imports(CODE / name)
        assert {f"{neighbour}.py" for neighbour in neighbours} <= set(released_config.CODE_FILES)
        assert "qwenvl_jax" not in (CODE / name).read_text()
        assert not set(dynamic_module_utils.get_imports(CODE / name)) & {"numpy", "torchvision", "requests", "jax"}
    for name in ("modeling_qwen.py", "tokenization_qwen.py"):
        # transformers copies the direct neighbours only.
        direct = set(dynamic_module_utils.get_relative_imports(CODE / name))
        assert all(set(dynamic_module_utils.get_relative_imports(CODE / f"{each}.py")) <= direct for each in direct)


def load(folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Any:
    model, info = auto.from_pretrained(str(folder), trust_remote_code=True, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def same_weights(a: Any, b: Any) -> Any:
    state = b.state_dict()
    assert list(a.state_dict()) == list(state)
    return all(torch.equal(tensor, state[name].to(tensor.dtype)) for name, tensor in a.state_dict().items())


@torch.no_grad()
def test_saved_and_loaded_again(model: Any, code_folder: Path, tmp_path: Path) -> None:
    write_model(code_folder, model)
    loaded = load(code_folder)
    assert same_weights(model, loaded) and type(loaded).__name__ == "QWenLMHeadModel"
    loaded.save_pretrained(str(tmp_path / "again"))  # brings its code along
    again = load(tmp_path / "again")
    assert same_weights(model, again)
    ids = torch.cat([image_block(), random_ids(1, 9)[0]])[None]
    expected = model(ids, pixel_values=pixels(1)).logits
    torch.testing.assert_close(again(ids, pixel_values=pixels(1)).logits, expected)
    half = load(code_folder, dtype=torch.bfloat16)
    logits = half(ids, pixel_values=pixels(1)).logits
    assert logits.dtype == torch.bfloat16 and half.lm_head.weight.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
    output = half.generate(ids, pixel_values=pixels(1), max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert output.shape == (1, ids.shape[1] + 2)
    config = AutoConfig.from_pretrained(str(code_folder), trust_remote_code=True)
    assert config.visual == model.config.visual and config.seq_length == TRAIN_LENGTH
    # The tower of a whole release is read out of it.
    tower = QWenVisionModel.from_pretrained(str(code_folder))
    torch.testing.assert_close(tower(pixels(2)).last_hidden_state, model.transformer.visual(pixels(2)))


@torch.no_grad()
def test_a_language_model_alone(model: Any, code_folder: Path) -> None:
    alone = make_model(make_config(START, visual={}))
    write_model(code_folder, alone)
    loaded = load(code_folder)
    assert same_weights(alone, loaded) and not any("visual" in name for name in loaded.state_dict())
    ids = torch.cat([image_block(), random_ids(1, 9)[0]])[None]  # without a tower these are ids like any other
    assert loaded.generate(ids, max_new_tokens=2, do_sample=False, eos_token_id=None).shape == (1, ids.shape[1] + 2)
    with pytest.raises(ValueError, match="without a vision tower"):
        loaded(ids, pixel_values=pixels(1))
    with pytest.raises(ValueError, match="no `visual`"):
        QWenVisionModel(alone.config)


@torch.no_grad()
def test_a_vision_tower_alone(code_folder: Path) -> None:
    alone = make_model(make_config(START), QWenVisionModel)
    assert all(name.startswith("transformer.visual.") for name in alone.state_dict())
    write_model(code_folder, alone)
    loaded = load(code_folder, AutoModel)
    assert same_weights(alone, loaded)
    features = loaded(pixel_values=pixels(2)).last_hidden_state
    assert features.shape == (2, QUERIES, 32)
    torch.testing.assert_close(features, alone.transformer["visual"](pixels(2)))
    for wrong in (pixels(1)[0], pixels(1, 20), pixels(1)[:, :1], pixels(1)[..., :14]):
        with pytest.raises(
            ValueError, match=r"pixel_values must be \[images, 3, size, size\] with size a multiple of 14"
        ):
            loaded(wrong)
