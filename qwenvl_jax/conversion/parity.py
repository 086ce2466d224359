"""Proof of a release: the same images and prompts through JAX and through the release in PyTorch.

In float32 both must agree to 1e-4 and write the same greedy text; in bfloat16, where each side rounds in its own
places, the most likely token must be the same at 99 % of the text positions.

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
from qwenvl_jax.config import ComputeConfig, Config, ModelConfig
from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.from_torch import release_component, verify_manifest
from qwenvl_jax.data.examples import Prompt, make_prompt
from qwenvl_jax.data.formats import Piece, chat_pieces
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.decode import generate
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

PARITY = "parity.json"
TOLERANCE = 1e-4  # of relative errors, in float32
TOP1_AGREEMENT = 0.99  # share of text positions, in bfloat16
HEADROOM_BYTES = 4 << 30  # for activations and both frameworks
COMPONENT_TOWERS = {"all": ("vit", "resampler", "decoder"), "decoder": ("decoder",), "vision": ("vit", "resampler")}


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
) -> dict[str, Any]:
    """Compares the release in `folder` with `params` and writes parity.json there.

    Args:
      params: the checkpoint, arrays or `Deferred`; rounded here to the dtype that the release stores, so that only the
        conversion and the two implementations are compared.
      config: of the checkpoint.
      prompts: some of them with images. A decoder release is compared on those without, a vision release on images.
      max_new: tokens of the greedy continuation.
      compare_in: the dtype in which both sides compute, "float32" or "bfloat16".

    Returns:
      What parity.json says; `passed` tells whether every figure is within tolerance and, in float32, every text equal.

    Raises:
      UserError: if the release is damaged or is not one of this model.
    """
    folder = epath.Path(folder)
    component = release_component(folder)
    tensors = verify_manifest(folder)
    stored_dtype = artifacts.read_json(folder / "config.json").get("torch_dtype", "float32")
    held = {name: params[name] for name in COMPONENT_TOWERS[component]}
    rounded = jax.tree.map(lambda leaf: jnp.asarray(host_array(leaf), stored_dtype).astype(compare_in), held)
    compute = dataclasses.replace(config.compute, compute_dtype=compare_in, attention="xla")
    torch_side = _TorchSide(folder, component, compare_in)
    prompts = [prompt for prompt in prompts if _concerns(prompt, component)]
    with jax.default_matmul_precision("highest"):
        if component == "vision":
            rows = [_compare_images(rounded, config.model, compute, torch_side, prompt) for prompt in prompts]
        else:
            features, logits = _forward(rounded, config.model, compute, prompts)
            answers = generate(
                rounded, config.model, compute, tokenizer, prompts, max_new=max_new, batch_size=len(prompts)
            )
            sides = zip(prompts, features, logits, answers, strict=True)
            rows = [_compare(torch_side, tokenizer, *each, max_new) for each in sides]
    report = {"component": component, "tensors": tensors, "stored_dtype": stored_dtype, **_figures(rows, compare_in)}
    artifacts.write_json(folder / PARITY, report)
    return report


def _concerns(prompt: Prompt, component: str) -> bool:
    has_images = len(prompt.images_IHWC) > 0
    return component == "all" or has_images == (component == "vision")


def _figures(rows: Sequence[Mapping[str, Any]], compare_in: str) -> dict[str, Any]:
    """The report's figures over all prompts, and whether they are good enough."""
    image_error = max(row.get("image_error", 0.0) for row in rows)
    logits_error = max(row.get("logits_error", 0.0) for row in rows)
    positions = sum(row.get("positions", 0) for row in rows)
    agreement = sum(row.get("top1", 0) for row in rows) / positions if positions else 1.0
    equal = all(row.get("greedy_equal", True) for row in rows)
    if compare_in == "float32":
        passed = max(image_error, logits_error) <= TOLERANCE and equal
    else:
        passed = agreement >= TOP1_AGREEMENT
    return {
        "compared_in": compare_in,
        "tolerance": TOLERANCE if compare_in == "float32" else None,
        "required_top1_agreement": None if compare_in == "float32" else TOP1_AGREEMENT,
        "prompts": len(rows),
        "image_embedding_relative_error": image_error,
        "logits_relative_error": logits_error,
        "top1_agreement": agreement,
        "greedy_equal": equal,
        "passed": bool(passed),
        "details": list(rows),
    }


