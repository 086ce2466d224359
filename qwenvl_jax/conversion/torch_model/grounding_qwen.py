"""Prompts of pictures and boxes, boxes out of answers, and boxes drawn: methods of QWenTokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Box = tuple[int, int, int, int]

_ELEMENT = re.compile(r"<(img|ref|box|quad)>")
# A reference ends at its closing tag or, where that is missing, at the next tag. 1000 is the far edge.
_REF_OR_BOX = re.compile(
    r"<ref>(?P<ref>.*?)(?:</ref>|(?=</?(?:ref|box|quad|img)>)|\Z)|<box>(?P<box>[^<]*)(?:</box>)?", re.DOTALL
)
_POINT = r"\(\s*([0-9]{1,3}|1000)\s*,\s*([0-9]{1,3}|1000)\s*\)"
_CORNERS = re.compile(rf"{_POINT}\s*,\s*{_POINT}")
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#f032e6")


class GroundingMixin:
    """The methods of a tokenizer that know the written form of places in a picture, but no ids.

    The class that mixes it in has `read_image(path or URL)`.
    """

    def from_list_format(self, elements: Iterable[Mapping[str, Any]]) -> str:
        """A prompt of elements {"image": path}, {"text": ..} and {"box": [[x1, y1, x2, y2], ..], "ref": ..}.

        Pictures are numbered within the call: `Picture 1: <img>path</img>` and a line break. Coordinates are written
        without their fractions.

        Raises:
          ValueError: for another element.
        """
        text, pictures = "", 0
        for element in elements:
            if "image" in element:
                pictures += 1
                text += f"Picture {pictures}: <img>{element['image']}</img>\n"
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
        """The parts of a text, in NFC and in order, each {"image" | "ref" | "box" | "quad" | "text": what it says}.

        Raises:
          ValueError: if a tag is not closed.
        """
        text = unicodedata.normalize("NFC", text).replace("<|endoftext|>", "")
        elements: list[dict[str, str]] = []
        at = 0
        while match := _ELEMENT.search(text, at):
            if match.start() > at:
                elements.append({"text": text[at : match.start()]})
            tag = match.group(1)
            end = text.find(f"</{tag}>", match.end())
            if end < 0:
                raise ValueError(f"Unclosed {tag} token: <{tag}> without </{tag}>")
            elements.append({"image" if tag == "img" else tag: text[match.end() : end]})
            at = end + len(tag) + 3
        return [*elements, {"text": text[at:]}] if text[at:] else elements

    @staticmethod
    def parse_boxes(text: str) -> list[tuple[str, Box]]:
        """All boxes of an answer as (reference, (x1, y1, x2, y2)), in thousandths of the picture's sides.

        Boxes that directly follow one `</ref>` share it; others get "". What does not read as a box is left out.
        """
        found: list[tuple[str, Box]] = []
        ref, at = "", 0
        for match in _REF_OR_BOX.finditer(text):
            if text[at : match.start()].strip():
                ref = ""
            at = match.end()
            if match["box"] is None:
                ref = match["ref"].strip()
            elif corners := _CORNERS.fullmatch(match["box"].strip()):
                x1, y1, x2, y2 = map(int, corners.groups())
                found.append((ref, (x1, y1, x2, y2)))
        return found

    def fetch_all_box_with_ref(self, text: str) -> list[dict[str, Any]]:
        """`parse_boxes` as dictionaries with "box" and, where there is one, "ref"."""
        return [{"box": box, "ref": ref} if ref else {"box": box} for ref, box in self.parse_boxes(text)]

    _fetch_all_box_with_ref = fetch_all_box_with_ref  # its published name

    def draw_bbox_on_latest_picture(
        self: Any, response: str, history: Sequence[Sequence[str]] | None = None, image: Any = None
    ) -> Any:
        """The boxes of an answer, drawn with their references on the conversation's latest picture.

        Args:
          response: the answer; a prompt with `<img>path</img>` may stand before it.
          history: turns (query, response) whose queries hold `<img>path</img>`.
          image: the Pillow picture itself, where it has no path.

        Returns:
          A new Pillow picture; None if there is no box or no picture.
        """
        try:
            from PIL import ImageDraw, ImageFont
        except ImportError:
            raise ImportError("drawing needs Pillow; run `pip install pillow`") from None
        boxes = self.parse_boxes(response)
        texts = [*(turn[0] for turn in history or ()), response]
        paths = [path for text in texts for path in re.findall("<img>(.+?)</img>", text, re.DOTALL)]
        if not boxes or (image is None and not paths):
            return None
        picture = self.read_image(paths[-1]) if image is None else image.convert("RGB").copy()
        draw = ImageDraw.Draw(picture)
        stroke = max(1, max(picture.size) // 200)
        font = ImageFont.load_default(max(10, max(picture.size) // 40))
        refs = list(dict.fromkeys(ref for ref, _ in boxes))
        for ref, (x1, y1, x2, y2) in boxes:
            colour = _COLOURS[refs.index(ref) % len(_COLOURS)]
            left, right = sorted(int(x / 1000 * picture.width) for x in (x1, x2))
            top, bottom = sorted(int(y / 1000 * picture.height) for y in (y1, y2))
            draw.rectangle((left, top, right, bottom), outline=colour, width=stroke)
            if ref:
                corner = (left + stroke, top + stroke)
                draw.rectangle(draw.textbbox(corner, ref, font=font), fill=colour)
                draw.text(corner, ref, fill="white", font=font)
        return picture
