"""The README.md of a release."""

from __future__ import annotations

from qwenvl_jax.config import Config
from qwenvl_jax.conversion import mapping
from qwenvl_jax.models import qwen_vl

_STAGES = {
    "text": "text-only pre-training of the decoder",
    "pretrain": "stage 1, pre-training of vision tower and resampler",
    "multitask": "stage 2, multi-task pre-training",
    "sft": "stage 3, supervised fine-tuning on dialogues (ChatML)",
}

_CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [qwen-vl, qwenvl_jax]
---

# {name}

A Qwen-VL model (arXiv 2308.12966) trained with qwenvl_jax, after {stage}.

| | |
|---|---|
| parameters | {count:,} ({dtype}) |
| vision tower | {vit_layers} layers, width {vit_width}, patches of {patch} px, images of {image} px |
| resampler | {queries} queries per image |
| decoder | {layers} layers, width {width}, {heads} heads, vocabulary {vocabulary:,} |
| trained context | {train_length:,} tokens; beyond it log-n attention {logn}, dynamic NTK {ntk} |

## Use

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
out = model(input_ids=ids, pixel_values=pixels)     # pixels: modeling_qwen.preprocess([image], {image})
```

Every image stands in the prompt as `<img>`, {queries} times `<imgpad>`, `</img>`. Tensor names and layouts are those of
the released `QWenLMHeadModel`. `manifest.json` lists sha256, shape and dtype of every tensor; `parity.json`, where
present, is the measured difference between this directory in PyTorch and the JAX model it came from.

## Intended use and limits

Research. The model can be wrong about what an image shows, reads or contains, and repeats the biases of its data. It
has no safety training. The licence of the weights is that of the data and of the checkpoints they were trained from;
the code in this directory is Apache-2.0.
"""


def model_card(config: Config, dtype: str) -> str:
    """The card in Markdown, a function of its arguments alone."""
    model = config.model
    leaves = mapping.flatten(qwen_vl.abstract_params(model)).values()
    return _CARD.format(
        name=model.name,
        stage=_STAGES[config.train.stage],
        count=sum(leaf.size for leaf in leaves),
        dtype=dtype,
        vit_layers=model.vit.layers,
        vit_width=model.vit.width,
        patch=model.vit.patch_size,
        image=config.data.image_size,
        queries=model.resampler.queries,
        layers=model.decoder.layers,
        width=model.decoder.width,
        heads=model.decoder.heads,
        vocabulary=model.decoder.vocab_size,
        train_length=model.decoder.train_length,
        logn="on" if model.decoder.logn_attention else "off",
        ntk="on" if model.decoder.dynamic_ntk else "off",
    )
