"""Verification of a release: runs the same images and prompts through JAX and through the release in PyTorch.

In float32 both must agree to 1e-4 and generate the same greedy text. In bfloat16 the two round differently, so both are
compared with JAX in float32: the error of the release may be at most a few times that of JAX, and the most likely token
must be the same at 99 % of the text positions. Positions where the logits of the two tokens differ by less than the
rounding error count as equal.

The PyTorch side is the code of `torch_model`, of which every release contains a copy. The code in the folder itself is
run only if `trust_release_code` is set.

Writes `parity.json` into the release: errors of image embeddings and logits, top-1 agreement, greedy text.

Shape suffixes: I images, H/W pixels, Q queries, L tokens, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from qwenvl_jax.checkpoint.deferred import host_array
from qwenvl_jax.config import ComputeConfig, Config, ModelConfig
from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.manifest import PARITY, verify_manifest
from qwenvl_jax.conversion.stored_tensors import open_checkpoint
from qwenvl_jax.conversion.torch_side import TorchSide
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import Prompt, make_prompt
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.generate import Limits, generate
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

TOLERANCE = 1e-4  # largest relative error in float32
TOP1_AGREEMENT = 0.99  # smallest share of text positions in bfloat16
ROUNDING = 4  # largest ratio of the release's rounding error to that of JAX, in bfloat16
BFLOAT16_STEP = 2.0**-8  # relative error of one rounding to bfloat16
HEADROOM_BYTES = 4 << 30  # memory for activations and both frameworks


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; infinite if any value is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.max(np.abs(ours - theirs)) / max(float(np.max(np.abs(theirs))), 1e-30))


def example_prompts(tokenizer: Tokenizer, queries: int, image_size: int) -> list[Prompt]:
    """Prompts of every kind: caption, question, phrase, OCR, text without image, dialogue about three images."""
    images = tuple(_wave_image(seed, image_size + 11 * seed) for seed in range(3))
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
    return [make_prompt(each, images, tokenizer, queries, image_size) for each in pieces]


def _wave_image(seed: int, size: int) -> bytes:
    """A PNG of coloured waves, a function of `seed` and `size` alone."""
    x = np.linspace(0, 3 + seed, size)
    waves = np.stack([np.sin(x[:, None] * (c + 1) + x * (seed + 1)) for c in range(3)], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray((127.5 + 127 * waves).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def fits(config: Config) -> bool:
    """Whether the free memory of this machine can hold the model twice in float32, once for each side."""
    parameters = sum(math.prod(shape) for shape in mapping.shapes_of(config.model).values())
    return 2 * 4 * parameters + HEADROOM_BYTES < _available_bytes()


def _available_bytes() -> int:
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", epath.Path("/proc/meminfo").read_text())
        if available:
            return int(available[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def verify(
    params: Mapping[str, Any],
    config: Config,
    folder: epath.PathLike,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 32,
    compare_in: str = "float32",
    trust_release_code: bool = False,
) -> dict[str, Any]:
    """Compares the release in `folder` with `params` and writes parity.json there.

    Args:
      params: the checkpoint, as arrays or `Deferred`. They are rounded to the stored dtype of the release, so that only
        the conversion and the two implementations are compared.
      config: of the checkpoint.
      folder: the release.
      tokenizer: of the model.
      prompts: must include prompts with and without images. A decoder release is compared on those without images, a
        vision release on the images.
      max_new_tokens: number of tokens of the greedy continuation.
      compare_in: the dtype in which both sides compute, "float32" or "bfloat16".
      trust_release_code: whether to run the code in the folder instead of ours. If the folder has a manifest, the code
        is compared with it first.

    Returns:
      The content of parity.json. `passed` is true if every figure is within tolerance and, in float32, all texts are
      equal.

    Raises:
      UserError: if the release is damaged or belongs to another model.
    """
    folder = storage.path(folder)
    listed = verify_manifest(folder)
    scope, tensors = listed or ("all", len(open_checkpoint(folder)))
    stored_dtype = _stored_dtype(folder)
    released = {name: params[name] for name in mapping.RELEASE_SCOPES[scope].towers}
    rounded = jax.tree.map(lambda leaf: jnp.asarray(host_array(leaf), stored_dtype).astype(compare_in), released)
    compute = dataclasses.replace(config.compute, compute_dtype=compare_in, attention="xla")
    exact = dataclasses.replace(compute, compute_dtype="float32")
    torch_side = TorchSide(folder, scope, compare_in, trust_release_code)
    prompts = [prompt for prompt in prompts if _concerns(prompt, scope)]
    with jax.default_matmul_precision("highest"):
        if scope == "vision":
            rows = [_compare_images(rounded, config.model, (compute, exact), torch_side, prompt) for prompt in prompts]
        else:
            rows = _compare_texts(
                rounded, config.model, (compute, exact), torch_side, tokenizer, prompts, max_new_tokens
            )
    report = {
        "component": scope,
        "tensors": tensors,
        "manifest": "equal" if listed else "none",
        "code": "of the release" if trust_release_code else "of qwenvl_jax",
        "stored_dtype": stored_dtype,
        **_figures(rows, compare_in),
    }
    artifacts.write_json(folder / PARITY, report)
    return report


def _stored_dtype(folder: epath.Path) -> str:
    """The dtype of the stored tensors according to config.json."""
    content = artifacts.read_json(folder / "config.json")
    dtype = content.get("torch_dtype") or content.get("dtype") or "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(
            f"{folder / 'config.json'} gives the unsupported dtype {dtype!r} for its tensors; copy the release again"
        )
    return dtype


def _concerns(prompt: Prompt, scope: str) -> bool:
    has_images = len(prompt.images_IHWC) > 0
    return scope == "all" or has_images == (scope == "vision")


def _figures(rows: Sequence[Mapping[str, Any]], compare_in: str) -> dict[str, Any]:
    """The figures of the report over all prompts, and `passed`."""

    def largest(key: str) -> float:
        return max((row.get(key, 0.0) for row in rows), default=0.0)

    positions = sum(row.get("positions", 0) for row in rows)
    agreement = sum(row.get("top1", 0) for row in rows) / positions if positions else 1.0
    equal = all(row.get("greedy_equal", True) for row in rows)
    figures = {
        "compared_in": compare_in,
        "prompts": len(rows),
        "image_embedding_relative_error": largest("image_error"),
        "logits_relative_error": largest("logits_error"),
        "top1_agreement": agreement,
        "greedy_equal": equal,
    }
    if compare_in == "float32":
        figures["tolerance"] = TOLERANCE
        passed = max(largest("image_error"), largest("logits_error")) <= TOLERANCE and equal
    else:
        figures |= {"required_top1_agreement": TOP1_AGREEMENT, "allowed_times_our_rounding": ROUNDING}
        figures["undecided_positions"] = sum(row.get("undecided", 0) for row in rows)
        passed = agreement >= TOP1_AGREEMENT
        for kind in ("image", "logits"):
            ours = largest(f"{kind}_our_rounding")
            theirs = largest(f"{kind}_their_rounding")
            figures |= {f"{kind}_our_rounding": ours, f"{kind}_their_rounding": theirs}
            passed = passed and theirs <= ROUNDING * max(ours, BFLOAT16_STEP)
    return figures | {"passed": bool(passed), "details": list(rows)}


def _compare_images(
    params: dict[str, Any],
    model: ModelConfig,
    computes: tuple[ComputeConfig, ComputeConfig],
    torch_side: TorchSide,
    prompt: Prompt,
) -> dict[str, Any]:
    """One row of the report of a vision release; `computes` are the settings of the comparison and those in float32."""
    images = jnp.asarray(prompt.images_IHWC)
    ours, exact = (
        np.asarray(qwen_vl.encode_images(params, model, compute, images), np.float32) for compute in computes
    )
    return {"images": len(prompt.images_IHWC), **_errors("image", ours, torch_side.features(prompt), exact)}


def _compare_texts(
    params: dict[str, Any],
    model: ModelConfig,
    computes: tuple[ComputeConfig, ComputeConfig],
    torch_side: TorchSide,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """The rows of the report of a release with a decoder; `computes` as in `_compare_images`."""
    compute, exact = computes
    ours = _forward(params, model, compute, prompts)
    reference = ours if compute == exact else _forward(params, model, exact, prompts)
    limits = Limits(max_new_tokens, stop_ids=(tokenizer.special.eot,))
    answers = generate(LoadedModel(params, model, compute), prompts, limits, batch_size=len(prompts))
    sides = zip(prompts, ours, reference, answers, strict=True)
    return [_compare(torch_side, tokenizer, *each, max_new_tokens) for each in sides]


def _errors(kind: str, ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The error between both sides, and that of each against JAX in float32."""
    return {
        f"{kind}_error": relative_error(ours, theirs),
        f"{kind}_our_rounding": relative_error(ours, exact),
        f"{kind}_their_rounding": relative_error(theirs, exact),
    }


