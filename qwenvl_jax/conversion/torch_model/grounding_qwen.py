"""Methods of QWenTokenizer that write prompts with images and boxes, and read and draw the boxes of answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Box = tuple[int, int, int, int]

_ELEMENT = re.compile(r"<(img|ref|box|quad)>")
# A reference ends at its closing tag or, if that is missing, at the next tag. Coordinate 1000 is the far edge.
_REF_OR_BOX = re.compile(
    r"<ref>(?P<ref>.*?)(?:</ref>|(?=</?(?:ref|box|quad|img)>)|\Z)|<box>(?P<box>[^<]*)(?:</box>)?", re.DOTALL
)
_POINT = r"\(\s*([0-9]{1,3}|1000)\s*,\s*([0-9]{1,3}|1000)\s*\)"
_CORNERS = re.compile(rf"{_POINT}\s*,\s*{_POINT}")
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#f032e6")


class GroundingMixin:
    """Methods of a tokenizer that handle the text form of image regions and need no token ids.

    The class that inherits from it must have a method `read_image(source)`.
    """

    def from_list_format(self, elements: Iterable[Mapping[str, Any]]) -> str:
        """Joins elements {"image": path}, {"text": ..} and {"box": [[x1, y1, x2, y2], ..], "ref": ..} into a prompt.

        Images are numbered within the call, as `Picture 1: <img>path</img>` and a line break. Coordinates are
        truncated to integers.

        Raises:
          ValueError: if an element has none of these keys.
        """
        text = ""
        images = 0
        for element in elements:
            if "image" in element:
                images += 1
                text += f"Picture {images}: <img>{element['image']}</img>\n"
            elif "text" in element:
                text += element["text"]
            elif "box" in element:
                text += f"<ref>{element['ref']}</ref>" if "ref" in element else ""
                text += "".join(
                    f"<box>({int(x1)},{int(y1)}),({int(x2)},{int(y2)})</box>" for x1, y1, x2, y2 in element["box"]
                )
            else:
                raise ValueError(f"an element has the keys {', '.join(element) or '(none)'}; use image, text or box")
        return text

    def to_list_format(self, text: str) -> list[dict[str, str]]:
        """Splits a text, normalised to NFC, into elements.

        Returns:
          Dicts with one key each, in order: "image", "ref", "box", "quad" or "text", with the content of the element.

        Raises:
          ValueError: if a tag is not closed.
        """
        text = unicodedata.normalize("NFC", text).replace("<|endoftext|>", "")
        elements: list[dict[str, str]] = []
        position = 0
        while match := _ELEMENT.search(text, position):
            if match.start() > position:
                elements.append({"text": text[position : match.start()]})
            tag = match.group(1)
            end = text.find(f"</{tag}>", match.end())
            if end < 0:
                raise ValueError(f"Unclosed {tag} token: <{tag}> without </{tag}>")
            elements.append({"image" if tag == "img" else tag: text[match.end() : end]})
            position = end + len(f"</{tag}>")
        return [*elements, {"text": text[position:]}] if text[position:] else elements

    @staticmethod
    def parse_boxes(text: str) -> list[tuple[str, Box]]:
        """All boxes of an answer as (reference, (x1, y1, x2, y2)), in thousandths of the image's sides.

        Boxes that directly follow a `</ref>` share that reference; the others get "". Malformed boxes are skipped.
        """
        boxes: list[tuple[str, Box]] = []
        ref = ""
        end = 0
        for match in _REF_OR_BOX.finditer(text):
            if text[end : match.start()].strip():
                ref = ""
            end = match.end()
            if match["box"] is None:
                ref = match["ref"].strip()
            elif corners := _CORNERS.fullmatch(match["box"].strip()):
                x1, y1, x2, y2 = map(int, corners.groups())
                boxes.append((ref, (x1, y1, x2, y2)))
        return boxes

    def fetch_all_box_with_ref(self, text: str) -> list[dict[str, Any]]:
        """The result of `parse_boxes` as dicts with "box" and, if the box has a reference, "ref"."""
        return [{"box": box, "ref": ref} if ref else {"box": box} for ref, box in self.parse_boxes(text)]

    _fetch_all_box_with_ref = fetch_all_box_with_ref  # the name in the published tokenizer

    def draw_bbox_on_latest_picture(
        self: Any, response: str, history: Sequence[Sequence[str]] | None = None, image: Any = None
    ) -> Any:
        """Draws the boxes of an answer, with their references, on the latest image of the conversation.

        Args:
          response: the answer; it may be preceded by a prompt with `<img>path</img>`.
          history: turns (query, response) whose queries may contain `<img>path</img>`.
          image: the Pillow image itself, if the conversation does not give its path.

        Returns:
          A new Pillow image; None if there is no box or no image.
        """
        try:
            from PIL import ImageDraw, ImageFont
        except ImportError:
            raise ImportError("drawing boxes needs Pillow; run `pip install pillow`") from None
        boxes = self.parse_boxes(response)
        texts = [*(turn[0] for turn in history or ()), response]
        paths = [path for text in texts for path in re.findall("<img>(.+?)</img>", text, re.DOTALL)]
        if not boxes or (image is None and not paths):
            return None
        canvas = self.read_image(paths[-1]) if image is None else image.convert("RGB").copy()
        draw = ImageDraw.Draw(canvas)
        stroke = max(1, max(canvas.size) // 200)
        font = ImageFont.load_default(max(10, max(canvas.size) // 40))
        refs = list(dict.fromkeys(ref for ref, _ in boxes))
        for ref, (x1, y1, x2, y2) in boxes:
            colour = _COLOURS[refs.index(ref) % len(_COLOURS)]
            left, right = sorted(int(x / 1000 * canvas.width) for x in (x1, x2))
            top, bottom = sorted(int(y / 1000 * canvas.height) for y in (y1, y2))
            draw.rectangle((left, top, right, bottom), outline=colour, width=stroke)
            if ref:
                corner = (left + stroke, top + stroke)
                draw.rectangle(draw.textbbox(corner, ref, font=font), fill=colour)
                draw.text(corner, ref, fill="white", font=font)
        return canvas
