"""Proof of a release: the same images and prompts through JAX and through the release in PyTorch.

In float32 both must agree to 1e-4 and write the same greedy text. In bfloat16 each side rounds in its own places, and
both are measured against JAX in float32: the release may not be off by more than a few times what JAX itself is, and
the most likely token must be the same at 99 % of the text positions, not counting those where float32 has two that
are nearer to one another than the rounding.

The PyTorch side is the code of `torch_model`, the same that lies in every release; no code of the folder runs, unless
that is asked for.

Writes `parity.json` beside the release: image embeddings, logits, top-1 agreement, greedy text.

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
from qwenvl_jax.config import TOWERS, ComputeConfig, Config, ModelConfig
from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.manifest import PARITY, verify_manifest
from qwenvl_jax.conversion.stored_tensors import open_checkpoint
from qwenvl_jax.conversion.torch_side import TorchSide
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import Prompt, make_prompt
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generate import Limits, generate
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

TOLERANCE = 1e-4  # of relative errors, in float32
TOP1_AGREEMENT = 0.99  # share of text positions, in bfloat16
ROUNDING = 4  # times what JAX is off by itself, in bfloat16
BFLOAT16_STEP = 2.0**-8  # relative; what one rounding may cost
HEADROOM_BYTES = 4 << 30  # for activations and both frameworks
COMPONENT_TOWERS = {"all": TOWERS, "decoder": ("decoder",), "vision": ("vit", "resampler")}


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


def fits(config: Config) -> bool:
    """Whether this machine's free memory holds the model twice in float32, once for each side."""
    parameters = sum(math.prod(shape) for shape in mapping.shapes_of(config.model).values())
    return 2 * 4 * parameters + HEADROOM_BYTES < _available_bytes()


def _available_bytes() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", epath.Path("/proc/meminfo").read_text())
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass  # no Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def verify(
    params: Mapping[str, Any],
    config: Config,
    folder: epath.PathLike,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_new: int = 32,
    compare_in: str = "float32",
    trust_release_code: bool = False,
) -> dict[str, Any]:
    """Compares the release in `folder` with `params` and writes parity.json there.

    Args:
      params: the checkpoint, arrays or `Deferred`; rounded here to the dtype that the release stores, so that only the
        conversion and the two implementations are compared.
      config: of the checkpoint.
      prompts: some of them with images. A decoder release is compared on those without, a vision release on images.
      max_new: tokens of the greedy continuation.
      compare_in: the dtype in which both sides compute, "float32" or "bfloat16".
      trust_release_code: whether the code that lies in the folder runs instead of ours; after its digests agree, where
        the folder has a manifest.

    Returns:
      What parity.json says; `passed` tells whether every figure is within tolerance and, in float32, every text equal.

    Raises:
      UserError: if the release is damaged or is not one of this model.
    """
    folder = storage.path(folder)
    listed = verify_manifest(folder)
    component, tensors = listed or ("all", len(open_checkpoint(folder)))
    stored_dtype = _stored_dtype(folder)
    held = {name: params[name] for name in COMPONENT_TOWERS[component]}
    rounded = jax.tree.map(lambda leaf: jnp.asarray(host_array(leaf), stored_dtype).astype(compare_in), held)
    compute = dataclasses.replace(config.compute, compute_dtype=compare_in, attention="xla")
    exact = dataclasses.replace(compute, compute_dtype="float32")
    torch_side = TorchSide(folder, component, compare_in, trust_release_code)
    prompts = [prompt for prompt in prompts if _concerns(prompt, component)]
    with jax.default_matmul_precision("highest"):
        if component == "vision":
            rows = [_compare_images(rounded, config.model, (compute, exact), torch_side, prompt) for prompt in prompts]
        else:
            ours = _forward(rounded, config.model, compute, prompts)
            reference = ours if compare_in == "float32" else _forward(rounded, config.model, exact, prompts)
            model = LoadedModel(rounded, config.model, compute)
            limits = Limits(max_new, stop_ids=(tokenizer.special.eot,))
            answers = generate(model, prompts, limits, batch_size=len(prompts))
            sides = zip(prompts, ours, reference, answers, strict=True)
            rows = [_compare(torch_side, tokenizer, *each, max_new) for each in sides]
    report = {
        "component": component,
        "tensors": tensors,
        "manifest": "equal" if listed else "none",
        "code": "of the release" if trust_release_code else "of qwenvl_jax",
        "stored_dtype": stored_dtype,
        **_figures(rows, compare_in),
    }
    artifacts.write_json(folder / PARITY, report)
    return report


def _stored_dtype(folder: epath.Path) -> str:
    """What config.json says that the tensors are stored in."""
    content = artifacts.read_json(folder / "config.json")
    dtype = content.get("torch_dtype") or content.get("dtype") or "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(
            f"{folder / 'config.json'} says that tensors are stored as {dtype!r}, which is not read; copy it again"
        )
    return dtype


def _concerns(prompt: Prompt, component: str) -> bool:
    has_images = len(prompt.images_IHWC) > 0
    return component == "all" or has_images == (component == "vision")


def _figures(rows: Sequence[Mapping[str, Any]], compare_in: str) -> dict[str, Any]:
    """The report's figures over all prompts, and whether they are good enough."""

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
            ours, theirs = largest(f"{kind}_our_rounding"), largest(f"{kind}_their_rounding")
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
    """One row of a vision release's report; `computes` are that of the comparison and the one in float32."""
    images = jnp.asarray(prompt.images_IHWC)
    ours, exact = (
        np.asarray(qwen_vl.encode_images(params, model, compute, images), np.float32) for compute in computes
    )
    return {"images": len(prompt.images_IHWC), **_errors("image", ours, torch_side.features(prompt), exact)}


def _errors(kind: str, ours: np.ndarray, theirs: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How far both sides are from one another, and each from JAX in float32."""
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
    max_new: int,
) -> dict[str, Any]:
    """One row of the report: our figures for one prompt against those of the release.

    Args:
      torch_side: the release.
      tokenizer: of the model.
      prompt: what both sides read.
      ours: image features [I * Q, D] and logits [L, V].
      reference: the same in float32.
      answer: our greedy continuation.
      max_new: its longest length.
    """
    (features_FD, logits_LV), (exact_FD, exact_LV) = ours, reference
    their_logits_LV = torch_side.logits(prompt)
    their_answer = torch_side.generate(prompt, max_new, tokenizer.special.eot)
    is_text_L = prompt.image_query_L < 0  # nobody reads what is predicted inside an image
    our_choice_L, their_choice_L = logits_LV.argmax(-1), their_logits_LV.argmax(-1)
    same_L = our_choice_L == their_choice_L
    at_L = np.arange(len(exact_LV))
    gap_L = np.abs(exact_LV[at_L, our_choice_L] - exact_LV[at_L, their_choice_L])
    # Two tokens can change places where their logits are nearer than the rounding of both.
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

    found_FD, found_BLV = run(params, images_IHWC)
    features_FD = np.zeros((0, 0), np.float32) if found_FD is None else np.asarray(found_FD, np.float32)
    logits_BLV = np.asarray(found_BLV, np.float32)
    features = [features_FD[a * queries : b * queries] for a, b in itertools.pairwise(starts)]
    logits = [logits_BLV[row, : len(prompt.tokens_L)] for row, prompt in enumerate(prompts)]
    return list(zip(features, logits, strict=True))
