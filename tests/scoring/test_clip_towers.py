"""Both towers of CLIP against OpenCLIP's, by golden files, and the import of its checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from safetensors.numpy import save_file

from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.from_openclip import load_clip
from qwenvl_jax.models import clip
from qwenvl_jax.models.clip import CLIP_MODELS, ClipConfig
from qwenvl_jax.models.qwen_vl import INITIALISATION
from qwenvl_jax.params import flatten_paths
from qwenvl_jax.runtime.errors import UserError
from tests.scoring.clip_files import (
    GOLDEN,
    openclip_tensors,
    random_weights,
    tensors_of,
    tiny_config,
    tiny_state,
    with_layers,
    write_model,
    write_tiny,
)

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14", "ViT-B-32-quickgelu")
# The largest difference of one number of an embedding of length 1; float32 alone gives about 1e-6.
TOLERANCE = 1e-5


encode_images = jax.jit(clip.encode_images, static_argnums=(1, 2))
encode_texts = jax.jit(clip.encode_texts, static_argnums=(1, 2))


def embeddings(path: Path, config: ClipConfig, context: int = 77) -> tuple[np.ndarray, np.ndarray]:
    params = jax.tree.map(jnp.asarray, load_clip(path, config))
    compute = dataclasses.replace(INITIALISATION, unroll_layers=config.vision.layers <= 2)
    images = random_weights.random_images(2, config.image_size)
    tokens = random_weights.random_tokens()[:, :context].astype(np.int32)
    return (
        np.asarray(encode_images(params, config, compute, images)),
        np.asarray(encode_texts(params, config, compute, tokens)),
    )


def check_golden(folder: Path, name: str, layers: int | None) -> None:
    path, config = write_model(folder, name, layers)
    images, texts = embeddings(path, config)
    golden = np.load(GOLDEN / "towers.npz")
    expected_images = golden[f"{name}/{layers or 'all'}/images"]
    expected_texts = golden[f"{name}/{layers or 'all'}/texts"]
    difference = max(np.abs(images - expected_images).max(), np.abs(texts - expected_texts).max())
    print(f"{name}, {layers or 'all'} blocks: largest difference {difference:.1e}")
    np.testing.assert_allclose(images, expected_images, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(texts, expected_texts, atol=TOLERANCE, rtol=0)


def test_two_blocks_of_the_smallest_model_compute_what_openclip_does(tmp_path: Path) -> None:
    check_golden(tmp_path, "ViT-B-32", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS[1:])
def test_two_blocks_of_each_model_compute_what_openclip_does(name: str, tmp_path: Path) -> None:
    check_golden(tmp_path, name, 2)


@pytest.mark.slow
def test_the_whole_smallest_model_computes_what_openclip_does(tmp_path: Path) -> None:
    check_golden(tmp_path, "ViT-B-32", None)


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_every_tensor_of_the_full_models(name: str) -> None:
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_paths(clip.abstract_params(CLIP_MODELS[name])).items()}
    ours = {tensor.name: tensor.shape for tensor in mapping.tensors_of(shapes, mapping.CLIP_RULES)}
    theirs = dict(tensors_of(name, None))
    left_out = {tensor for tensor in theirs if mapping.CLIP_LEFT_OUT.fullmatch(tensor)}
    assert left_out == {"logit_scale"}
    assert ours == {tensor: shape for tensor, shape in theirs.items() if tensor not in left_out}
    assert openclip_tensors()[name]["visual.transformer.resblocks.{layer}.ln_1.weight"][1] == (
        CLIP_MODELS[name].vision.layers
    )


@pytest.fixture(scope="module")
def tiny() -> ClipConfig:
    return tiny_config(vocab_size=100)


@pytest.fixture(scope="module")
def state(tiny: ClipConfig) -> dict[str, np.ndarray]:
    return tiny_state(tiny)


def test_a_file_of_pytorch_gives_the_same_parameters_as_safetensors(
    tiny: ClipConfig, state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "open_clip_model.safetensors")
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, tmp_path / "weights.bin")
    half = {f"module.{name}": torch.from_numpy(array).half() for name, array in state.items()}
    torch.save({"epoch": 1, "state_dict": half}, tmp_path / "epoch_1.pt")
    expected = load_clip(tmp_path, tiny)
    jax.tree.map(np.testing.assert_array_equal, load_clip(tmp_path / "weights.bin", tiny), expected)
    halves = load_clip(tmp_path / "epoch_1.pt", tiny)
    assert {leaf.dtype for leaf in jax.tree.leaves(halves)} == {np.dtype(np.float32)}
    jax.tree.map(lambda ours, exact: np.testing.assert_allclose(ours, exact, atol=2e-3), halves, expected)


def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(
    tiny: ClipConfig, state: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: array for name, array in state.items() if name != "text_projection"}, path)
    with pytest.raises(UserError, match="lacks the tensor text_projection"):
        load_clip(path, tiny)
    save_file(state | {"visual.head.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match=r"has the tensor visual.head.weight, which the model's config does not have"):
        load_clip(path, tiny)
    save_file(state, path)
    with pytest.raises(
        UserError, match=r"ln_final.bias .* has shape \(12,\), but the model's config needs \(11,\)|has"
    ):
        load_clip(path, with_layers(tiny, 1))
    with pytest.raises(UserError, match="does not exist"):
        load_clip(epath.Path(tmp_path) / "nowhere", tiny)


def test_ids_after_the_end_of_a_text_have_no_effect(tiny: ClipConfig, tmp_path: Path) -> None:
    params = load_clip(write_tiny(tmp_path, tiny), tiny)
    tokens = np.zeros((1, 77), np.int32)
    tokens[0, :5] = [98, 3, 4, 5, 99]

    def encode(length: int = 77) -> np.ndarray:
        return np.asarray(encode_texts(params, tiny, INITIALISATION, tokens[:, :length]))

    padded = encode()
    tokens[0, 5:] = 7
    np.testing.assert_allclose(encode(), padded, atol=1e-6)
    np.testing.assert_allclose(encode(8), padded, atol=1e-6)
    tokens[0, 3] = 6
    assert np.abs(encode() - padded).max() > 1e-3
