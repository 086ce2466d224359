"""Drawings for machines without apt or network: coloured shapes on backgrounds of smooth noise.

The interface is that of the real sources, so nothing downstream differs. The manifest and the log say that the data
is rendered. The drawings are our own work, CC0-1.0.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.quickstart.backgrounds import Background
from data_pipelines.quickstart.raw_stamp import RawStamp

LICENSE = "CC0-1.0"
SIDE_PX = 160
SUPERSAMPLING = 3

COLORS = {
    "red": ("红色", (214, 40, 40)),
    "blue": ("蓝色", (40, 80, 220)),
    "green": ("绿色", (40, 160, 60)),
    "yellow": ("黄色", (245, 215, 30)),
    "purple": ("紫色", (140, 50, 190)),
    "orange": ("橙色", (250, 135, 20)),
    "white": ("白色", (245, 245, 245)),
    "black": ("黑色", (25, 25, 25)),
}
SHAPES = {
    "circle": "圆形",
    "square": "方形",
    "star": "星形",
    "triangle": "三角",
    "cross": "十字",
    "ring": "圆环",
}


def stamps() -> list[RawStamp]:
    """48 stamps, every shape in every colour: "A red circle." / "一个红色圆形。"."""
    return [
        RawStamp(
            id=f"{shape}/{color}",
            category=shape,
            caption_en=f"{'An' if color == 'orange' else 'A'} {color} {shape}.",
            caption_zh=f"一个{color_zh}{shape_zh}。",
            license=LICENSE,
            source="rendered",
            pixels_HWC=_draw(shape, rgb),
        )
        for shape, shape_zh in SHAPES.items()
        for color, (color_zh, rgb) in COLORS.items()
    ]


def backgrounds(count: int = 8, side_px: int = 400) -> list[Background]:
    """Smooth coloured noise, the same on every call."""
    drawn = []
    for index in range(count):
        rng = np.random.default_rng(index)
        cells = rng.integers(60, 200, size=(5, 5, 3)).astype(np.uint8)
        smooth = Image.fromarray(cells).resize((side_px, side_px), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, size=(side_px, side_px, 1))
        image = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        drawn.append(Background(f"noise-{index}", LICENSE, image))
    return drawn


def _draw(shape: str, rgb: tuple[int, int, int]) -> np.ndarray:
    side = SIDE_PX * SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    low, high, middle = 0.02 * side, 0.98 * side, side / 2
    if shape in ("circle", "ring"):
        draw.ellipse((low, low, high, high), fill=255)
        if shape == "ring":
            draw.ellipse((0.28 * side, 0.28 * side, 0.72 * side, 0.72 * side), fill=0)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=255)
    elif shape == "triangle":
        draw.polygon([(middle, low), (high, high), (low, high)], fill=255)
    elif shape == "cross":
        draw.rectangle((0.35 * side, low, 0.65 * side, high), fill=255)
        draw.rectangle((low, 0.35 * side, high, 0.65 * side), fill=255)
    else:  # star
        radii = [0.48 * side, 0.2 * side] * 5
        angles = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        draw.polygon(
            [(middle + r * math.cos(a), middle + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=255
        )
    alpha = np.asarray(mask.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))
    shade = np.linspace(1.08, 0.8, SIDE_PX)[:, None, None]  # lighter above, so that a shape has a top
    color = np.clip(np.asarray(rgb)[None, None] * shade, 0, 255)
    return np.dstack([np.broadcast_to(color, (SIDE_PX, SIDE_PX, 3)), alpha]).astype(np.uint8)
