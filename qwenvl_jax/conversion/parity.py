"""Proof of a release: the same images and prompts through JAX and through the release in PyTorch, in float32.

Writes `parity.json` beside the release: image embeddings, logits, top-1 agreement, greedy text.

Shape suffixes: I images, H/W pixels, Q queries, L tokens, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from qwenvl_jax.config import ComputeConfig, Config, ModelConfig
from qwenvl_jax.conversion import released_config
from qwenvl_jax.conversion.from_torch import verify_manifest
from qwenvl_jax.data.examples import Prompt, make_prompt
from qwenvl_jax.data.formats import Piece, chat_pieces
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.decode import generate
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

PARITY = "parity.json"
TOLERANCE = 1e-4


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; infinite where either is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.max(np.abs(ours - theirs)) / max(float(np.max(np.abs(theirs))), 1e-30))


def example_prompts(tokenizer: Tokenizer, queries: int, image_size: int) -> list[Prompt]:
    """Prompts of every kind about drawn pictures: captions, a question, a phrase, text, and a two-picture dialogue."""
    pictures = tuple(_picture(seed, image_size + 11 * seed) for seed in range(3))
    image = Piece("image", 0)
    dialogue: list[dict[str, Any]] = [
        {"role": "user", "parts": [{"image": 0}, {"image": 1}, {"text": "What is different?"}]},
        {"role": "assistant", "parts": [{"text": "The second one is darker."}]},
        {"role": "user", "parts": [{"image": 2}, {"text": "And here?"}]},
    ]
    pieces: list[list[Piece]] = [
        [image, Piece("text", "Generate the caption in English:")],
        [image, Piece("text", "How many colours are there? Answer:")],
        [image, Piece("special", "<ref>"), Piece("text", "the red square"), Piece("special", "</ref>")],
        [image, Piece("text", "OCR with grounding: ")],
        [Piece("text", "A text without any picture, 一二三")],
        chat_pieces(dialogue, open_end=True),
    ]
    return [make_prompt(each, pictures, tokenizer, queries, image_size) for each in pieces]


def _picture(seed: int, size: int) -> bytes:
    """A PNG of coloured waves, the same everywhere."""
    at = np.linspace(0, 3 + seed, size)
    waves = np.stack([np.sin(at[:, None] * (c + 1) + at * (seed + 1)) for c in range(3)], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray((127.5 + 127 * waves).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def verify(
    params: Mapping[str, Any],
    config: Config,
    folder: epath.PathLike,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new: int = 32,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Compares the release in `folder` with `params` and writes parity.json there.

    Args:
      params: the checkpoint; rounded here to the dtype that the release stores, so that only the conversion and the
        two implementations are compared.
      config: of the checkpoint.
      prompts: at least one of them with an image.
      max_new: tokens of the greedy continuation.
      tolerance: of the relative errors.

    Returns:
      What parity.json says; `passed` tells whether every figure is within tolerance and every text is equal.

    Raises:
      UserError: if the release is damaged or is not one of this model.
    """
    folder = epath.Path(folder)
    tensors = verify_manifest(folder)
    stored_dtype = artifacts.read_json(folder / "config.json").get("torch_dtype", "float32")
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(stored_dtype).astype(jnp.float32), dict(params))
    compute = dataclasses.replace(config.compute, compute_dtype="float32", attention="xla")
    torch_side = _TorchSide(folder)
    with jax.default_matmul_precision("highest"):
        features, logits = _forward(rounded, config.model, compute, prompts)
        answers = generate(
            rounded, config.model, compute, tokenizer, prompts, max_new=max_new, batch_size=max(1, len(prompts))
        )
    rows = [
        _compare(torch_side, tokenizer, *each, max_new) for each in zip(prompts, features, logits, answers, strict=True)
    ]
    worst = {key: max(row[key] for row in rows) for key in ("image_error", "logits_error")}
    report = {
        "tensors": tensors,
        "stored_dtype": stored_dtype,
        "compared_in": "float32",
        "tolerance": tolerance,
        "prompts": len(rows),
        "image_embedding_relative_error": worst["image_error"],
        "logits_relative_error": worst["logits_error"],
        "top1_agreement": sum(row["top1"] for row in rows) / max(1, sum(row["tokens"] for row in rows)),
        "greedy_equal": all(row["greedy_equal"] for row in rows),
        "details": rows,
    }
    within = all(value <= tolerance for value in worst.values())
    report["passed"] = bool(rows) and within and bool(report["greedy_equal"])
    artifacts.write_json(folder / PARITY, report)
    return report


