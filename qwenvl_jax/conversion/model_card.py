"""The README.md and the NOTICE of a release."""

from __future__ import annotations

import math

from qwenvl_jax.config import Config
from qwenvl_jax.conversion import mapping

# The versions of transformers in requirements-convert.txt and requirements-convert-newest.txt.
TESTED = ("4.57.6", "5.24.0")

_STAGES = {
    "text": "text-only pre-training of the decoder",
    "pretrain": "stage 1, pre-training of the vision tower and resampler",
    "multitask": "stage 2, multi-task pre-training",
    "sft": "stage 3, supervised fine-tuning on dialogues (ChatML)",
    "import": "conversion from published checkpoints, without further training",
}
_SUBJECTS = {
    "all": "A Qwen-VL model",
    "decoder": "The language model of a Qwen-VL model",
    "vision": "The vision tower, resampler and head of a Qwen-VL model",
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

{subject} (arXiv 2308.12966), made with qwenvl_jax: the result of {stage}.

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

An image occupies {queries} tokens between `<img>` and `</img>`. They contain its path, or only `<imgpad>` if the pixels
are passed as `pixel_values`. JPEG, PNG, WebP, GIF and BMP are supported. Images are preprocessed in the same way
whether they are given as a path, as a Pillow image or through `AutoImageProcessor`: they are converted to RGB by Pillow
(EXIF rotation is ignored and transparent pixels get no background) and resized to {image} x {image} pixels by Pillow's
bicubic filter, without keeping the aspect ratio. The result does not depend on the version of Pillow, although `resize`
changed in Pillow 13. Paths and text are normalised to NFC.

Tensor names and layouts are those of the released `QWenLMHeadModel`. `manifest.json` lists the sha256, shape and dtype
of every tensor. `parity.json`, if present, gives the measured difference between the PyTorch model in this directory
and the JAX model it was converted from.

## Intended use and limits

This model is for research. It can misread or misdescribe images, and it reproduces the biases of its training data. It
has had no safety training. See `NOTICE` for the licences of code and weights.
"""

_NOTICE = """{name}

The Python files in this directory are part of qwenvl_jax and licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0).

The weights are subject to the licences of the models and data they were derived from. Weights derived from Qwen-7B,
Qwen-VL or Qwen-VL-Chat are subject to the Tongyi Qianwen License Agreement, and a vision tower derived from OpenCLIP to
the MIT License of the OpenCLIP weights.

The vocabulary qwen.tiktoken, if present, was made by Alibaba Cloud and is distributed under the Apache License,
Version 2.0.
"""


def notice(config: Config) -> str:
    """The licence notice of a release."""
    return _NOTICE.format(name=config.model.name)


def model_card(config: Config, dtype: str, scope: str = "all") -> str:
    """The model card in Markdown; it depends only on the arguments.

    Args:
      config: of the training run.
      dtype: of the stored tensors.
      scope: "all", "decoder" or "vision".
    """
    model = config.model
    tensors = mapping.released_tensors(model, mapping.RELEASE_SCOPES[scope].rules)
    return _CARD.format(
        name=model.name,
        tested=" and ".join(TESTED),
        stage=_STAGES[config.train.stage],
        subject=_SUBJECTS[scope],
        use=_USES[scope],
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
