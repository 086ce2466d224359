"""How each task is written: a record becomes pieces of text, special tokens and images, each supervised or not.

Pre-training tasks follow Box B.1 of the paper: a prefix without loss, then the target and `<|endoftext|>` with loss.
Dialogues are ChatML (Box B.2) with the labels of the released finetune.py. Evaluation prompts are the strings of the
released evaluation scripts. Only this file decides where special tokens stand, so text can never forge one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from qwenvl_jax.data import tags
from qwenvl_jax.data.schema import TASKS, Record
from qwenvl_jax.runtime.errors import UserError, nearest

DEFAULT_SYSTEM = "You are a helpful assistant."  # released qwen_generation_utils.py and finetune.py
LANGUAGES = {"en": "English", "zh": "Chinese"}
PROMPT_STYLES = ("released", "training")

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One stretch of a sample, tokenised on its own.

    Attributes:
      kind: "text", "special", or "image": a whole `<img>..</img>` block.
      value: the text; the written form of the special token; the index into the record's images.
      supervised: whether its tokens are training targets. Never true of an image.
    """

    kind: Literal["text", "special", "image"]
    value: str | int
    supervised: bool = False


def language_name(code: str) -> str:
    """The name of a language in prompts: "en" -> "English", "zh" (or "zh_CN", "zh-TW") -> "Chinese".

    Raises:
      UserError: for another language, which no prompt of the model names.
    """
    name = LANGUAGES.get(code.replace("-", "_").split("_")[0].lower())
    if name is None:
        raise UserError(f"language {code!r} has no prompt; use one of {', '.join(LANGUAGES)}")
    return name


def guess_language(text: str) -> str:
    """zh if at least half of the letters are Chinese characters, else en: what a sample is in that does not say."""
    letters = sum(character.isalpha() for character in text)
    return "zh" if letters and 2 * len(_HAN.findall(text)) >= letters else "en"


def training_pieces(record: Record) -> list[Piece]:
    """The whole sample of a record, supervised where the loss counts.

    caption           <img/>Generate the caption in English:| the caption<|endoftext|>
    vqa               <img/>question Answer:| answer<|endoftext|>
    grounding         <img/>Generate the caption in English with grounding:| a<ref> dog</ref><box>..</box><|endoftext|>
    ref_grounding     <img/><ref>phrase</ref>|<box>(x1,y1),(x2,y2)</box><|endoftext|>
    grounded_caption  <img/><ref>This</ref><box>..</box>| is description<|endoftext|>
    ocr               <img/>OCR with grounding: |<ref>text</ref><quad>(..),(..),(..),(..)</quad>..<|endoftext|>
    text              |text<|endoftext|>
    dialogue          see `chat_pieces`
    (| stands where the loss begins; quadrilaterals and boxes as in `tags`.)

    Raises:
      UserError: naming the record, if its content lacks a value or a box leaves its image.
    """
    with _naming(record):
        if record.task == "dialogue":
            return _dialogue(record)
        if record.task == "text" and "words" in record.content:
            return _in_words(record)
        answer = [dataclasses.replace(piece, supervised=True) for piece in _answer(record)]
        return [*_prefix(record, "training"), *answer, Piece("special", tags.ENDOFTEXT, True)]


def prompt_pieces(record: Record, style: str = "released") -> list[Piece]:
    """The prompt of an evaluation record up to where the answer starts, nothing supervised.

    Args:
      style: "released" asks as the released evaluation does ("Describe the image in English:"); "training" repeats
        the training prefix ("Generate the caption in English:"), all that a small model knows. They differ in
        captions only. A referring expression ends with `<box>`, so that the answer starts at "(x1,y1)".

    Raises:
      UserError: for an unknown style, or a record whose task has no prompt.
    """
    if style not in PROMPT_STYLES:
        raise UserError(f"prompt style {style!r} is none of {', '.join(PROMPT_STYLES)}{nearest(style, PROMPT_STYLES)}")
    with _naming(record):
        if record.task == "text":
            raise UserError("the task 'text' has no prompt; evaluate it by likelihood or choose another task")
        if record.task == "dialogue":
            return [dataclasses.replace(piece, supervised=False) for piece in _dialogue(record, open_end=True)]
        pieces = _prefix(record, style)
        return [*pieces, Piece("special", tags.BOX)] if record.task == "ref_grounding" else pieces


@contextlib.contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Says which record is wrong when its content is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"record {record.id!r} of {record.source!r}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"record {record.id!r} has a {record.task} content that does not fit ({error!r})") from None