def _compare(
    torch_side: _TorchSide,
    tokenizer: Tokenizer,
    prompt: Prompt,
    features_FD: np.ndarray,
    logits_LV: np.ndarray,
    answer: list[int],
    max_new: int,
) -> dict[str, Any]:
    """One row of the report: our figures for one prompt against those of the release."""
    their_features_FD, their_logits_LV = torch_side.forward(prompt)
    their_answer = torch_side.generate(prompt, max_new, tokenizer.special.eot)
    return {
        "tokens": len(prompt.tokens_L),
        "images": len(prompt.images_IHWC),
        "image_error": relative_error(features_FD, their_features_FD) if len(features_FD) else 0.0,
        "logits_error": relative_error(logits_LV, their_logits_LV),
        "top1": int(np.sum(logits_LV.argmax(-1) == their_logits_LV.argmax(-1))),
        "greedy_equal": answer == their_answer,
        "jax_text": tokenizer.decode(answer),
        "torch_text": tokenizer.decode(their_answer),
    }


def _forward(
    params: dict[str, Any], model: ModelConfig, compute: ComputeConfig, prompts: Sequence[Prompt]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per prompt its image features [I * Q, D] and logits [L, V] in evaluation mode.

    All prompts run as one batch, padded on the right, so that everything compiles once.
    """
    queries = model.resampler.queries
    shape = (len(prompts), max(len(prompt.tokens_L) for prompt in prompts))
    tokens_BL, segments_BL, slots_BL = (
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.full(shape, -1, np.int32),
    )
    starts = np.cumsum([0] + [len(prompt.images_IHWC) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        length, slots_L = len(prompt.tokens_L), prompt.image_query_L
        tokens_BL[row, :length], segments_BL[row, :length] = prompt.tokens_L, 1
        slots_BL[row, :length] = np.where(slots_L >= 0, slots_L + starts[row] * queries, -1)
    images_IHWC = np.concatenate([prompt.images_IHWC for prompt in prompts])

    @jax.jit
    def run(params, images_IHWC):
        features_FD = qwen_vl.encode_images(params, model, compute, images_IHWC)
        tokens, slots, segments = (jnp.asarray(x) for x in (tokens_BL, slots_BL, segments_BL))
        hidden_BLD = qwen_vl.hidden_states(
            params,
            model,
            compute,
            embeddings_BLD=qwen_vl.embed(params, model, compute, tokens, slots, features_FD),
            segment_ids_BL=segments,
            positions_BL=jnp.broadcast_to(jnp.arange(shape[1]), shape),
            training=False,
        )
        return features_FD, qwen_vl.logits(params, model, compute, hidden_BLD)

    features_FD, logits_BLV = (np.asarray(x) for x in run(params, images_IHWC))
    features = [features_FD[a * queries : b * queries] for a, b in itertools.pairwise(starts)]
    return features, [logits_BLV[row, : len(prompt.tokens_L)] for row, prompt in enumerate(prompts)]


class _TorchSide:
    """The release, run by the modelling file that lies in it."""

    def __init__(self, folder: epath.Path):
        try:
            import torch
        except ImportError:
            raise UserError("parity needs PyTorch; run `pip install -r requirements-convert.txt`") from None
        self.torch = torch
        self.code = _load_module(folder / released_config.MODELING_FILE)
        try:
            self.model = self.code.load(str(folder))
        except RuntimeError as error:
            raise UserError(
                f"{folder} does not load in PyTorch ({str(error).splitlines()[0]}); release it again"
            ) from None

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        ids = self.torch.from_numpy(np.asarray(prompt.tokens_L, np.int64))[None]
        inputs = {"input_ids": ids, "attention_mask": self.torch.ones_like(ids)}
        if len(prompt.images_IHWC):
            inputs["pixel_values"] = self.code.normalise(self.torch.from_numpy(np.array(prompt.images_IHWC)))
        return inputs

    def forward(self, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
        """Image features [I * Q, D] (empty without images) and logits [L, V]."""
        inputs = self._inputs(prompt)
        with self.torch.no_grad():
            logits = self.model(**inputs).logits[0].numpy()
            if "pixel_values" not in inputs:
                return np.zeros((0, 0), np.float32), logits
            return self.model.transformer.visual(inputs["pixel_values"]).flatten(0, 1).numpy(), logits

    def generate(self, prompt: Prompt, max_new: int, end_id: int) -> list[int]:
        """The greedy continuation without its end id, by transformers' own `generate`."""
        inputs = self._inputs(prompt)
        with self.torch.no_grad():
            ids = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=max_new, eos_token_id=end_id, pad_token_id=end_id
            )
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return new[: new.index(end_id)] if end_id in new else new


def _load_module(path: epath.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("released_modeling_qwen", str(path))
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"{path} does not exist; release the model again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # transformers looks up the module of a model class
    spec.loader.exec_module(module)
    return module
