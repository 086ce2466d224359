"""QWenImageProcessor: pictures to `pixel_values`, as `<img>path</img>` in a prompt makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .visual import IMAGE_MEAN, IMAGE_STD, preprocess, read_image


class QWenImageProcessor(ImageProcessingMixin):
    """What AutoImageProcessor loads from a release. There is one way to prepare a picture, so nothing can be set.

    Args:
      size: {"height", "width"}, both the side of the square in pixels.
      described: `image_mean` and others, which say to other programs what is done here, and what transformers adds.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, size: dict[str, int], **described: Any):
        super().__init__(**described)
        self.size = dict(size)
        self.image_mean, self.image_std = list(IMAGE_MEAN), list(IMAGE_STD)

    def __call__(self, images: Any, return_tensors: str | None = None, **settings: Any) -> BatchFeature:
        """Pictures to normalised pixels [I, 3, size, size].

        Args:
          images: one or several of: a Pillow picture, a path or URL, uint8 pixels [H, W, 3].
          return_tensors: of BatchFeature, "pt" for PyTorch; nested lists without it.
          settings: none; another size or filter would be another picture than the model was trained on.

        Raises:
          ValueError: for anything else, or a picture that cannot be read.
          TypeError: for a setting.
        """
        if settings:
            raise TypeError(f"{next(iter(settings))!r} cannot be set: the model knows one way to prepare a picture")
        several = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        pixels = preprocess([_picture(image) for image in several], self.size["height"])
        return BatchFeature({"pixel_values": list(pixels.numpy())}, tensor_type=return_tensors)

    preprocess = __call__


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        return read_image(image)
    pixels = torch.as_tensor(image)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            f"an image of {pixels.dtype} {list(pixels.shape)} cannot be taken; give Pillow pictures, paths, or uint8 "
            "pixels [height, width, 3]"
        )
    return Image.fromarray(pixels.cpu().numpy())
