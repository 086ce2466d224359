"""QWenImageProcessor: converts images to `pixel_values`, exactly as the model reads `<img>path</img>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .visual import IMAGE_MEAN, IMAGE_STD, preprocess, read_image


class QWenImageProcessor(ImageProcessingMixin):
    """The image processor that AutoImageProcessor loads from a release. It has no options.

    Args:
      size: {"height", "width"}, both the side of the square in pixels.
      described: `image_mean` and other keys that describe the preprocessing to other programs but do not change it,
        and keys that transformers adds.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, size: dict[str, int], **described: Any):
        super().__init__(**described)
        self.size = dict(size)
        self.image_mean, self.image_std = list(IMAGE_MEAN), list(IMAGE_STD)

    def __call__(self, images: Any, return_tensors: str | None = None, **settings: Any) -> BatchFeature:
        """Converts images to normalised pixels [I, 3, size, size].

        Args:
          images: one image or a sequence of images. Each is a Pillow image, a path or URL, or uint8 pixels [H, W, 3].
          return_tensors: as in BatchFeature: "pt" gives PyTorch tensors, None gives a list of arrays.
          settings: must be empty; with another size or filter the pixels would differ from those in training.

        Raises:
          ValueError: if an image has another type or cannot be read.
          TypeError: if a setting is given.
        """
        if settings:
            raise TypeError(f"{next(iter(settings))!r} cannot be set: the model needs its one way of preprocessing")
        several = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        pixels = preprocess([_to_pillow(image) for image in several], self.size["height"])
        return BatchFeature({"pixel_values": list(pixels.numpy())}, tensor_type=return_tensors)

    preprocess = __call__


def _to_pillow(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        return read_image(image)
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"an image cannot be an array of {pixels.dtype} {list(pixels.shape)}; pass Pillow images, paths, or uint8 "
            "pixels [height, width, 3]"
        )
    return Image.fromarray(pixels.cpu().numpy())
