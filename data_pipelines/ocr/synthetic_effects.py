"""Effects on a synthetic page that move no pixel: paper, noise, tint, shadow, contrast, brightness, blur.

Pictures are [H, W, 3] uint8.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from data_pipelines.ocr.synthetic_settings import PageSettings
from data_pipelines.ocr.warps import random_field

_SHADOW_PX = 64  # side of the small picture on which a shadow is drawn


def paper(rng: np.random.Generator, height: int, width: int, settings: PageSettings) -> np.ndarray:
    """[H, W] uint8 white paper with a grain: fine fibres and broad stains."""
    alpha = rng.uniform(*settings.paper_alpha)
    if alpha == 0:
        return np.full((height, width), 255, np.uint8)
    fine = cv2.resize(random_field(rng, height // 2 + 1, width // 2 + 1, normal=True), (width, height))
    broad = cv2.resize(random_field(rng, 9, 9, normal=True), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = 200 + 25 * fine + 25 * broad
    return np.clip(255 + alpha * (grain - 255), 0, 255).astype(np.uint8)


def noisy(rng: np.random.Generator, gray_HW: np.ndarray, settings: PageSettings) -> np.ndarray:
    """[H, W] uint8 with normal noise."""
    scale = rng.uniform(*settings.noise)
    if scale == 0:
        return gray_HW
    noise = random_field(rng, gray_HW.shape[0], gray_HW.shape[1], normal=True)
    return cv2.convertScaleAbs(np.maximum(cv2.scaleAdd(noise, scale, gray_HW.astype(np.float32)), 0))


def camera(rng: np.random.Generator, image_HWC: np.ndarray, settings: PageSettings) -> np.ndarray:
    """All effects on the whole picture, in SynthDoG's order."""
    image_HWC = _tint_and_shadow(rng, image_HWC, settings)
    contrast = rng.uniform(*settings.contrast)
    brightness = rng.uniform(*settings.brightness)
    if (contrast, brightness) != (1, 0):
        levels = np.clip(contrast * (np.arange(256) - 128) + 128, 0, 255) + brightness
        image_HWC = cv2.LUT(image_HWC, np.clip(levels, 0, 255).astype(np.uint8))
    if rng.random() < settings.motion_blur:
        length = int(rng.integers(int(settings.motion_blur_size[0]), int(settings.motion_blur_size[1]) + 1))
        image_HWC = cv2.filter2D(image_HWC, -1, motion_kernel(length, rng.uniform(0, 360)))
    blur = rng.uniform(*settings.blur)
    return cv2.GaussianBlur(image_HWC, (0, 0), blur) if blur > 0.2 else image_HWC


def _tint_and_shadow(rng: np.random.Generator, image_HWC: np.ndarray, settings: PageSettings) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if rng.random() < settings.tint:
        color = rng.integers(0, 256, 3)
        alpha = rng.uniform(*settings.tint_alpha)
        levels = np.arange(256)[:, None] * (1 - alpha) + color * alpha
        image_HWC = cv2.LUT(image_HWC, levels.astype(np.uint8)[None])
    darkness = int(rng.integers(int(settings.shadow[0]), int(settings.shadow[1]) + 1))
    if darkness == 0:
        return image_HWC
    kept_small = (255 - darkness * _shadow(rng, width, height, settings)).astype(np.uint8)
    kept_HW = cv2.resize(kept_small, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(image_HWC, cv2.merge([kept_HW] * 3), scale=1 / 255)


def _shadow(rng: np.random.Generator, width: int, height: int, settings: PageSettings) -> np.ndarray:
    """[S, S] float from 0 to 1: full on one side of the picture, in a random direction, with a soft edge."""
    amount = rng.uniform(*settings.shadow_amount)
    softness = min(amount, 1 - amount) * rng.uniform(*settings.shadow_smoothing)
    angle = math.radians(rng.uniform(0, 360))
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, _SHADOW_PX) * width, np.linspace(-0.5, 0.5, _SHADOW_PX) * height)
    along = x * math.cos(angle) + y * math.sin(angle)
    along = 0.5 + along / max(2 * np.abs(along).max(), 1e-9)  # from 0 to 1 over the picture
    depth = np.clip((along - (1 - amount) + softness) / max(2 * softness, 1e-3), 0, 1)
    return depth * depth * (3 - 2 * depth)


def motion_kernel(length: int, angle: float) -> np.ndarray:
    """[K, K] float32 kernel of a movement over `length` pixels in direction `angle` (degrees); it adds up to 1."""
    side = length // 2 * 2 + 1
    center = side // 2
    kernel = np.zeros((side, side), np.float32)
    steps = np.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * length)
    columns = np.rint(center + steps * math.cos(math.radians(angle))).astype(int)
    rows = np.rint(center + steps * math.sin(math.radians(angle))).astype(int)
    np.add.at(kernel, (np.clip(rows, 0, side - 1), np.clip(columns, 0, side - 1)), 1)
    return kernel / kernel.sum()
