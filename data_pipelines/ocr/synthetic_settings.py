"""How synthetic pages look: SynthDoG's published hyperparameters as defaults (paper, A.4; Kim et al., 2022).

Every range is uniform. Names follow the published configuration (`synthdog/config_en.yaml`, equal to `config_zh.yaml`
but for texts and fonts).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwenvl_jax.runtime.errors import UserError, nearest

Range = tuple[float, float]

# Of the eight perspectives: how often each is drawn, and how much of their length the top, right, bottom and left side
# of the document keep at least.
PERSPECTIVE_WEIGHTS = (750, 50, 50, 25, 25, 25, 25, 50)
PERSPECTIVE_SHORTENED = (
    (True, True, True, True),
    (True, False, True, False),
    (False, True, False, True),
    (True, False, False, False),
    (False, True, False, False),
    (False, False, True, False),
    (False, False, False, True),
    (False, False, False, False),
)


@dataclasses.dataclass(frozen=True)
class PageSettings:
    """Ranges and probabilities; sizes are in pixels, shares are from 0 to 1.

    Attributes:
      quality: of the JPEG.
      landscape, short_size, aspect_ratio: of the picture.
      background_blur: standard deviation of the blur of the photograph.
      fullscreen: how often the document covers the picture.
      document_landscape, document_short_size, document_aspect_ratio: of a document that does not.
      paper_alpha: how strongly the grain of the paper shows on white.
      margin: of the document, as a share of its side.
      text_scale: height of a row, as a share of the shorter side of the text area.
      max_row, max_col: of a block of text.
      fill, full: share of the width that columns take; how often they take all.
      stack_spacing, stack_fill, stack_full: the distance of blocks, and the same two for their height.
      textbox_fill: share of its column that a row may take.
      gray_text, gray: how often a row, and then all of the text, is dark grey and not black; the grey.
      elastic_alpha, elastic_sigma: largest shift of a pixel, and the smoothness of the shifts.
      noise: standard deviation of the noise on the document, of 255.
      perspective: the least share of its length that a side keeps; 1 for no perspective.
      tint, tint_alpha: how often the picture is tinted, and how strongly.
      shadow, shadow_amount, shadow_smoothing: darkness of the shadow of 255, its share of the picture, its softness.
      contrast, brightness: factor around mid-grey, then a summand.
      motion_blur, motion_blur_size: how often the picture is blurred by motion; the length.
      blur: standard deviation of the last blur.
    """

    quality: Range = (50, 95)
    landscape: float = 0.5
    short_size: Range = (720, 1024)
    aspect_ratio: Range = (1, 2)
    background_blur: Range = (0, 10)
    fullscreen: float = 0.5
    document_landscape: float = 0.5
    document_short_size: Range = (480, 1024)
    document_aspect_ratio: Range = (1, 2)
    paper_alpha: Range = (0, 0.2)
    margin: Range = (0, 0.1)
    text_scale: Range = (0.0334, 0.1)
    max_row: int = 10
    max_col: int = 3
    fill: Range = (0.5, 1)
    full: float = 0.1
    stack_spacing: Range = (0.0334, 0.0334)
    stack_fill: Range = (0.5, 1)
    stack_full: float = 0.1
    textbox_fill: Range = (0.5, 1)
    gray_text: float = 0.2
    gray: Range = (0, 64)
    elastic_alpha: Range = (0, 1)
    elastic_sigma: Range = (0, 0.5)
    noise: Range = (0, 8)
    perspective: float = 0.75
    tint: float = 0.2
    tint_alpha: Range = (0, 0.2)
    shadow: Range = (0, 160)
    shadow_amount: Range = (0, 1)
    shadow_smoothing: Range = (0.5, 1)
    contrast: Range = (1, 1.5)
    brightness: Range = (-48, 0)
    motion_blur: float = 0.5
    motion_blur_size: Range = (3, 5)
    blur: Range = (0, 1.5)

    def check(self, name: object = "a synthetic page") -> PageSettings:
        """Returns itself; raises UserError, beginning with `name`, for a setting outside of its range."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low, high = value if isinstance(value, tuple) else (value, value)
            least, most = _LIMITS.get(field.name, (0, 1))
            if not least <= low <= high <= most:
                if isinstance(value, tuple):
                    wanted = f"two numbers from {least} to {most}, the smaller one first"
                    raise UserError(f"{name} has {list(value)} as setting {field.name}; write {wanted}")
                raise UserError(f"{name} has {value} as setting {field.name}; write a number from {least} to {most}")
        return self

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: object = "a synthetic page") -> PageSettings:
        """The settings with some values replaced, as they are in a JSON file: ranges are lists of two numbers.

        Args:
          values: by the names of the attributes.
          source: the file that has them, with which messages begin.

        Raises:
          UserError: for an unknown name or a value of another type.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in defaults:
                known = nearest(name, defaults) or "; remove it, or name a setting of ocr/synthetic_settings.py"
                raise UserError(f"{source} has an unknown setting {name!r}{known}")
            numbers = value if isinstance(value, list) else [value]
            wanted = 2 if isinstance(defaults[name], tuple) else 1
            is_number = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
            if len(numbers) != wanted or not is_number or isinstance(value, list) != (wanted == 2):
                form = "a list of two numbers" if wanted == 2 else "one number"
                raise UserError(f"{source} has {value!r} as setting {name}; write {form}")
            given[name] = tuple(value) if wanted == 2 else value
        return cls(**given).check(source)


# The least and the most that a setting may be, if they are not 0 and 1.
_LIMITS: dict[str, tuple[float, float]] = {
    "quality": (1, 100),
    "short_size": (64, 4096),
    "aspect_ratio": (1, 4),
    "background_blur": (0, 50),
    "document_short_size": (64, 4096),
    "document_aspect_ratio": (1, 4),
    "margin": (0, 0.4),
    "text_scale": (0.01, 0.5),
    "max_row": (1, 100),
    "max_col": (1, 10),
    "gray": (0, 255),
    "elastic_alpha": (0, 20),
    "elastic_sigma": (0, 20),
    "noise": (0, 128),
    "perspective": (0.5, 1),
    "shadow": (0, 255),
    "contrast": (0, 3),
    "brightness": (-255, 255),
    "motion_blur_size": (3, 15),
    "blur": (0, 10),
}

# A page whose text is legible at once: a flat sheet without noise, blur or shadow, stored almost losslessly.
CLEAN = PageSettings(
    quality=(95, 95),
    background_blur=(0, 0),
    paper_alpha=(0, 0),
    elastic_alpha=(0, 0),
    noise=(0, 0),
    tint=0,
    shadow=(0, 0),
    contrast=(1, 1),
    brightness=(0, 0),
    motion_blur=0,
    blur=(0, 0),
)
