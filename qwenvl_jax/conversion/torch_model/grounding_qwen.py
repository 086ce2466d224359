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


def _box_text(box: Any) -> str:
    """A box as text. Raises ValueError if it is not four numbers."""
    try:
        x1, y1, x2, y2 = map(int, box)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"a box is [x1, y1, x2, y2], four numbers, not {box!r}; `box` is a list of boxes") from None
    return f"<box>({x1},{y1}),({x2},{y2})</box>"


class GroundingMixin:
    """Methods of a tokenizer that handle the text form of image regions and need no token ids.

    The class that inherits from it must have a method `read_image(source)`.
    """

    def from_list_format(self, elements: Iterable[Mapping[str, Any]]) -> str:
        """Joins elements {"image": path}, {"text": ..} and {"box": [[x1, y1, x2, y2], ..], "ref": ..} into a prompt.

        Images are numbered within the call, as `Picture 1: <img>path</img>` and a line break. Coordinates are
        truncated to integers.

        Raises:
          ValueError: if an element has none of these keys or several of them, or a box is not four numbers.
        """
        text = ""
        images = 0
        for element in elements:
            if len({"image", "text", "box"} & element.keys()) > 1:
                raise ValueError(f"an element has the keys {', '.join(element)}; write one element for each of them")
            if "image" in element:
                images += 1
                text += f"Picture {images}: <img>{element['image']}</img>\n"
            elif "text" in element:
                text += element["text"]
            elif "box" in element:
                text += f"<ref>{element['ref']}</ref>" if "ref" in element else ""
                text += "".join(map(_box_text, element["box"]))
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
        text = unicodedata.normalize("NFC", text)
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

    def _fetch_all_box_with_ref(self, text: str) -> list[dict[str, Any]]:
        """All boxes of a text as dicts with "box" and, for a box directly after a reference, "ref".

        It is the published method. `parse_boxes` also gives later boxes their reference, and skips malformed ones.

        Raises:
          ValueError: if a tag is not closed, or a box is not four integers.
        """
        elements = self.to_list_format(text)
        boxes: list[dict[str, Any]] = []
        for before, element in zip([{}, *elements], elements, strict=False):
            if "box" in element:
                box = tuple(map(int, element["box"].replace("(", "").replace(")", "").split(",")))
                if len(box) != 4:
                    raise ValueError(f"the box {element['box']!r} is not (x1,y1),(x2,y2)")
                boxes.append({"box": box, "ref": before["ref"].strip()} if "ref" in before else {"box": box})
        return boxes

    def _fetch_latest_picture(self, response: str, history: Sequence[Sequence[str | None]] | None = None) -> str | None:
        """The path or URL of the last image of a conversation: in `response` or else in the queries; None without one.

        An empty `<img></img>`, whose image was passed to the model as pixels, has none.
        """
        texts = [*(turn[0] or "" for turn in history or ()), response]
        paths = [path for text in texts for path in re.findall("<img>(.*?)</img>", text, re.DOTALL)]
        return (paths[-1] or None) if paths else None

    def draw_bbox_on_latest_picture(
        self: Any, response: str, history: Sequence[Sequence[str | None]] | None = None, image: Any = None
    ) -> Any:
        """Draws the boxes of an answer, with their references, on the latest image of the conversation.

        Args:
          response: the answer; it may be preceded by a prompt with `<img>path</img>`.
          history: turns (query, response) whose queries may contain `<img>path</img>`; a query may be None.
          image: the Pillow image itself, if the conversation does not give its path.

        Returns:
          A new Pillow image; None if there is no box or no image.
        """
        try:
            from PIL import ImageDraw, ImageFont
        except ImportError:
            raise ImportError("drawing boxes needs Pillow; run `pip install pillow`") from None
        boxes = self.parse_boxes(response)
        path = self._fetch_latest_picture(response, history) if image is None else None
        if not boxes or (image is None and path is None):
            return None
        canvas = self.read_image(path) if image is None else image.convert("RGB").copy()
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