def _in_words(record: Record) -> list[Piece]:
    """A sample of another task, with words between the image tags where the image's features would stand."""
    sample = training_pieces(dataclasses.replace(record, task=record.content["task"]))
    words = Piece("text", f" {record.content['words']}")
    picture = [Piece("special", tags.IMG), words, Piece("special", tags.IMG_END)]
    return [part for piece in sample for part in (picture if piece.kind == "image" else [piece])]


def _prefix(record: Record, style: str) -> list[Piece]:
    """What stands before the answer: the image and the unsupervised text."""
    content, task = record.content, record.task
    image = Piece("image", 0)
    if task == "caption":
        verb = "Generate the caption" if style == "training" else "Describe the image"
        return [image, Piece("text", f"{verb} in {language_name(record.language)}:")]
    if task == "vqa":
        return [image, Piece("text", f"{content['question']} Answer:")]
    if task == "grounding":
        return [image, Piece("text", f"Generate the caption in {language_name(record.language)} with grounding:")]
    if task == "ref_grounding":
        return [image, *_ref(content["phrase"])]
    if task == "grounded_caption":
        this = "这" if language_name(record.language) == "Chinese" else "This"
        return [image, *_ref(content.get("ref") or this), *_box(content["box"], content)]
    if task == "ocr":
        return [image, Piece("text", "OCR with grounding: ")]
    if task == "text":
        return []
    raise UserError(f"unknown task {task!r}{nearest(task, TASKS)}")


def _answer(record: Record) -> list[Piece]:
    """What the model must write, without `<|endoftext|>`. Text after a colon begins with a space."""
    content, task = record.content, record.task
    if task == "caption":
        return [Piece("text", f" {content['caption']}")]
    if task == "vqa":
        return [Piece("text", f" {content['answer']}")]
    if task == "grounding":
        return _grounded_text(content)
    if task == "ref_grounding":
        return _box(content["box"], content)
    if task == "grounded_caption":
        verb = "是" if language_name(record.language) == "Chinese" else " is "
        return [Piece("text", f"{verb}{content['description']}")]
    if task == "ocr":
        return [piece for line in content["lines"] for piece in (*_ref(line["text"]), *_quad(line["quad"], content))]
    return [Piece("text", content["text"])]


def _grounded_text(content: Mapping[str, Any]) -> list[Piece]:
    """A caption with its boxes. The space before a reference goes inside it, as the released model writes:
    `<ref> Woman</ref><box>(451,379),(731,806)</box> and<ref> her dog</ref><box>..`."""
    pieces: list[Piece] = []
    plain = " "  # text not yet emitted; the answer begins with a space
    for segment in content["segments"]:
        text, boxes = segment["text"], segment.get("boxes") or []
        if not boxes:
            plain += text
            continue
        phrase = text.strip()
        plain += text[: len(text) - len(text.lstrip())]
        if plain.endswith(" "):
            plain, phrase = plain[:-1], f" {phrase}"
        if plain:
            pieces.append(Piece("text", plain))
        pieces += _ref(phrase)
        for box in boxes:
            pieces += _box(box, content)
        plain = text[len(text.rstrip()) :]
    return [*pieces, Piece("text", plain)] if plain else pieces


def _ref(text: str) -> list[Piece]:
    return _tagged("ref", text)


def _box(box: Sequence[float], size: Mapping[str, Any]) -> list[Piece]:
    return _tagged("box", tags.box_to_text(box, size["width"], size["height"]))


def _quad(quad: Sequence[Sequence[float]], size: Mapping[str, Any]) -> list[Piece]:
    return _tagged("quad", tags.quad_to_text(quad, size["width"], size["height"]))


def _tagged(name: str, text: str) -> list[Piece]:
    """A text between two tags, `<ref>text</ref>`. Raises UserError for tags that cannot stand in a text."""
    if name not in _TAGS:
        raise UserError(f"a part has the tag {name!r}; use one of {', '.join(_TAGS)}")
    opening, closing = _TAGS[name]
    return [Piece("special", opening), Piece("text", text), Piece("special", closing)]


_TAGS = {"ref": (tags.REF, tags.REF_END), "box": (tags.BOX, tags.BOX_END), "quad": (tags.QUAD, tags.QUAD_END)}


