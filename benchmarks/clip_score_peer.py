"""The other side of clip_score.py: data-juicer's operator, in an environment of its own.

    python benchmarks/clip_score_peer.py FOLDER

Makes a CLIP of random weights in FOLDER, under the names of transformers for the operator and under those of OpenCLIP
for ours. Then it scores the pairs of FOLDER/pairs.json once per line of its input, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a build without its compiled operators; importing it needs their signatures, not their code
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from data_juicer.ops.filter.image_text_similarity_filter import ImageTextSimilarityFilter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.mm_utils import SpecialTokens
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

START = "<|startoftext|>"
END = "<|endoftext|>"


def write_model(folder: Path) -> None:
    """ViT-B-32 with the activation of OpenAI, the default of transformers."""
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.logit_scale.fill_(math.log(100))  # by which the operator divides
    model.save_pretrained(folder / "hf")
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
    words = [*characters, *(f"{c}</w>" for c in characters), *(line.replace(" ", "") for line in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder / "hf")
    torch.save(under_openclip_names(model.state_dict()), folder / "open_clip_pytorch_model.bin")


def under_openclip_names(theirs: dict[str, Any]) -> dict[str, Any]:
    """The same tensors as OpenCLIP stores them."""
    state = {
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T.contiguous(),
        "text_projection": theirs["text_projection.weight"].T.contiguous(),
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "logit_scale": theirs["logit_scale"],
    }
    names = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    names["text_model.final_layer_norm"] = "ln_final"
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
    parts |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for tower, prefix in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for layer in range(12):
            block = f"{tower}.encoder.layers.{layer}"
            names |= {f"{block}.{old}": f"{prefix}.resblocks.{layer}.{new}" for old, new in parts.items()}
            for kind in ("weight", "bias"):
                qkv = [theirs[f"{block}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
                state[f"{prefix}.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(qkv)
    for old, new in names.items():
        state |= {f"{new}.{kind}": theirs[f"{old}.{kind}"] for kind in ("weight", "bias")}
    return state


def main() -> None:
    folder = Path(sys.argv[1])
    write_model(folder)
    operator = ImageTextSimilarityFilter(hf_clip=str(folder / "hf"))
    pairs = json.loads((folder / "pairs.json").read_text())
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        scores = []
        for picture, text in pairs:
            sample = {"text": f"{SpecialTokens.image} {text}", "images": [picture], Fields.stats: {}}
            sample = operator.compute_stats_single(sample)
            scores += sample[Fields.stats][StatsKeys.image_text_similarity]
        print(json.dumps({"seconds": time.perf_counter() - started, "scores": scores}), flush=True)


if __name__ == "__main__":
    main()
