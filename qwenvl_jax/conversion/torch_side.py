"""Runs a release in PyTorch, for `parity`.

Shape suffixes: I images, Q queries, L tokens, V vocabulary, D width.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.data.examples import Prompt
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError


@contextlib.contextmanager
def _local_folder(folder: epath.Path) -> Iterator[epath.Path]:
    """The folder itself, or a temporary local copy if it is on an object store."""
    if not storage.is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="qwenvl-release-") as copy:
        for name in (name for name, size in storage.sizes(folder).items() if size is not None):
            with storage.local_copy(folder / name) as file:
                shutil.move(file, epath.Path(copy) / name)
        yield epath.Path(copy)


class TorchSide:
    """A release loaded in PyTorch, with our code or with the code in its folder.

    Args:
      folder: the release.
      scope: a key of `mapping.RELEASE_SCOPES`.
      dtype: in which it computes.
      trust_code: whether to run the code in the folder instead of ours.

    Raises:
      UserError: if PyTorch is missing or the release cannot be loaded.
    """

    def __init__(self, folder: epath.Path, scope: str, dtype: str, trust_code: bool):
        try:
            import torch
            import transformers

            from qwenvl_jax.conversion.torch_model import modeling_qwen
        except ImportError:
            raise UserError("parity needs PyTorch; run `pip install -r requirements-convert.txt`") from None
        self.torch = torch
        options: dict[str, Any] = {
            "dtype": getattr(torch, dtype),
            "output_loading_info": True,
            "local_files_only": True,
        }
        kind: Any = modeling_qwen.QWenVisionModel if scope == "vision" else modeling_qwen.QWenLMHeadModel
        if trust_code:
            kind = transformers.AutoModel if scope == "vision" else transformers.AutoModelForCausalLM
            options["trust_remote_code"] = True
        try:
            with _local_folder(folder) as local:
                self.model, info = kind.from_pretrained(str(local), **options)
        except StorageError:
            raise
        except Exception as error:  # files of a folder we did not write can make transformers raise anything
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder} cannot be loaded in PyTorch ({cause}); release or copy it again") from None
        # For a missing or unknown tensor transformers only prints a warning; it initialises the missing one randomly.
        wrong = sorted([*info["missing_keys"], *info["unexpected_keys"]])
        if wrong:
            raise UserError(
                f"{folder} cannot be loaded in PyTorch: the tensor {wrong[0]} is missing or unknown; release it again"
            )
        # The module next to that of the model, so that preprocessing also runs the code under test.
        self.visual = importlib.import_module(".visual", type(self.model).__module__.rpartition(".")[0])

    def _pixels(self, prompt: Prompt) -> Any:
        """The images of a prompt as `pixel_values`, [I, 3, H, W]."""
        return self.visual.normalise(self.torch.from_numpy(np.array(prompt.images_IHWC))).to(self.model.dtype)

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        ids = self.torch.from_numpy(np.asarray(prompt.tokens_L, np.int64))[None]
        pixels = {"pixel_values": self._pixels(prompt)} if len(prompt.images_IHWC) else {}
        return {"input_ids": ids, "attention_mask": self.torch.ones_like(ids), **pixels}

    def features(self, prompt: Prompt) -> np.ndarray:
        """Image features [I * Q, D] in float32."""
        with self.torch.no_grad():
            return self.model.transformer.visual(self._pixels(prompt)).flatten(0, 1).float().numpy()

    def logits(self, prompt: Prompt) -> np.ndarray:
        """Logits [L, V] in float32."""
        with self.torch.no_grad():
            return self.model(**self._inputs(prompt)).logits[0].float().numpy()

    def generate(self, prompt: Prompt, max_new_tokens: int, end_id: int) -> list[int]:
        """The greedy continuation without its end id, from the `generate` of transformers."""
        inputs = self._inputs(prompt)
        with self.torch.no_grad():
            ids = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end_id, pad_token_id=end_id
            )
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return new[: new.index(end_id)] if end_id in new else new