def chat_pieces(
    turns: Sequence[Mapping[str, Any]],
    *,
    system: str = "",
    sizes: Sequence[Sequence[float]] = (),
    open_end: bool = False,
) -> list[Piece]:
    """A conversation in ChatML.

        <|im_start|>system\\n{system}<|im_end|>\\n
        <|im_start|>user\\nPicture 1: <img/>\\n{text}<|im_end|>\\n<|im_start|>assistant\\n{text}<|im_end|>\\n

    Pictures are numbered through the whole conversation, in order of occurrence. Supervised as in the released
    finetune.py: in every turn, the system's and the user's too, `<|im_start|>`, `<|im_end|>` and the line break
    after it; and what the assistant says. Role names, what system and user say, and images are not.

    Args:
      turns: `{"role": "user" | "assistant", "parts": [part]}`; parts as in schema.Record.
      system: the default text if empty.
      sizes: [width, height] per image, for boxes given in pixels.
      open_end: leave the last thing open for the model: ends with `<|im_start|>assistant\\n` after a user's turn
        and drops the last turn if it is the assistant's.

    Raises:
      UserError: for unknown roles, an assistant that speaks first, or no turns.
    """
    turns = list(turns)
    if open_end and turns and turns[-1].get("role") == "assistant":
        turns.pop()
    if not turns or turns[0].get("role") != "user":
        raise UserError("a dialogue must begin with a turn of the user")
    pieces = _turn("system", [Piece("text", system or DEFAULT_SYSTEM)])
    pictures = 0
    for turn in turns:
        role = turn.get("role", "")
        if role not in ("user", "assistant"):
            raise UserError(f"a dialogue turn has the role {role!r}; use 'user' or 'assistant'")
        if role == "assistant" and any("tag" in part for part in turn["parts"]):
            raise UserError("the assistant writes a place that is none; give it as boxes or quads")
        content, pictures = _turn_content(turn["parts"], sizes, pictures)
        pieces += _turn(role, content)
    if open_end:
        pieces += [Piece("special", tags.IM_START), Piece("text", "assistant"), Piece("text", "\n")]
    return pieces


def _dialogue(record: Record, open_end: bool = False) -> list[Piece]:
    content = record.content
    pieces = chat_pieces(
        content["turns"], system=content.get("system", ""), sizes=content.get("sizes", ()), open_end=open_end
    )
    for piece in pieces:
        if piece.kind == "image" and not 0 <= int(piece.value) < len(record.images):
            raise UserError(f"a turn shows image {piece.value}, but there are {len(record.images)}")
    return pieces


def _turn(role: str, content: Sequence[Piece]) -> list[Piece]:
    """One turn. Role, line break and content are tokenised apart (released qwen_generation_utils.py)."""
    said = role == "assistant"
    return [
        Piece("special", tags.IM_START, True),
        Piece("text", role),
        Piece("text", "\n"),
        *(dataclasses.replace(piece, supervised=said and piece.kind != "image") for piece in content),
        Piece("special", tags.IM_END, True),
        Piece("text", "\n", True),
    ]


def _turn_content(
    parts: Sequence[Mapping[str, Any]], sizes: Sequence[Sequence[float]], pictures: int
) -> tuple[list[Piece], int]:
    """Pieces of one turn and the number of pictures so far. Neighbouring text is tokenised as one string."""
    pieces: list[Piece] = []
    found: list[Piece]
    text = ""
    for part in parts:
        if "text" in part and "tag" not in part:
            text += part["text"]
            continue
        after = ""
        if "tag" in part:
            found = _tagged(part["tag"], part["text"])
        elif part.keys() & {"ref", "boxes", "quads"}:
            found = _places(part, sizes)
        elif "image" in part:
            found = [Piece("image", int(part["image"]))]
            if part.get("numbered", True):
                pictures += 1
                text += f"Picture {pictures}: "
                after = "\n"
        else:
            raise UserError(f"a dialogue part has the keys {', '.join(part)}; use text, image, or ref with boxes")
        pieces += [Piece("text", text), *found] if text else found
        text = after
    return ([*pieces, Piece("text", text)] if text else pieces), pictures


def _places(part: Mapping[str, Any], sizes: Sequence[Sequence[float]]) -> list[Piece]:
    """A reference, if the part has one, and the shapes that follow it."""
    pieces = _ref(part["ref"]) if "ref" in part else []
    shapes = [(_box, box) for box in part.get("boxes", ())] + [(_quad, quad) for quad in part.get("quads", ())]
    for write, shape in shapes:
        width, height = sizes[part.get("image", 0)]
        pieces += write(shape, {"width": width, "height": height})
    return pieces
