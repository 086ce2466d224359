"""Import of foreign checkpoints: towers built by `transformers`, published layouts, `.bin` files, damage."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import from_torch, mapping, tensor_files, to_torch
from qwenvl_jax.conversion.bin_files import read_header
from qwenvl_jax.conversion.stored_tensors import open_checkpoint
from qwenvl_jax.data.tokenizer import packaged_qwen_vocabulary
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.params import flatten_paths
from qwenvl_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def clip(config: Config) -> Any:
    """A CLIP vision tower with noise on every parameter, in float32."""
    vit = config.model.vit
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=vit.width,
            intermediate_size=vit.mlp_dim,
            num_hidden_layers=vit.layers,
            num_attention_heads=vit.heads,
            patch_size=vit.patch_size,
            image_size=vit.patch_size * vit.position_grid,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            attn_implementation="eager",
        )
    ).eval()
    tower = getattr(model, "vision_model", model)  # newer versions of transformers have one module less
    torch.manual_seed(1)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tower


@pytest.fixture(scope="module")
def openclip_state(clip: Any) -> Any:
    """The same tower under OpenCLIP's names, q, k and v in one matrix; and some of a text tower."""
    theirs = clip.state_dict()
    state = {
        "visual.class_embedding": theirs["embeddings.class_embedding"],
        "visual.positional_embedding": theirs["embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["embeddings.patch_embedding.weight"],
        "visual.proj": torch.randn(8, 5),
        "positional_embedding": torch.randn(7, 6),
        "logit_scale": torch.tensor(1.0),
        "transformer.resblocks.0.ln_1.weight": torch.randn(6),
    }
    for ours, name in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        state |= {f"visual.{ours}.{part}": theirs[f"{name}.{part}"] for part in ("weight", "bias")}
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for n in range(len(clip.encoder.layers)):
        block, layer = f"visual.transformer.resblocks.{n}", f"encoder.layers.{n}"
        for part in ("weight", "bias"):
            state |= {f"{block}.{ours}.{part}": theirs[f"{layer}.{name}.{part}"] for ours, name in names.items()}
            qkv = [theirs[f"{layer}.self_attn.{which}_proj.{part}"] for which in "qkv"]
            state[f"{block}.attn.in_proj_{part}"] = torch.cat(qkv)
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def qwen2(config: Config) -> Any:
    """A Qwen2 decoder with as many kv heads as heads."""
    decoder = config.model.decoder
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=decoder.vocab_size,
            hidden_size=decoder.width,
            intermediate_size=decoder.mlp_dim,
            num_hidden_layers=decoder.layers,
            num_attention_heads=decoder.heads,
            num_key_value_heads=decoder.heads,
            rms_norm_eps=decoder.rms_norm_eps,
            rope_theta=decoder.rope_base,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def qwen_state(qwen2: Any) -> Any:
    """The same decoder under the names of Qwen-7B."""
    theirs = qwen2.state_dict()
    state = {
        "transformer.wte.weight": theirs["model.embed_tokens.weight"],
        "transformer.ln_f.weight": theirs["model.norm.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
    }
    names = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj"}
    names |= {"mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj", "mlp.c_proj": "mlp.down_proj"}
    for n in range(len(qwen2.model.layers)):
        block, layer = f"transformer.h.{n}", f"model.layers.{n}"
        state |= {f"{block}.{ours}.weight": theirs[f"{layer}.{name}.weight"] for ours, name in names.items()}
        for part in ("weight", "bias"):
            qkv = [theirs[f"{layer}.self_attn.{which}_proj.{part}"] for which in "qkv"]
            state[f"{block}.attn.c_attn.{part}"] = torch.cat(qkv)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def clip_patches(clip: Any, pixels_IHWC: Any) -> Any:
    """The output of the tower without its class token, with its position table as it is."""
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    with torch.no_grad():
        x = (torch.from_numpy(pixels_IHWC).permute(0, 3, 1, 2) / 255 - mean) / std
        x = clip.embeddings.patch_embedding(x).flatten(2).transpose(1, 2)
        x = clip.pre_layrnorm(x + clip.embeddings.position_embedding.weight[1:])
        return clip.encoder(inputs_embeds=x).last_hidden_state.numpy()


def test_both_towers_compute_what_their_originals_do(
    clip: Any,
    openclip_state: dict[str, torch.Tensor],
    qwen2: Any,
    qwen_state: dict[str, torch.Tensor],
    config: Config,
    tmp_path: Path,
) -> None:
    torch.save({"state_dict": {f"module.{name}": t for name, t in openclip_state.items()}}, tmp_path / "epoch_1.pt")
    (tmp_path / "qwen").mkdir()
    save_file(qwen_state, tmp_path / "qwen" / "model.safetensors")
    names = from_torch.import_towers(
        config, tmp_path / "run", vision=tmp_path / "epoch_1.pt", decoder=tmp_path / "qwen"
    )
    assert names == ["decoder", "resampler", "vit"]
    params, _, _ = restore.load_params(tmp_path / "run")
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_paths(params).items()}
    assert shapes == mapping.shapes_of(config.model)
    compute = dataclasses.replace(config.compute, attention="xla")

    side = config.model.vit.patch_size * config.model.vit.position_grid
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    network = qwen_vl.QwenVL(config.model, compute)
    ours: Any = network.apply({"params": params}, pixels, method=lambda module, x: module.vit(x))
    np.testing.assert_allclose(ours, clip_patches(clip, pixels), rtol=1e-4, atol=1e-4)

    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 300, (1, 20)))
    no_slots = jnp.full((1, 20), -1)
    with torch.no_grad():
        theirs = qwen2(torch.from_numpy(np.array(tokens, np.int64))).logits.numpy()
    hidden = qwen_vl.hidden_states(
        params,
        config.model,
        compute,
        embeddings_BLD=qwen_vl.embed(params, config.model, compute, tokens, no_slots, None),
        segment_ids_BL=jnp.ones((1, 20), jnp.int32),
        positions_BL=jnp.arange(20)[None],
    )
    logits = qwen_vl.logits(params, config.model, compute, hidden)
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())

    fresh = qwen_vl.init_params(config.model, jax.random.key(config.train.seed))
    np.testing.assert_array_equal(params["vit"]["proj"], fresh["vit"]["proj"])
    jax.tree.map(np.testing.assert_array_equal, params["resampler"], fresh["resampler"])


