"""The vision side of Qwen-VL: image files, preprocessing, ViT, resampler.

Legend: I images, P patches, Q queries, W width of the ViT, D width of the decoder; in `pixels_IHWC` H and W are the
height and width in pixels. Parameter names and layouts are the released ones.
"""

from __future__ import annotations

import io
import math
import os
import stat
import time
import unicodedata
import urllib.request
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

# The mean and standard deviation of CLIP, for RGB values in [0, 1].
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# Formats and limits are those of training. Pillow supports more formats, but some of them start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_BYTES = 1 << 28
MAX_PIXELS = 178_956_970
MAX_SIDE = 65_535
MAX_SCANS = 100  # scans of a JPEG; progressive JPEGs have about ten
MAX_RUNS = 1 << 24  # bytes of a run-length encoded BMP
SECONDS = 30  # time limit for the whole download of an image


def read_image(source: str) -> Image.Image:
    """Reads a JPEG, PNG, WebP, GIF or BMP from a path or from an http(s) or file URL, as RGB.

    The conversion is Pillow's `convert("RGB")`: EXIF rotation is ignored and transparent pixels get no background. A
    path is normalised to NFC, like the path in the token ids. If no such file exists, the path as given and its NFD
    form, which some file systems use, are tried.

    Raises:
      ValueError: if the image cannot be opened, has another format, or exceeds the limits above. The message names
        `source`.
    """
    try:
        payload = _read(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(payload), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
                raise ValueError(f"{image.width} x {image.height} pixels are too many; scale the image down")
            if image.format in ("JPEG", "MPO") and payload.count(b"\xff\xda") > MAX_SCANS:
                raise ValueError("the JPEG has too many scans; save it again")
            if image.format == "BMP" and image.info.get("compression") in (1, 2) and len(payload) > MAX_RUNS:
                raise ValueError("the BMP has too many run lengths; save it as PNG")
            return image.convert("RGB")
    except Exception as error:  # for damaged files Pillow's plugins raise nearly any exception
        raise ValueError(f"the image {source!r} cannot be read ({type(error).__name__}: {error})") from error


def _read(source: str) -> bytes:
    """Reads the bytes of an image. Raises an error after MAX_BYTES, or if a download takes more than SECONDS."""
    if not source.startswith(("http://", "https://", "file://")):
        path = unicodedata.normalize("NFC", source)
        if not os.path.exists(path):
            path = next((p for p in (source, unicodedata.normalize("NFD", source)) if os.path.exists(p)), path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            payload = file.read(MAX_BYTES + 1)
    else:
        received = bytearray()
        deadline = time.monotonic() + SECONDS
        # Some servers reject Python's default user agent.
        request = urllib.request.Request(source, headers={"User-Agent": "Mozilla/5.0"})
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            # `read1` returns whatever has arrived, so the deadline also holds for a slow server.
            while len(received) <= MAX_BYTES and (part := response.read1(1 << 20)):
                received += part
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it did not arrive within {SECONDS} seconds")
        payload = bytes(received)
    if len(payload) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES} bytes")
    return payload


def to_square(image: Image.Image, size: int) -> Image.Image:
    """Resizes an RGB image of any shape to `size` x `size` with Pillow's antialiased bicubic filter.

    The two passes are separate calls in the order of Pillow up to 12: the width first, except that of extremely tall
    images the height first. Pillow 13 changed the order and thereby the rounding: by up to 30 grey levels in sharp
    images.
    """
    tall = image.height > 100 * image.width and size < image.height
    between = (image.width, size) if tall else (size, image.height)
    return image.resize(between, Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BICUBIC)


def preprocess(images: list[Image.Image], size: int) -> torch.Tensor:
    """Images -> [I, 3, size, size] float32: `to_square`, then `normalise`."""
    rows = []
    for image in images:
        square = to_square(image.convert("RGB"), size)
        rows.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3))
    return normalise(torch.stack(rows) if rows else torch.zeros(0, size, size, 3, dtype=torch.uint8))


