"""The benchmarks against PyTorch: both sides compute the same, and the scripts run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import model as models
from qwenvl_jax import config as config_lib

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def gpu_step(*options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script so that it sees no GPU, even if there is one."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(BENCHMARKS / "gpu_step.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_the_spread_of_the_quickstart_counts_finished_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spread = importlib.import_module("quickstart_spread")
    with pytest.raises(SystemExit, match="has no finished run"):
        spread.spread(tmp_path)
    whole = {stage: dict.fromkeys(spread.FIGURES, 0.5) for stage in spread.quickstart.STAGES}
    higher = {stage: dict.fromkeys(spread.FIGURES, 0.75) for stage in whole}
    killed = {**whole, "stage3_sft": {"referring_acc": 0.1}}
    for name, scores in {"dejavu_0": whole, "dejavu_1": killed, "liberation_0": higher, "taste": {"taste": {}}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
    answer = spread.spread(tmp_path)
    assert answer["runs"] == ["dejavu_0", "liberation_0"]
    assert answer["stage3_sft"]["referring_acc"] == [0.5, 0.75]
    (command,) = [part for part in spread.commands(tmp_path, "liberation", 2, 1.0) if "data_pipelines" in part[0]]
    assert "--fonts=liberation" in command


def tiny() -> config_lib.Config:
    """Two packed samples per row, two microbatches, and an optimiser in which everything shows."""
    return config_lib.Config(
        model=config_lib.from_config_dict(config_lib.ModelConfig, dict(models.tiny().items())),
        tokenizer=config_lib.TokenizerConfig("qwen", ""),
        data=config_lib.DataConfig((), 56, 32, 4, 2, 2.0, 1, 0),
        optimizer=config_lib.OptimizerConfig(1e-2, 1e-2, 0, 0.9, 0.98, 1e-6, 0.5, 0.05, 0.5),
        init=config_lib.InitConfig("", "", "", ""),
        train=config_lib.TrainConfig("multitask", config_lib.COMPONENTS, 100, 0, 10, 100, 1),
        mesh=config_lib.MeshConfig(1, 1, 1, 1, 0),
        compute=config_lib.ComputeConfig("float32", "float32", "xla", "matmuls_saved", "matmuls_saved", False, 64),
    )


def put(target: Any, values: Any) -> None:
    """Values into a parameter of PyTorch."""
    import torch

    with torch.no_grad():
        target.copy_(torch.from_numpy(np.array(values)))


def put_linear(target: Any, tree: Any, inputs: int) -> None:
    """A kernel whose first axes, `inputs` long together, are summed over, and its bias if there is one."""
    put(target.weight, np.asarray(tree["kernel"]).reshape(inputs, -1).T)
    if "bias" in tree:
        put(target.bias, np.asarray(tree["bias"]).reshape(-1))


def put_norm(target: Any, tree: Any) -> None:
    """Scale, and bias if there is one."""
    put(target.weight, tree["scale"])
    if "bias" in tree:
        put(target.bias, tree["bias"])


def put_qkv(attention: Any, tree: Any, inputs: int) -> None:
    """Queries, keys and values, which the tree holds in one kernel [inputs, 3, heads, size]."""
    for index, name in enumerate("qkv"):
        part = {"kernel": tree["kernel"][:, index], "bias": tree["bias"][index]}
        put_linear(getattr(attention, f"{name}_proj"), part, inputs)


def layer(tree: Any, index: int) -> Any:
    """The parameters of one of the stacked layers."""
    return {key: layer(value, index) if isinstance(value, dict) else value[index] for key, value in tree.items()}


def copy_vit(vit: Any, peer: Any) -> None:
    width = vit["position_embedding"].shape[1]
    put(peer.patches.conv.weight, np.asarray(vit["patch_embed"]["kernel"]).transpose(3, 2, 0, 1))
    put(peer.patches.positions, vit["position_embedding"])
    put_norm(peer.patches.norm, vit["ln_pre"])
    for index, block in enumerate(peer.vit_blocks):
        params = layer(vit["blocks"], index)
        put_norm(block.layer_norm1, params["ln_1"])
        put_norm(block.layer_norm2, params["ln_2"])
        put_qkv(block.self_attn, params["attn"]["qkv"], width)
        put_linear(block.self_attn.out_proj, params["attn"]["out"], width)
        put_linear(block.mlp.fc1, params["mlp"]["up"], width)
        put_linear(block.mlp.fc2, params["mlp"]["down"], params["mlp"]["down"]["kernel"].shape[0])
    put_norm(peer.vit_head.norm, vit["ln_post"])
    put(peer.vit_head.proj.weight, np.asarray(vit["proj"]).T)


def copy_resampler(resampler: Any, peer: Any, vit_width: int, width: int) -> None:
    put(peer.resampler.query, resampler["query"])
    put_linear(peer.resampler.kv_proj, resampler["kv_proj"], vit_width)
    put_norm(peer.resampler.ln_q, resampler["ln_q"])
    put_norm(peer.resampler.ln_kv, resampler["ln_kv"])
    inputs = [resampler["attn"][name] for name in ("query", "key", "value")]
    kernels = [np.asarray(tree["kernel"]).reshape(width, -1).T for tree in inputs]
    biases = [np.asarray(tree["bias"]).reshape(-1) for tree in inputs]
    put(peer.resampler.attn.in_proj_weight, np.concatenate(kernels))
    put(peer.resampler.attn.in_proj_bias, np.concatenate(biases))
    put_linear(peer.resampler.attn.out_proj, resampler["attn"]["out"], width)


def copy_decoder(decoder: Any, peer: Any, width: int) -> None:
    put(peer.embedding.weight, decoder["embedding"])
    for index, block in enumerate(peer.blocks):
        params = layer(decoder["blocks"], index)
        put_norm(block.input_layernorm, params["ln_1"])
        put_norm(block.post_attention_layernorm, params["ln_2"])
        put_qkv(block.self_attn, params["attn"]["qkv"], width)
        put_linear(block.self_attn.o_proj, params["attn"]["out"], width)
        put_linear(block.mlp.up_proj, params["mlp"]["up"], width)
        put_linear(block.mlp.gate_proj, params["mlp"]["gate"], width)
        put_linear(block.mlp.down_proj, params["mlp"]["down"], params["mlp"]["down"]["kernel"].shape[0])
    put_norm(peer.head.norm, decoder["ln_f"])
    put(peer.head.lm_head.weight, np.asarray(decoder["lm_head"]).T)


def copy_weights(params: Any, peer: Any) -> None:
    """Copies the parameters of this code into the modules of `torch_peer`."""
    vit_width = params["vit"]["position_embedding"].shape[1]
    width = params["decoder"]["embedding"].shape[1]
    copy_vit(params["vit"], peer)
    copy_resampler(params["resampler"], peer, vit_width, width)
    copy_decoder(params["decoder"], peer, width)


@pytest.mark.slow
def test_both_sides_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights the losses of four steps agree: model, targets, clipping, decay, rates, optimiser."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import jax
    import steps
    import torch_peer

    from qwenvl_jax.models import qwen_vl

    config = tiny()
    batch = steps.full_batch(config)
    ours = steps.jax_side(config, batch)
    peer = torch_peer.Peer(config.model)
    copy_weights(jax.device_get(qwen_vl.init_params(config.model, jax.random.key(0))), peer)
    monkeypatch.setattr(torch_peer, "Peer", lambda model: peer)
    theirs = torch_peer.torch_side(config, batch, compiled=False)
    assert ours.trained == theirs.trained
    losses = np.array([(ours.step(), theirs.step()) for _ in range(4)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=2e-4)
    assert losses[-1, 0] < losses[0, 0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2", "3", "lora"])
def test_gpu_step_in_miniature(stage: str, tmp_path: Path) -> None:
    """Every line except CUDA's. Only one stage compiles PyTorch, because its C++ takes a minute."""
    sides = ["jax", "torch", "torch_compile"] if stage == "1" else ["jax", "torch"]
    options = ("--size=tiny", "--repeat=1", "--steps=2", "--accumulation=2")
    process = gpu_step(*options, f"--stage={stage}", f"--sides={','.join(sides)}", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert (result["stage"], result["size"], result["device"], result["devices"]) == (stage, "tiny", "cpu", 1)
    assert result["tokens_per_step"] == 2 * 2 * 64
    assert result["images_per_step"] == 4 * (1 if stage == "1" else 4)
    assert result["first_moment_dtype"] == ("bfloat16" if stage == "2" else "float32")
    assert list(result["sides"]) == sides
    for side in result["sides"].values():
        assert 0 < side["seconds_best"] <= side["seconds_median"]
        assert side["tokens_per_second"] > 0 and side["images_per_second"] > 0 and side["peak_gib"] > 0
        assert side["mfu"] is None and len(side["seconds"][0]) == 2
        assert side["loss"] == pytest.approx(np.log(512), rel=0.1)
    assert result["jax_time_over_best_pytorch"] > 0


def test_gpu_step_wants_a_gpu(tmp_path: Path) -> None:
    process = gpu_step("--side=torch", folder=tmp_path)
    assert process.returncode == 2
    assert "PyTorch sees no GPU" in process.stderr


def test_the_loop_can_be_cut_from_its_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    loop_overhead = importlib.import_module("loop_overhead")
    small_stage = importlib.import_module("small_stage")
    assert "watching" not in loop_overhead.loop_without_evaluation().__code__.co_varnames
    config = config_lib.load_config(small_stage.get_config("folder"))
    assert config.evaluation.every == 0 and config.model.decoder.layers == small_stage.LAYERS


@pytest.mark.slow
def test_the_engine_and_transformers_give_the_same_answers() -> None:
    """To clients at once with pictures, also if `transformers` takes several requests as a padded batch."""
    command = [
        sys.executable,
        str(BENCHMARKS / "serving.py"),
        "--clients=4",
        "--questions=1",
        "--slots=3",
        "--repeat=1",
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    report = json.loads(run.stdout.splitlines()[-1])
    assert [report[side]["equal"] for side in ("engine", "single", "batches")] == [4, 4, 4]
    assert report["engine"]["tokens_per_second"] > 0