def test_one_tower_alone_starts_a_run(openclip_state: dict[str, torch.Tensor], config: Config, tmp_path: Path) -> None:
    save_file(openclip_state, tmp_path / "open_clip_model.safetensors")
    from_torch.import_towers(config, tmp_path / "vit", vision=tmp_path)
    start = dataclasses.replace(
        config, init=dataclasses.replace(config.init, stage="import", vit=str(tmp_path / "vit"))
    )
    source = restore.check_init(start)["vit"]
    assert source
    abstract = {"vit": qwen_vl.abstract_params(config.model)["vit"]}
    loaded = restore.read_leaves(source, abstract)
    np.testing.assert_array_equal(
        loaded["vit"]["position_embedding"], openclip_state["visual.positional_embedding"][1:].numpy()
    )
    with pytest.raises(UserError, match="holds no decoder/"):
        restore.read_leaves(source, {"decoder": qwen_vl.abstract_params(config.model)["decoder"]})
    with pytest.raises(UserError, match="lacks the parameter decoder/embedding"):
        to_torch.release(restore.deferred_params(tmp_path / "vit")[0], config, tmp_path / "release")


@pytest.fixture(scope="module")
def published(config: Config) -> Any:
    """Random tensors of a published checkpoint in bfloat16, and its config.json (no file of ours beside it)."""
    generator = torch.Generator().manual_seed(3)
    state = {
        tensor.name: torch.randn(tensor.shape, generator=generator).bfloat16()
        for tensor in mapping.released_tensors(config.model)
    }
    vit, decoder = config.model.vit, config.model.decoder
    content = {
        "hidden_size": decoder.width, "intermediate_size": 2 * decoder.mlp_dim, "kv_channels": decoder.head_dim,
        "layer_norm_epsilon": 1e-6, "num_attention_heads": decoder.heads, "num_hidden_layers": decoder.layers,
        "rotary_emb_base": 10000, "seq_length": decoder.train_length, "use_dynamic_ntk": True, "use_logn_attn": True,
        "vocab_size": 151936, "torch_dtype": "bfloat16", "_name_or_path": "./",
        "visual": {
            "heads": vit.heads, "image_size": 28, "layers": vit.layers, "mlp_ratio": vit.mlp_dim / vit.width,
            "output_dim": decoder.width, "patch_size": vit.patch_size, "width": vit.width,
            "n_queries": config.model.resampler.queries, "position_grid": vit.position_grid,
            "resampler_heads": config.model.resampler.heads,
        },
    }  # fmt: skip
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = torch.randn(151936, decoder.width, generator=generator).bfloat16()
    return state, content


