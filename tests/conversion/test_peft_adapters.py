"""Adapters in the files of PEFT, compared with `peft` over the released code: forward, training, merging, damage."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from etils import epath
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.checkpoint.starting_point import find_starting_point
from qwenvl_jax.config import LORA_TARGETS, RELEASED_TARGETS, Config
from qwenvl_jax.conversion import from_torch, peft_adapters
from qwenvl_jax.conversion.torch_model.visual import normalise
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import Params, flatten, split, unflatten
from qwenvl_jax.runtime.errors import UserError
from tests.support.adapter_run import configure, with_adapters, write_run

Prompt = tuple[np.ndarray, np.ndarray, np.ndarray]


def prompt_of(config: Config) -> Prompt:
    """Tokens [1, L], image slots [1, L] and pixels [1, H, H, 3] of a text with one picture."""
    queries = config.model.resampler.queries
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 300, (1, queries + 22)).astype(np.int32)
    slots = np.full(tokens.shape, -1, np.int32)
    slots[0, 6 : 6 + queries] = np.arange(queries)
    size = config.data.image_size
    return tokens, slots, rng.integers(0, 256, (1, size, size, 3)).astype(np.uint8)


def our_logits(params: Params, config: Config, prompt: Prompt) -> np.ndarray:
    return np.asarray(_logits(params, config, *map(jnp.asarray, prompt)))


@functools.partial(jax.jit, static_argnums=1)
def _logits(params: Params, config: Config, tokens: Any, slots: Any, images: Any) -> jax.Array:
    hidden = qwen_vl.forward(
        params,
        config.model,
        config.compute,
        tokens_BL=tokens,
        segment_ids_BL=jnp.ones_like(tokens),
        positions_BL=jnp.arange(tokens.shape[1])[None],
        image_slot_BL=slots,
        images_IHWC=images,
        training=False,
    )
    return qwen_vl.logits(params, config.model, config.compute, hidden)


def torch_inputs(model: Any, config: Config, prompt: Prompt) -> dict[str, Any]:
    """The same prompt with the ids between which the released code puts the features."""
    tokens, slots, images = prompt
    ids = torch.from_numpy(tokens.astype(np.int64))
    start = model.config.visual["image_start_id"]
    first, queries = int(np.argmax(slots[0] == 0)), config.model.resampler.queries
    ids[0, first - 1] = start
    ids[0, first : first + queries] = start + 2
    ids[0, first + queries] = start + 1
    tokens[:] = ids.numpy()
    return {"input_ids": ids, "pixel_values": normalise(torch.from_numpy(images))}


def torch_model(released: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(released), trust_remote_code=True).eval()


@pytest.mark.parametrize(
    ("targets", "vocabulary"), [(RELEASED_TARGETS, False), (tuple(LORA_TARGETS), True)], ids=["released", "everywhere"]
)
def test_peft_loads_merges_and_gives_back_what_we_train(
    config: Config, params: Params, released: epath.Path, tmp_path: Path, targets: tuple[str, ...], vocabulary: bool
) -> None:
    config = configure(config, targets, vocabulary)
    ours = with_adapters(config, params)
    workdir = write_run(config, ours, tmp_path / "run")
    folder = peft_adapters.export(find_starting_point(workdir), tmp_path / "adapters", str(released))
    assert sorted(path.name for path in Path(folder).iterdir()) == [peft_adapters.CONFIG, peft_adapters.TENSORS]

    base = torch_model(released)
    prompt = prompt_of(config)
    inputs = torch_inputs(base, config, prompt)
    expected = our_logits(ours, config, prompt)
    with torch.no_grad():
        plain = base(**inputs).logits.numpy()
        model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
        theirs = model(**inputs).logits.numpy()
        again = tmp_path / "saved"
        model.save_pretrained(str(again))
        merged = model.merge_and_unload()(**inputs).logits.numpy()
    scale = np.abs(expected).max()
    assert np.abs(plain - expected).max() > 1e-2 * scale
    np.testing.assert_allclose(theirs, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(merged, expected, atol=1e-5 * scale)

    # What peft saves is what we wrote, and imports as the merged model.
    mine, saved = load_file(folder / peft_adapters.TENSORS), load_file(again / peft_adapters.TENSORS)
    assert mine.keys() == saved.keys()
    for name, tensor in mine.items():
        np.testing.assert_array_equal(tensor, saved[name], err_msg=name)
    from_torch.import_release(released, tmp_path / "imported", adapters=again)
    imported, imported_config, _ = load_params(tmp_path / "imported")
    assert imported_config.lora.rank == 0
    np.testing.assert_allclose(our_logits(imported, config, prompt), expected, atol=1e-5 * scale)
    whole = flatten(load_params(workdir)[0])
    for path, leaf in flatten(imported).items():
        np.testing.assert_allclose(leaf, whole[path], atol=1e-6, err_msg="/".join(path))


def test_training_takes_the_steps_of_peft(config: Config, params: Params, released: epath.Path, tmp_path: Path) -> None:
    """Four steps of AdamW on the loss of one text, from the same adapters."""
    config = configure(config, RELEASED_TARGETS, vocabulary=False)
    ours = jax.tree.map(jnp.asarray, with_adapters(config, params))
    workdir = write_run(config, ours, tmp_path / "run")
    folder = peft_adapters.export(find_starting_point(workdir), tmp_path / "adapters", "")
    base = torch_model(released)
    model = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()  # no dropout, as ours
    tokens = np.random.default_rng(4).integers(0, 300, (1, 24)).astype(np.int32)
    ids = torch.from_numpy(tokens.astype(np.int64))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    trainable, frozen = split(ours, config.train.trainable)
    optimizer = optax.adamw(1e-2, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)

    @jax.jit
    @jax.value_and_grad
    def loss_of(trainable: Params) -> jax.Array:
        whole = unflatten(flatten(trainable) | flatten(frozen))
        hidden = qwen_vl.forward(
            whole,
            config.model,
            config.compute,
            tokens_BL=jnp.asarray(tokens),
            segment_ids_BL=jnp.ones_like(tokens),
            positions_BL=jnp.arange(24, dtype=jnp.int32)[None],
            image_slot_BL=jnp.full_like(tokens, -1),
            images_IHWC=None,
        )
        logits = qwen_vl.logits(whole, config.model, config.compute, hidden)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]))

    state = optimizer.init(trainable)
    losses: list[tuple[float, float]] = []
    for _ in range(4):
        loss, gradients = loss_of(trainable)
        updates, state = optimizer.update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        logits = model(input_ids=ids).logits
        theirs = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
        adam.zero_grad()
        theirs.backward()
        adam.step()
        losses.append((float(loss), float(theirs)))
    for one, other in losses:
        assert one == pytest.approx(other, rel=2e-4)
    assert losses[-1][0] < losses[0][0] - 0.05


@pytest.fixture(scope="module")
def adapters(config: Config, params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    config = configure(config, RELEASED_TARGETS, vocabulary=False)
    workdir = write_run(config, with_adapters(config, params), folder / "run")
    return Path(peft_adapters.export(find_starting_point(workdir), folder / "adapters", ""))


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / peft_adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _retensor(folder: Path, change: Any) -> None:
    tensors = load_file(folder / peft_adapters.TENSORS)
    change(tensors)
    save_file(tensors, folder / peft_adapters.TENSORS)


_QKV = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight"


def test_a_base_of_another_name_is_told_and_the_same_name_elsewhere_is_not(
    config: Config, released: epath.Path, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(adapters, tmp_path / "adapters"))
    in_hub = tmp_path / "models--Qwen--Mine" / "snapshots" / "0123abcd"  # the layout of the hub's cache
    in_hub.parent.mkdir(parents=True)
    in_hub.symlink_to(released)
    cases = [("", released), (None, released), (f"/elsewhere/{released.name.upper()}", released)]
    cases += [("Qwen/Mine", in_hub), ("Qwen/Other", released)]
    for number, (base, release) in enumerate(cases):
        _edit(folder, base_model_name_or_path=base)
        from_torch.import_release(release, tmp_path / str(number), adapters=folder)
        told = f"says that it was trained on {base}, and is merged into {released}" in capsys.readouterr().out
        assert told == (base == "Qwen/Other")


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("file:///a/Mine/", ""),
        ("https://hub/Qwen/Mine", ""),
        ("http://[a/Other", "http://[a/Other"),
        ("[5]", "[5]"),
        ("a" * 10**6, "a" * 500),
    ],
)
def test_any_name_of_a_base_is_told_in_a_line_of_some_length(base: str, told: str, config: Config) -> None:
    opened = peft_adapters.Adapters(epath.Path("x"), base, config.lora, {}, {})
    sentence = peft_adapters.differing_base(opened, "/releases/Mine")
    assert sentence.startswith(f"x says that it was trained on {told}, and") if told else not sentence


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: _edit(folder, peft_type="IA3"), "not of LoRA"),
        (lambda folder: _edit(folder, use_dora=True), "use_dora"),
        (lambda folder: _edit(folder, init_lora_weights="pissa"), "init_lora_weights=pissa"),
        (lambda folder: _edit(folder, use_rslora="yes"), "use_rslora"),
        (lambda folder: _edit(folder, layer_replication=[[0, 1]]), "layer_replication"),
        (lambda folder: _edit(folder, alora_invocation_tokens=[1]), "alora_invocation_tokens"),
        (lambda folder: _edit(folder, a_key_of_the_future=2), "a_key_of_the_future"),
        (lambda folder: _edit(folder, modules_to_save=["wte"]), "names the module wte"),
        (lambda folder: _edit(folder, modules_to_save=5), "modules_to_save=5, not a list of names"),
        (lambda folder: _edit(folder, modules_to_save=[None]), "not a list of names"),
        (lambda folder: _edit(folder, lora_alpha=10**400), "at most 1e"),
        (lambda folder: _edit(folder, r=8), "in the shape"),
        (lambda folder: _edit(folder, r=None), "lacks the numbers"),
        (lambda folder: _edit(folder, rank_pattern={"w1": 2}), "rank_pattern"),
        (lambda folder: _retensor(folder, lambda t: t.pop(_QKV.format(1, "A"))), "lacks the tensor"),
        (
            lambda folder: _retensor(folder, lambda t: t.update({"other.weight": np.zeros(2, np.float32)})),
            "has no place",
        ),
        (
            lambda folder: _retensor(folder, lambda t: t.update({_QKV.format(2, "A"): np.zeros((4, 32), np.float32)})),
            "no place",
        ),
        (
            lambda folder: _retensor(folder, lambda t: t.update({_QKV.format(0, "B"): np.zeros((3, 4), np.float32)})),
            "base model",
        ),
        (lambda folder: _retensor(folder, lambda t: t[_QKV.format(0, "B")].fill(np.nan)), "not finite"),
        (lambda folder: _retensor(folder, lambda t: t[_QKV.format(1, "A")].fill(np.inf)), "not finite"),
        (lambda folder: (folder / peft_adapters.TENSORS).write_bytes(b"{}"), "not a safetensors file"),
        (lambda folder: (folder / peft_adapters.TENSORS).unlink(), "is missing"),
        (lambda folder: (folder / peft_adapters.CONFIG).write_text("[]"), "not of LoRA"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    config: Config, released: epath.Path, adapters: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    folder = tmp_path / "adapters"
    shutil.copytree(adapters, folder)
    spoil(folder)
    with pytest.raises(UserError, match=words):
        from_torch.import_release(released, tmp_path / "run", adapters=folder)
    assert not (tmp_path / "run").exists()


def test_runs_whose_changes_the_files_cannot_hold_are_refused(config: Config, params: Params, tmp_path: Path) -> None:
    plain = dataclasses.replace(config, train=dataclasses.replace(config.train, trainable=("decoder",)))
    write_run(plain, params, tmp_path / "plain")
    with pytest.raises(UserError, match="has no adapters"):
        peft_adapters.export(find_starting_point(tmp_path / "plain"), tmp_path / "out")
    more = configure(config, RELEASED_TARGETS, vocabulary=False)
    more = dataclasses.replace(more, train=dataclasses.replace(more.train, trainable=("lora", "resampler")))
    write_run(more, with_adapters(more, params), tmp_path / "more")
    with pytest.raises(UserError, match="trains resampler/"):
        peft_adapters.export(find_starting_point(tmp_path / "more"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
