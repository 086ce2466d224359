"""Releases: loaded by PyTorch, by the Auto classes and by ourselves; round trips; damage."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from configs import model as model_configs
from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config, ModelConfig, from_config_dict
from qwenvl_jax.conversion import from_torch, manifest, mapping, model_card, parity, released_config, to_torch
from qwenvl_jax.conversion.torch_model.visual import normalise
from qwenvl_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def prompts(config: Config, tokenizer: Any) -> Any:
    return parity.example_prompts(tokenizer, config.model.resampler.queries, config.data.image_size)


def test_pytorch_agrees_with_jax(
    params: dict[str, Any], config: Config, tokenizer: Any, released: Path, prompts: Any
) -> None:
    report = parity.verify(params, config, released, tokenizer, prompts, max_new_tokens=12)
    assert report["passed"] and report["greedy_equal"]
    assert report["logits_relative_error"] <= 1e-5
    assert report["image_embedding_relative_error"] <= 1e-5
    assert report["top1_agreement"] == 1.0
    assert json.loads((released / manifest.PARITY).read_text()) == report
    # The prompts reach what they are there for: several images, and more tokens than the trained length.
    assert max(row["images"] for row in report["details"]) == 3
    assert max(row["tokens"] for row in report["details"]) > config.model.decoder.train_length


def test_parity_finds_a_swapped_pair_of_tensors(
    params: dict[str, Any], config: Config, tokenizer: Any, prompts: Any, tmp_path: Path
) -> None:
    decoder = params["decoder"]
    mlp = decoder["blocks"]["mlp"]
    swapped = {**mlp, "up": mlp["gate"], "gate": mlp["up"]}
    wrong = {**params, "decoder": {**decoder, "blocks": {**decoder["blocks"], "mlp": swapped}}}
    folder = to_torch.release(wrong, config, tmp_path / "wrong")
    report = parity.verify(params, config, folder, tokenizer, prompts[:1], max_new_tokens=2)
    assert not report["passed"] and report["logits_relative_error"] > 1e-2
    assert report["image_embedding_relative_error"] <= 1e-5


def test_auto_classes_load_it_and_batches_with_left_padding_agree(released: Path, prompts: Any, config: Config) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(released), trust_remote_code=True).eval()
    images = [normalise(torch.from_numpy(np.array(p.images_IHWC))) for p in prompts]
    alone = []
    for prompt, pixels in zip(prompts, images, strict=True):
        ids = torch.from_numpy(prompt.tokens_L.astype(np.int64))[None]
        alone.append(_generate(model, ids, torch.ones_like(ids), pixels if len(pixels) else None)[0])
    longest = max(len(prompt.tokens_L) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.tokens_L) :] = torch.from_numpy(prompt.tokens_L.astype(np.int64))
        mask[row, longest - len(prompt.tokens_L) :] = 1
    together = _generate(model, ids, mask, torch.cat(images))
    assert together.tolist() == [row.tolist() for row in alone]


def _generate(model: Any, ids: Any, mask: Any, pixels: Any) -> Any:
    new = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, do_sample=False, max_new_tokens=6, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return new[:, ids.shape[1] :]


def test_the_library_reads_our_shards(released: Path, params: dict[str, Any], config: Config) -> None:
    index = json.loads((released / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 3
    for tensors in (load_file(str(released / shard)) for shard in shards):
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= 60_000
    loaded = {name: array for shard in shards for name, array in load_file(str(released / shard)).items()}
    assert {name: index["weight_map"][name] for name in loaded} == index["weight_map"]
    assert sum(array.nbytes for array in loaded.values()) == index["metadata"]["total_size"]
    np.testing.assert_array_equal(loaded["transformer.wte.weight"], params["decoder"]["embedding"])
    manifest = json.loads((released / "manifest.json").read_text())["tensors"]
    assert {name: tuple(about["shape"]) for name, about in manifest.items()} == {n: a.shape for n, a in loaded.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", to_torch.FORMATS)
def test_release_import_release_gives_the_same_bytes(
    params: dict[str, Any], config: Config, tmp_path: Path, dtype: str, form: str
) -> None:
    options: dict[str, Any] = {"file_format": form, "shard_bytes": 60_000}
    first = to_torch.release(params, config, tmp_path / "first", dtype=dtype, **options)
    from_torch.import_release(first, tmp_path / "run")
    tree, _ = restore.deferred_params(tmp_path / "run")
    imported = from_torch.original_config(tmp_path / "run")
    assert imported
    second = to_torch.release(tree, imported, tmp_path / "second", **options)  # in the dtype it is stored in
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    if dtype == "float32":
        loaded, _, _ = restore.load_params(tmp_path / "run")
        jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("scope", ["decoder", "vision"])
def test_a_component_can_be_released_compared_and_imported_alone(
    params: dict[str, Any], config: Config, tokenizer: Any, prompts: Any, tmp_path: Path, scope: str
) -> None:
    towers = mapping.RELEASE_SCOPES[scope].towers
    folder = to_torch.release({name: params[name] for name in towers}, config, tmp_path / "part", scope=scope)
    report = parity.verify(params, config, folder, tokenizer, prompts, max_new_tokens=4)
    assert report["passed"] and report["component"] == scope
    if scope == "vision":
        assert 0 < report["image_embedding_relative_error"] <= 1e-5
    else:
        assert 0 < report["logits_relative_error"] <= 1e-5
    from_torch.import_towers(config, tmp_path / "run", **{scope: folder})
    loaded, _, _ = restore.load_params(tmp_path / "run", towers=towers)
    jax.tree.map(np.testing.assert_array_equal, loaded, {name: params[name] for name in towers})
    from_torch.import_release(folder, tmp_path / "again")
    assert set(restore.deferred_params(tmp_path / "again")[0]) == set(towers)
    with pytest.raises(UserError, match="name a checkpoint of the whole model"):
        restore.load_params(tmp_path / "again")


def test_in_bfloat16_the_likeliest_tokens_count(
    params: dict[str, Any], config: Config, tokenizer: Any, released: Path, prompts: Any
) -> None:
    report = parity.verify(params, config, released, tokenizer, prompts, max_new_tokens=2, compare_in="bfloat16")
    assert report["required_top1_agreement"] == parity.TOP1_AGREEMENT
    assert report["passed"] == (report["top1_agreement"] >= parity.TOP1_AGREEMENT)
    assert report["top1_agreement"] > 0.9 and report["logits_relative_error"] > 1e-4


def test_full_size_config_is_the_released_one() -> None:
    model = from_config_dict(ModelConfig, model_configs.qwen_vl_9b6())
    content = released_config.released_config(model, image_size=448, image_start_id=151857, dtype="bfloat16")
    assert content["intermediate_size"] == 22016 and content["kv_channels"] == 128
    assert content["max_position_embeddings"] == 8192 and content["seq_length"] == 2048
    assert content["rotary_emb_base"] == 10000 and isinstance(content["rotary_emb_base"], int)
    assert content["visual"] == {
        "heads": 16, "image_size": 448, "image_start_id": 151857, "layers": 48, "mlp_ratio": 4.9231,
        "output_dim": 4096, "patch_size": 14, "width": 1664,
    }  # fmt: skip
    assert dataclasses.replace(released_config.model_from_released(content, "config.json"), name=model.name) == model
    assert released_config.generation_config(stage="multitask", end_id=151643) == {
        "chat_format": "raw", "do_sample": True, "eos_token_id": 151643, "pad_token_id": 151643,
        "max_new_tokens": 512, "max_window_size": 6144, "top_k": 0, "top_p": 0.5,
    }  # fmt: skip
    assert released_config.generation_config(stage="sft", end_id=151643)["top_p"] == 0.3


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _shard(folder: Path, name: str = "transformer.wte.weight") -> Any:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def _edit_header(path: Path, change: Any) -> None:
    """Changes a shard's JSON header and leaves its tensors as they are."""
    payload = path.read_bytes()
    (length,) = struct.unpack("<Q", payload[:8])
    header = json.loads(payload[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload[8 + length :])


def _rename(old: Any, new: Any) -> Any:
    def change(folder: Path) -> None:
        shard = _shard(folder, old)
        _edit_header(shard, lambda header: header.__setitem__(new, header.pop(old)))
        _edit(
            folder / "model.safetensors.index.json",
            lambda index: index["weight_map"].__setitem__(new, index["weight_map"].pop(old)),
        )

    return change


DAMAGES = {
    "truncated shard": (lambda f: _shard(f).write_bytes(_shard(f).read_bytes()[:-100]), "truncated"),
    "empty shard": (lambda f: _shard(f).write_bytes(b""), "not a safetensors file"),
    "not a shard": (lambda f: _shard(f).write_bytes(b"\xff" * 400), "not a safetensors file"),
    "missing shard": (lambda f: _shard(f).unlink(), "1 of the .* shards that .* names are missing; copy model-"),
    "misnamed tensor": (
        _rename("transformer.ln_f.weight", "transformer.ln_g.weight"),
        "lacks the tensor transformer.ln_f.weight.*did you mean 'transformer.ln_g.weight'",
    ),
    "misshapen tensor": (
        lambda f: _edit_header(_shard(f), lambda h: h["transformer.wte.weight"]["shape"].reverse()),
        r"transformer.wte.weight .* has shape",
    ),
    "shape against bytes": (
        lambda f: _edit_header(_shard(f), lambda h: h["transformer.wte.weight"]["shape"].append(2)),
        "does not match its shape",
    ),
    "index names another shard": (
        lambda f: _edit(
            f / "model.safetensors.index.json",
            lambda i: i["weight_map"].__setitem__("transformer.wte.weight", i["weight_map"]["lm_head.weight"]),
        ),
        "transformer.wte.weight",
    ),
    "index without a map": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "no weight_map",
    ),
    "config of another size": (
        lambda f: _edit(f / "config.json", lambda c: c.__setitem__("hidden_size", 64)),
        "config.json",
    ),
    "config without a key": (lambda f: _edit(f / "config.json", lambda c: c.pop("visual")), "lacks the key 'visual'"),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "missing vocabulary": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_release_is_refused_in_one_sentence(released: Path, tmp_path: Path, damage: Any) -> None:
    change, message = damage
    folder = shutil.copytree(released, tmp_path / "copy")
    change(folder)
    with pytest.raises(UserError, match=message):
        from_torch.import_release(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_changed_bytes_are_found_by_the_manifest(released: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(released, tmp_path / "copy")
    shard = _shard(folder)
    payload = bytearray(shard.read_bytes())
    payload[-1] ^= 1
    shard.write_bytes(bytes(payload))
    with pytest.raises(UserError, match="not those of the manifest"):
        manifest.verify_manifest(folder)


def test_nothing_is_left_of_a_release_that_fails(params: dict[str, Any], config: Config, tmp_path: Path) -> None:
    broken = {**params, "vit": {key: value for key, value in params["vit"].items() if key != "proj"}}
    with pytest.raises(UserError, match="vit/proj"):
        to_torch.release(broken, config, tmp_path / "a")
    gone = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, path="/nowhere.model"))
    with pytest.raises(UserError, match="nowhere"):
        to_torch.release(params, gone, tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="is not a release"):
        to_torch.release(params, config, tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["verify", "--release=/nowhere"], "/nowhere does not exist"),
        (["relese"], "did you mean 'release'"),
    ],
)
def test_mistakes_on_the_command_line(arguments: Any, message: str) -> None:
    run = subprocess.run([sys.executable, "-m", "qwenvl_jax.convert", *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and message in run.stderr and run.stderr.count("\n") == 1


def test_the_card_names_the_versions_that_are_tested(released: Path) -> None:
    """Those that the requirements pin; and what it says to type works with remote code."""
    root = Path(__file__).parents[2]
    for name, version in zip(("convert", "convert-newest"), model_card.TESTED, strict=True):
        assert f"transformers=={version}" in (root / f"requirements-{name}.txt").read_text()
        assert version in (released / "README.md").read_text()