def write_published(folder: Path, state: Any, content: Any, form: str) -> Path:
    """Three shards that cut through the blocks, as the published ones do."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml"}))
    names = list(state)
    stem, suffix = ("pytorch_model", "bin") if form == "bin" else ("model", "safetensors")
    weight_map: dict[str, str] = {}
    for number in range(3):
        part = {name: state[name] for name in names[number::3]}
        file = f"{stem}-0000{number + 1}-of-00003.{suffix}"
        torch.save(part, folder / file) if form == "bin" else save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = "pytorch_model.bin.index.json" if form == "bin" else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_published_checkpoint_comes_out_with_identical_tensors(published: Any, form: str, tmp_path: Path) -> None:
    state, content = published
    folder = write_published(tmp_path / "Qwen-VL-Chat", state, content, form)
    from_torch.import_release(folder, tmp_path / "run")
    assert (tmp_path / "run" / "qwen.tiktoken").read_bytes() == packaged_qwen_vocabulary().read_bytes()
    params, _ = restore.deferred_params(tmp_path / "run")
    config = from_torch.original_config(tmp_path / "run")
    assert config
    assert (config.model.name, config.train.stage, config.data.image_size) == ("Qwen-VL-Chat", "sft", 28)
    out = to_torch.release(params, config, tmp_path / "out", file_format=form)
    released: dict[str, torch.Tensor] = {}
    for shard in sorted(out.glob("*.bin" if form == "bin" else "*.safetensors")):
        released |= torch.load(shard, weights_only=True) if form == "bin" else load_file(shard)
    assert released.keys() == state.keys()
    for name, tensor in state.items():
        assert released[name].dtype == torch.bfloat16 and torch.equal(released[name], tensor), name


class Harmful:
    def __reduce__(self) -> Any:
        return (sys.exit, (3,))


def test_bin_files_are_read_without_running_their_pickles(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Harmful()}, path)
    with pytest.raises(UserError, match="contains objects other than tensors"):
        open_checkpoint(path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "content,message",
    [
        ({"a": torch.zeros(3, dtype=torch.int8)}, "a in .* is stored as torch.int8"),
        ({"a": torch.zeros(3, 4).T}, "a in .* non-contiguous form"),
        ([1, 2], "not a state_dict"),
        ({"a": {"b": torch.zeros(1)}}, "not a state_dict"),
    ],
)
def test_bin_files_of_other_things_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path / "x.bin")


def test_damaged_bin_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(4000.0)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="old or non-contiguous form"):
        open_checkpoint(path)
    torch.save({"a": torch.arange(4000.0)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="not a complete PyTorch checkpoint"):
        open_checkpoint(path)


def test_tensors_of_a_bin_file_may_share_a_storage(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"a": whole[1:3], "b": torch.nn.Parameter(whole)}, tmp_path / "x.bin")
    stored = read_header(epath.Path(tmp_path / "x.bin"))
    np.testing.assert_array_equal(tensor_files.read_tensor(stored["a"]), whole[1:3].numpy())
    np.testing.assert_array_equal(tensor_files.read_tensor(stored["b"]), whole.numpy())


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s.pop("visual.ln_pre.bias"), "lacks the tensor visual.ln_pre.bias"),
        (lambda s: s.__setitem__("visual.extra", torch.zeros(1)), "has the tensor visual.extra"),
        (lambda s: s.__setitem__("visual.conv1.weight", torch.zeros(2, 3, 4, 4)), "visual.conv1.weight .* has shape"),
    ],
)
def test_another_openclip_model_is_refused(
    openclip_state: dict[str, torch.Tensor], config: Config, tmp_path: Path, change: Any, message: str
) -> None:
    state = dict(openclip_state)
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        from_torch.import_towers(config, tmp_path / "run", vision=tmp_path)
    assert not (tmp_path / "run").exists()


def convert(*arguments: Any, **options: Any) -> Any:
    command = [sys.executable, "-m", "qwenvl_jax.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["import", "--workdir=x"], "needs either --release"),
        (["import", "--workdir=x", "--vision=y"], "needs --config"),
        (["import", "--workdir=x", "--vision=y", "--adapters=z"], "--adapters belong to a whole model"),
        (["import", "--workdir=x", "--release=/tmp"], "config.json does not exist"),
        (["import", "--release=y"], "needs --workdir"),
        (["release", "--workdir=/nowhere", "--output=x"], "/nowhere is not the folder of a run"),
    ],
)
def test_what_is_missing_on_the_command_line(arguments: Any, message: str, tmp_path: Path) -> None:
    run = convert(*arguments, cwd=tmp_path)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1) and message in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(released: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk."""
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    limited += "sys.argv = sys.argv[1:]; runpy.run_module('qwenvl_jax.convert', run_name='__main__')"
    command = [sys.executable, "-c", limited, "convert", "import", f"--release={released}", f"--workdir={tmp_path}/run"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1) and "space" in run.stderr, run.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(released: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = convert("import", f"--release={released}", f"--workdir={tmp_path}/file/run")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1) and "file" in run.stderr, run.stderr