def _compare(
    torch_side: TorchSide,
    tokenizer: Tokenizer,
    prompt: Prompt,
    ours: tuple[np.ndarray, np.ndarray],
    reference: tuple[np.ndarray, np.ndarray],
    answer: list[int],
    max_new_tokens: int,
) -> dict[str, Any]:
    """One row of the report: compares our results for one prompt with those of the release.

    Args:
      torch_side: the release.
      tokenizer: of the model.
      prompt: the input of both sides.
      ours: image features [I * Q, D] and logits [L, V].
      reference: the same in float32.
      answer: our greedy continuation.
      max_new_tokens: the largest length of a continuation.
    """
    features_FD, logits_LV = ours
    exact_FD, exact_LV = reference
    their_logits_LV = torch_side.logits(prompt)
    their_answer = torch_side.generate(prompt, max_new_tokens, tokenizer.special.eot)
    is_text_L = prompt.image_query_L < 0  # predictions inside an image are never used
    our_choice_L = logits_LV.argmax(-1)
    their_choice_L = their_logits_LV.argmax(-1)
    same_L = our_choice_L == their_choice_L
    index_L = np.arange(len(exact_LV))
    gap_L = np.abs(exact_LV[index_L, our_choice_L] - exact_LV[index_L, their_choice_L])
    # If the exact logits of two tokens are closer than the rounding errors of both, rounding decides which is larger.
    near_L = ~same_L & (gap_L <= 2 * np.max(np.abs(logits_LV - exact_LV)))
    row: dict[str, Any] = {
        "tokens": len(prompt.tokens_L),
        "images": len(prompt.images_IHWC),
        **_errors("logits", logits_LV, their_logits_LV, exact_LV),
        "positions": int(np.sum(is_text_L)),
        "top1": int(np.sum((same_L | near_L) & is_text_L)),
        "undecided": int(np.sum(near_L & is_text_L)),
        "greedy_equal": answer == their_answer,
        "jax_text": tokenizer.decode(answer),
        "torch_text": tokenizer.decode(their_answer),
    }
    return row | (_errors("image", features_FD, torch_side.features(prompt), exact_FD) if len(features_FD) else {})


