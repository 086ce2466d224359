"""The README.md of a release."""

from __future__ import annotations

import math

from qwenvl_jax.config import Config
from qwenvl_jax.conversion import mapping

# With which the tests of releases run (requirements-convert.txt, requirements-convert-newest.txt).
TESTED = ("4.57.6", "5.24.0")

_STAGES = {
    "text": "text-only pre-training of the decoder",
    "pretrain": "stage 1, pre-training of vision tower and resampler",
    "multitask": "stage 2, multi-task pre-training",
    "sft": "stage 3, supervised fine-tuning on dialogues (ChatML)",
    "import": "conversion from published checkpoints, without training",
}
_COMPONENTS = {
    "all": "A Qwen-VL model",
    "decoder": "The language model of a Qwen-VL model, on its own,",
    "vision": "The vision tower, resampler and head of a Qwen-VL model, on their own,",
}
_USES = {
    "all": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("<img>dog.jpg</img>Generate the caption in English:", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0]))""",
    "decoder": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print(tokenizer.decode(model.generate(**tokenizer("A text", return_tensors="pt"))[0]))""",
    "vision": """from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixels = processor(image, return_tensors="pt").pixel_values
features = model(pixel_values=pixels).last_hidden_state""",
}

_CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [qwen-vl, qwenvl_jax]
---

# {name}

{what} (arXiv 2308.12966) from qwenvl_jax, after {stage}.

| | |
|---|---|
| parameters | {count:,} ({dtype}) |
| vision tower | {vit_layers} layers, width {vit_width}, patches of {patch} px, images of {image} px |
| resampler | {queries} queries per image |
| decoder | {layers} layers, width {width}, {heads} heads, vocabulary {vocabulary:,} |
| trained context | {train_length:,} tokens; beyond it log-n attention {logn}, dynamic NTK {ntk} |

## Use

```python
{use}
```

Tested with transformers {tested}. The code in this directory needs torch, transformers, safetensors and Pillow, and
tiktoken or sentencepiece for the vocabulary.

An image takes {queries} places between `<img>` and `</img>`: its path, or `<imgpad>` for pixels that are given as
`pixel_values`. JPEG, PNG, WebP, GIF and BMP are read, by path, as Pillow pictures or by `AutoImageProcessor` alike:
turned into RGB as Pillow does it (no EXIF rotation, no background behind what is transparent) and squashed to
{image} x {image} pixels by Pillow's bicubic filter. The result does not depend on the version of Pillow, although its
own `resize` changed with version 13. Paths and text are taken in Unicode's composed form (NFC).

Tensor names and layouts are those of the released `QWenLMHeadModel`. `manifest.json` lists sha256,
shape and dtype of every tensor; `parity.json`, where present, is the measured difference between this directory in
PyTorch and the JAX model it came from.

## Intended use and limits

Research. The model can be wrong about what an image shows, reads or contains, and repeats the biases of its data. It
has no safety training. `NOTICE` says under which licences code and weights stand.
"""

_NOTICE = """{name}

The Python files in this directory are part of qwenvl_jax and licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

The weights stand under the licences of what they were trained from. Those that descend from Qwen-7B, Qwen-VL or
Qwen-VL-Chat stand under the Tongyi Qianwen License Agreement, a vision tower from OpenCLIP under the MIT License of its
weights, and the licences of the training data apply.

The vocabulary qwen.tiktoken, where present, is Alibaba Cloud's, distributed under the Apache License, Version 2.0.
"""


def notice(config: Config) -> str:
    """The licence notice of a release."""
    return _NOTICE.format(name=config.model.name)


def model_card(config: Config, dtype: str, component: str = "all") -> str:
    """The card in Markdown, a function of its arguments alone."""
    model = config.model
    tensors = mapping.released_tensors(model, mapping.COMPONENTS[component])
    return _CARD.format(
        name=model.name,
        tested=" and ".join(TESTED),
        stage=_STAGES[config.train.stage],
        what=_COMPONENTS[component],
        use=_USES[component],
        count=sum(math.prod(tensor.shape) for tensor in tensors),
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
