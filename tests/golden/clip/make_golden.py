"""Writes the golden files of CLIP with open_clip_torch; run it in an environment of its own.

    pip install torch==2.13.0 torchvision==0.28.0 open_clip_torch==3.3.0 pillow==12.3.0 ftfy==6.3.1
    python tests/golden/clip/make_golden.py

`towers.npz`: the embeddings of both towers of every model, with two blocks each, and of ViT-B-32 with all blocks, with
the weights of `random_weights`. `tensors.json`: names and shapes of all tensors of the full models, `{layer}` for the
number of a block. `pictures.npz`: encoded pictures and their pixels after OpenCLIP's transform for evaluation.
`vocabulary.txt` and `tokens.json`: a small vocabulary in the form of OpenCLIP's, and texts with their ids.
"""

from __future__ import annotations

import collections
import gzip
import io
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from random_weights import random_images, random_tensor, random_tokens  # noqa: E402  its folder is on the path only now

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14", "ViT-B-32-quickgelu")
PICTURE_SIZE = 32


def model_config(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    config.pop("custom_text", None)
    return config


def with_layers(name: str, layers: int | None) -> Any:
    """A model with random weights, with so many blocks per tower; None: all."""
    config = model_config(name)
    if layers is not None:
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = layers
    model = open_clip.CLIP(**config).eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if tensor.dim()}
    state = {key: torch.from_numpy(random_tensor(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(state, strict=False)
    return model


def towers() -> None:
    arrays = {}
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pixels = torch.from_numpy(random_images(2, 224)).permute(0, 3, 1, 2) / 255
    tokens = torch.from_numpy(random_tokens())
    for name, layers in (*((name, 2) for name in MODELS), ("ViT-B-32", None)):
        model = with_layers(name, layers)
        key = f"{name}/{layers or 'all'}"
        with torch.no_grad():
            arrays[f"{key}/images"] = model.encode_image((pixels - mean) / std, normalize=True).numpy()
            arrays[f"{key}/texts"] = model.encode_text(tokens, normalize=True).numpy()
        print(key)
    np.savez_compressed(FOLDER / "towers.npz", **arrays)


def tensors() -> None:
    models = {}
    for name in MODELS:
        with torch.device("meta"):
            state = open_clip.CLIP(**model_config(name)).state_dict()
        grouped: dict[str, list[Any]] = {}
        for key, tensor in state.items():
            group = re.sub(r"resblocks\.\d+\.", "resblocks.{layer}.", key)
            grouped.setdefault(group, [list(tensor.shape), 0])[1] += 1
        models[name] = grouped
    (FOLDER / "tensors.json").write_text(json.dumps(models, separators=(",", ":"), sort_keys=True) + "\n")


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pictures() -> None:
    rng = np.random.default_rng(0)

    def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
        coarse = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), channels)).astype(np.uint8)
        layers = [
            Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
        ]
        return np.stack([np.asarray(layer) for layer in layers], axis=-1)

    sizes = ((96, 64), (64, 97), (33, 32), (32, 32), (20, 15), (7, 90), (301, 40), (1, 1), (45, 77))
    files = {f"rgb_{w}x{h}": encoded(Image.fromarray(noise(w, h)), "JPEG", quality=85) for w, h in sizes}
    files["rgb_png"] = encoded(Image.fromarray(noise(50, 41)), "PNG")
    files["grey"] = encoded(Image.fromarray(noise(60, 80, 1)[..., 0]), "JPEG")
    files["transparent"] = encoded(Image.fromarray(noise(60, 50, 4), "RGBA"), "PNG")
    files["palette"] = encoded(Image.fromarray(noise(60, 50)).quantize(32), "PNG")
    files["cmyk"] = encoded(Image.fromarray(noise(60, 50, 4), "CMYK"), "JPEG")
    transform = image_transform(PICTURE_SIZE, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    arrays: dict[str, Any] = {}
    for name, payload in files.items():
        pixels = transform(Image.open(io.BytesIO(payload))).permute(1, 2, 0).numpy()
        arrays[f"{name}/encoded"] = np.frombuffer(payload, np.uint8)
        arrays[f"{name}/pixels"] = np.round(pixels * 255).astype(np.uint8)
    np.savez_compressed(FOLDER / "pictures.npz", **arrays)


TEXTS = (
    *("", " ", "a photo of a cat", "Two  dogs\n play,\tin the snow!!", "It's I'VE we'll THEY'D I'm you're don't"),
    *("'ſ 'K", "小さな猫と大きな犬", "한국어 문장입니다", "עברית وعربي", "ภาษาไทย", "हिन्दी भाषा", "Привет, мир"),
    *("Ελληνικά", "😀👩\u200d👩\u200d👧 ✨ stars", "ﬁne ﬆone ß ẞ İ ı K Å ǆ", "na\u0308ive café", "â€œquotedâ€\x9d"),
    *("\u200b\ufeff a\u00a0b\u3000c", "1234567890 ½ ² Ⅷ ٣", "a\x00b\x1b[31mred", "\ufffd", "a_b-c/d...!!!??"),
    *("&amp;amp; &lt;b&gt; &#x1F600; &nbsp;x &eacute", "<end_of_text> and <START_OF_TEXT> <ſtart_of_text>"),
    *("the " * 100, "x" * 300, "word " * 75, "word " * 76),
)


def learned_merges(texts: tuple[str, ...], count: int) -> list[tuple[str, str]]:
    """The most frequent pairs of the words of `texts`, one after the other."""
    tokenizer = SimpleTokenizer()
    words = collections.Counter(
        tuple(tokenizer.byte_encoder[byte] for byte in word.encode())
        for text in texts
        for word in re.findall(r"\w+|[^\w\s]+", text.lower())
    )
    spelled = {(*word[:-1], word[-1] + "</w>"): number for word, number in words.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, number in spelled.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += number
        if not pairs:
            break
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(best)
        merged = {}
        for word, number in spelled.items():
            parts = list(word)
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
            merged[tuple(parts)] = number
        spelled = merged
    return merges


def tokens() -> None:
    prose = tuple((FOLDER.parents[2] / "docs" / "data.md").read_text().split("\n"))
    lines = [" ".join(pair) for pair in learned_merges((*prose, *TEXTS), 1200)]
    (FOLDER / "vocabulary.txt").write_text("\n".join(["version", *lines]) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "vocabulary.txt.gz"
        packed.write_bytes(gzip.compress("\n".join(["version", *lines]).encode()))
        tokenizer = SimpleTokenizer(str(packed))
    ids = [[text, tokenizer([text])[0].tolist()] for text in TEXTS]
    (FOLDER / "tokens.json").write_text(json.dumps(ids, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    for part in sys.argv[1:] or ("towers", "tensors", "pictures", "tokens"):
        {"towers": towers, "tensors": tensors, "pictures": pictures, "tokens": tokens}[part]()