def normalise(pixels_IHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [I, H, W, 3] -> normalised float32 [I, 3, H, W]."""
    scaled = pixels_IHWC.float() / 255
    mean = torch.tensor(IMAGE_MEAN, device=scaled.device)
    std = torch.tensor(IMAGE_STD, device=scaled.device)
    return ((scaled - mean) / std).permute(0, 3, 1, 2)


def _resize_table(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resizes a square position table [G*G, C] to [tokens, C]: bicubic in float32; unchanged if the sizes agree."""
    source = math.isqrt(table.shape[0])
    target = math.isqrt(tokens)
    if source == target:
        return table
    grid = table.float().view(1, source, source, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(tokens, -1).to(table.dtype)


def sincos_table(grid: int, width: int) -> torch.Tensor:
    """A table [grid * grid, width] float32, row-major.

    The first half of `width` encodes the column, the second half the row.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4).float() / (width // 4))
    angles = torch.arange(grid).float()[:, None] * frequencies
    axis = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return torch.cat((axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)), dim=-1)


class VisualAttention(nn.Module):
    """Self-attention whose `in_proj` rows are head-major: q, k and v of a head are adjacent."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_IPW: torch.Tensor) -> torch.Tensor:
        images, patches, width = x_IPW.shape
        qkv = self.in_proj(x_IPW).view(images, patches, self.heads, 3, width // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).reshape(images, patches, width))


class VisualMLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))  # the exact erf form


class VisualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = VisualAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = VisualMLP(width, hidden)

    def attention(self, q_x: torch.Tensor, k_x: None = None, v_x: None = None, attn_mask: None = None) -> torch.Tensor:
        """The self-attention alone; other keys or a mask are not supported, and must be None."""
        if not (k_x is v_x is attn_mask is None):
            raise TypeError("the blocks of the vision tower attend to their own input only, without a mask")
        return self.attn(q_x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TransformerBlock(nn.Module):
    gradient_checkpointing = False  # set by transformers, as is the function
    _gradient_checkpointing_func: Any

    def __init__(self, width: int, heads: int, hidden: int, layers: int, eps: float):
        super().__init__()
        self.resblocks = nn.ModuleList(VisualAttentionBlock(width, heads, hidden, eps) for _ in range(layers))

    def get_cast_dtype(self) -> torch.dtype:
        """The dtype of activations: that of a norm, which no quantisation changes."""
        return self.resblocks[0].ln_1.weight.dtype  # type: ignore[union-attr, return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x)
            else:
                x = block(x)
        return x


class Resampler(nn.Module):
    """Q learned queries attend to the patches.

    Positions are added to queries and keys after their norms, and never to values.
    """

    pos_embed: torch.Tensor

    def __init__(self, width: int, inner: int, queries: int, heads: int, eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, width))
        # Stored but never trained. It is a buffer because transformers 5 makes frozen parameters trainable on loading.
        self.register_buffer("pos_embed", sincos_table(math.isqrt(queries), width).to(self.query.dtype))
        self.kv_proj = nn.Linear(inner, width, bias=False)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps)
        self.ln_kv = nn.LayerNorm(width, eps)

    def forward(self, x_IPW: torch.Tensor) -> torch.Tensor:
        patches = self.ln_kv(self.kv_proj(x_IPW))
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x_IPW), -1, -1)
        keys = patches + _resize_table(self.pos_embed, x_IPW.shape[1])
        return self.attn(queries, keys, patches, need_weights=False)[0]


class VisionTransformer(nn.Module):
    """[I, 3, H, W] -> [I, Q, D]: patches, blocks, resampler, then `ln_post` and `proj` at the decoder's width.

    Args:
      visual: the sizes, as in `QWenConfig.visual`.
      eps: the epsilon of every LayerNorm.
    """

    def __init__(self, visual: dict[str, Any], eps: float):
        super().__init__()
        width = visual["width"]
        output = visual["output_dim"]
        patch = visual["patch_size"]
        grid = visual.get("position_grid", 16)
        hidden = int(width * visual["mlp_ratio"])
        heads = visual.get("resampler_heads", max(1, output // 128))
        self.table_size = grid * patch  # side length in pixels at which the position table is not interpolated
        self.image_size = visual["image_size"]
        self.queries = visual.get("n_queries", 256)
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(grid**2, width))
        self.ln_pre = nn.LayerNorm(width, eps)
        self.transformer = TransformerBlock(width, visual["heads"], hidden, visual["layers"], eps)
        self.attn_pool = Resampler(output, width, self.queries, heads, eps)
        self.ln_post = nn.LayerNorm(output, eps)
        self.proj = nn.Parameter(torch.zeros(output, output))

    def image_transform(self, image: Image.Image) -> torch.Tensor:
        """A Pillow image of any size -> normalised pixels [3, size, size] float32."""
        return preprocess([image], self.image_size)[0]

    def encode(self, images: list[str | Image.Image]) -> torch.Tensor:
        """Images, or their paths or URLs -> features [I, Q, D]."""
        opened = [read_image(image) if isinstance(image, str) else image for image in images]
        return self(preprocess(opened, self.image_size))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [I, 3, size, size] in any dtype -> features [I, Q, D].

        Raises:
          ValueError: if the pixels are not square or their size is not a multiple of the patch size.
        """
        patch = self.conv1.stride[0]
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] % patch or not shape[2]:
            raise ValueError(
                f"pixel_values must be [images, 3, size, size] with size a multiple of {patch}, not {shape}"
            )
        pixels = pixel_values.to(self.conv1.weight.device, self.transformer.get_cast_dtype())
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + _resize_table(self.positional_embedding, x.shape[1]))
        return self.ln_post(self.attn_pool(self.transformer(x))) @ self.proj


def init_weights(module: nn.Module, std: float) -> None:
    """Initialises the parameters of `module` itself, without its children, as the released code does.

    Source: released visual.py. The weights that the published stage 1 started from are in-house and not public.
    """
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.xavier_uniform_(module.in_proj_weight)
        nn.init.zeros_(module.in_proj_bias)
    elif isinstance(module, Resampler):
        nn.init.trunc_normal_(module.query, std=std)
    elif isinstance(module, VisionTransformer):
        nn.init.normal_(module.positional_embedding, std=module.positional_embedding.shape[1] ** -0.5)
        nn.init.normal_(module.proj, std=len(module.proj) ** -0.5)