def _forward(
    params: dict[str, Any], model: ModelConfig, compute: ComputeConfig, prompts: Sequence[Prompt]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every prompt its image features [I * Q, D] and logits [L, V] in evaluation mode.

    All prompts run as one batch, padded on the right, so that the model is compiled once.
    """
    queries = model.resampler.queries
    shape = (len(prompts), max(len(prompt.tokens_L) for prompt in prompts))
    tokens_BL = np.zeros(shape, np.int32)
    segments_BL = np.zeros(shape, np.int32)
    slots_BL = np.full(shape, -1, np.int32)
    starts = np.cumsum([0] + [len(prompt.images_IHWC) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        length = len(prompt.tokens_L)
        slots_L = prompt.image_query_L
        tokens_BL[row, :length] = prompt.tokens_L
        segments_BL[row, :length] = 1
        slots_BL[row, :length] = np.where(slots_L >= 0, slots_L + starts[row] * queries, -1)
    images_IHWC = np.concatenate([prompt.images_IHWC for prompt in prompts])

    @jax.jit
    def run(params: dict[str, Any], images_IHWC: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        features_FD = qwen_vl.encode_images(params, model, compute, images_IHWC) if len(images_IHWC) else None
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

    device_features_FD, device_logits_BLV = run(params, images_IHWC)
    if device_features_FD is None:
        features_FD = np.zeros((0, 0), np.float32)
    else:
        features_FD = np.asarray(device_features_FD, np.float32)
    logits_BLV = np.asarray(device_logits_BLV, np.float32)
    features = [features_FD[start * queries : end * queries] for start, end in itertools.pairwise(starts)]
    logits = [logits_BLV[row, : len(prompt.tokens_L)] for row, prompt in enumerate(prompts)]
    return list(zip(features, logits, strict=True))