def _compare_images(
    params: dict[str, Any], model: ModelConfig, compute: ComputeConfig, torch_side: _TorchSide, prompt: Prompt
) -> dict[str, Any]:
    """One row of a vision release's report."""
    features_FD = qwen_vl.encode_images(params, model, compute, jnp.asarray(prompt.images_IHWC))
    error = relative_error(np.asarray(features_FD, np.float32), torch_side.features(prompt))
    return {"images": len(prompt.images_IHWC), "image_error": error}


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
    their_logits_LV = torch_side.logits(prompt)
    their_answer = torch_side.generate(prompt, max_new, tokenizer.special.eot)
    is_text_L = prompt.image_query_L < 0  # nobody reads what is predicted inside an image
    same_L = logits_LV.argmax(-1) == their_logits_LV.argmax(-1)
    return {
        "tokens": len(prompt.tokens_L),
        "images": len(prompt.images_IHWC),
        "image_error": relative_error(features_FD, torch_side.features(prompt)) if len(features_FD) else 0.0,
        "logits_error": relative_error(logits_LV, their_logits_LV),
        "positions": int(np.sum(is_text_L)),
        "top1": int(np.sum(same_L & is_text_L)),
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
    return features, [logits_BLV[row, : len(prompt.tokens_L)] for row, prompt in enumerate(prompts)]


class _TorchSide:
    """The release, run by the code that lies in it."""

    def __init__(self, folder: epath.Path, component: str, dtype: str):
        try:
            import torch
            import transformers

            from qwenvl_jax.conversion.torch_model.visual import normalise
        except ImportError:
            raise UserError("parity needs PyTorch; run `pip install -r requirements-convert.txt`") from None
        self.torch = torch
        self.normalise = normalise
        auto: Any = transformers.AutoModel if component == "vision" else transformers.AutoModelForCausalLM
        try:
            self.model, info = auto.from_pretrained(
                str(folder), trust_remote_code=True, dtype=getattr(torch, dtype), output_loading_info=True
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"{folder} does not load in PyTorch ({str(error).splitlines()[0]}); release it again"
            ) from None
        # transformers gives a missing tensor random values and drops an unknown one, with a warning only.
        wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])
        if wrong:
            raise UserError(f"{folder} does not load in PyTorch: the tensor {wrong[0]} is missing or unknown")

    def _pixels(self, prompt: Prompt) -> Any:
        return self.normalise(self.torch.from_numpy(np.array(prompt.images_IHWC))).to(self.model.dtype)

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        ids = self.torch.from_numpy(np.asarray(prompt.tokens_L, np.int64))[None]
        pixels = {"pixel_values": self._pixels(prompt)} if len(prompt.images_IHWC) else {}
        return {"input_ids": ids, "attention_mask": self.torch.ones_like(ids), **pixels}

    def features(self, prompt: Prompt) -> np.ndarray:
        """Image features [I * Q, D] in float32."""
        with self.torch.no_grad():
            return self.model.transformer.visual(self._pixels(prompt)).flatten(0, 1).float().numpy()

    def logits(self, prompt: Prompt) -> np.ndarray:
        """[L, V] in float32."""
        with self.torch.no_grad():
            return self.model(**self._inputs(prompt)).logits[0].float().numpy()

    def generate(self, prompt: Prompt, max_new: int, end_id: int) -> list[int]:
        """The greedy continuation without its end id, by transformers' own `generate`."""
        inputs = self._inputs(prompt)
        with self.torch.no_grad():
            ids = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=max_new, eos_token_id=end_id, pad_token_id=end_id
            )
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return new[: new.index(end_id)] if end_id in new else new
