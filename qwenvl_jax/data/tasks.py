"""The tasks of records: one entry per task, with its keys, its prompt, its answer, and how a page shows it.

Pre-training tasks follow Box B.1 of the paper: a prompt without loss, then the answer and `<|endoftext|>` with loss.
Evaluation prompts are the strings of the released evaluation scripts. A new task is a TypedDict and an entry of
`RECORD_TASKS`; a new key is a line of the TypedDict, `NotRequired` if it is optional.

The content of a record with several samples of one image lists them under `annotations` (`data.annotations`).

Boxes are `[x1, y1, x2, y2]` and quadrilaterals `[[x, y] * 4]` (clockwise from the top left), both in pixels of the
image as stored, whose size is `width` x `height`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar

from qwenvl_jax.data.annotations import ANNOTATIONS, contents_of
from qwenvl_jax.data.content_checks import check_lines, check_segments, kind_of, objects_at, text_at
from qwenvl_jax.data.dialogues import DialogueContent, check_dialogue, dialogue_words
from qwenvl_jax.data.evaluation_content import (
    EVALUATION,
    EvaluationContent,
    check_evaluation,
    evaluation_boxes,
    evaluation_words,
)
from qwenvl_jax.data.languages import language_name
from qwenvl_jax.data.pieces import Piece, box_pieces, quad_pieces, ref_pieces
from qwenvl_jax.data.tags import BOX
from qwenvl_jax.data.word_pictures import WordPictureContent, check_word_pictures, word_pictures
from qwenvl_jax.runtime.errors import UserError

PROMPT_STYLES = ("released", "training")

Box = Sequence[float]
Quad = Sequence[Sequence[float]]


class CaptionContent(TypedDict):
    """One caption of the image."""

    caption: str


class VqaContent(TypedDict):
    """`answers` has the annotated answers of an evaluation set."""

    question: str
    answer: str
    answers: NotRequired[Sequence[str]]


class Segment(TypedDict):
    """A stretch of a caption. A segment with boxes becomes `<ref>text</ref><box>..</box>`."""

    text: str
    boxes: NotRequired[Sequence[Box]]


class GroundingContent(TypedDict):
    """A caption cut into segments."""

    segments: Sequence[Segment]
    width: float
    height: float


class RefGroundingContent(TypedDict):
    """A phrase and the box that it refers to."""

    phrase: str
    box: Box
    width: float
    height: float


class GroundedCaptionContent(TypedDict):
    """`ref` is the reference before the box: by default "This", in Chinese "这"."""

    box: Box
    description: str
    width: float
    height: float
    ref: NotRequired[str]


class OcrLine(TypedDict):
    """One line of written text and its corners."""

    text: str
    quad: Quad


class OcrContent(TypedDict):
    """All lines that are written in the image, in reading order."""

    lines: Sequence[OcrLine]
    width: float
    height: float


class TextContent(TypedDict):
    """Text without an image."""

    text: str


Content = (
    CaptionContent
    | VqaContent
    | GroundingContent
    | RefGroundingContent
    | GroundedCaptionContent
    | OcrContent
    | TextContent
    | WordPictureContent
    | DialogueContent
    | EvaluationContent
)
C = TypeVar("C")


class Regions(NamedTuple):
    """The regions on a record's first image."""

    boxes: Sequence[Box] = ()
    quads: Sequence[Quad] = ()


def _no_check(content: Mapping[str, Any]) -> None:
    """For contents that are only texts."""


def _no_regions(content: Any) -> Regions:
    return Regions()


@dataclasses.dataclass(frozen=True)
class RecordTask(Generic[C]):
    """One task of records.

    Attributes:
      content: the TypedDict of its content.
      words: (content) -> the content in words, for a caption under its picture.
      prompt: (content, language, style) -> the image and the text before the answer. None for tasks without a prompt.
        The styles are PROMPT_STYLES.
      answer: (content, language) -> what the model must write, without `<|endoftext|>`. Text after a colon begins with
        a space. None for dialogues, which `dialogues.chat_pieces` writes.
      answer_opening: the special token with which every answer begins; an evaluation prompt ends with it.
      check: raises UserError if lists in the content are malformed; texts need no check here.
      regions: (content) -> the boxes and quadrilaterals on the first image.
      one_image: whether a record must have exactly one image.
      teaches: whether a model can be trained on its records; else they are questions of a benchmark.
    """

    content: type[C]
    words: Callable[[C], str]
    prompt: Callable[[C, str, str], list[Piece]] | None = None
    answer: Callable[[C, str], list[Piece]] | None = None
    answer_opening: str = ""
    check: Callable[[Mapping[str, Any]], None] = _no_check
    regions: Callable[[C], Regions] = _no_regions
    one_image: bool = True
    teaches: bool = True

    @functools.cached_property
    def required(self) -> tuple[str, ...]:
        """The keys that every content has."""
        return tuple(key for key in self._hints if key not in self.optional)

    @functools.cached_property
    def optional(self) -> tuple[str, ...]:
        """The keys that a content may lack."""
        return tuple(key for key, hint in self._hints.items() if typing.get_origin(hint) is NotRequired)

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """The keys whose values are texts."""
        return tuple(key for key, hint in typing.get_type_hints(self.content).items() if hint is str)

    @functools.cached_property
    def states_size(self) -> bool:
        """Whether the content states the size of the image."""
        return "width" in self.required

    @functools.cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(self.content, include_extras=True)


def check_content(task: str, content: Any) -> None:
    """Raises UserError if a content lacks something that its task needs, or has nothing from which to learn.

    Boxes, quadrilaterals and languages are checked where they are written out (`formats.training_pieces`).
    """
    if not isinstance(content, dict):
        raise UserError(f"its content is {kind_of(content)} instead of an object; write the record again")
    if ANNOTATIONS in content:
        _check_annotations(task, content)
        return
    if task == "text" and ("words" in content or "text" not in content):
        _check_word_picture(content)
        return
    record_task = RECORD_TASKS[task]
    missing = [key for key in record_task.required if key not in content]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)} in its content")
    for key in record_task.texts:
        if key in record_task.required:
            text_at(content, key)
        elif content.get(key) is not None:
            text_at(content, key, blank=True)
    record_task.check(content)


def _check_annotations(task: str, content: Mapping[str, Any]) -> None:
    if not RECORD_TASKS[task].one_image:
        raise UserError(f"only records with one image can have {ANNOTATIONS!r}, not those of the task {task!r}")
    if any(ANNOTATIONS in annotation for annotation in objects_at(content, ANNOTATIONS)):
        raise UserError(f"an annotation has {ANNOTATIONS!r} of its own; list them all in one list")
    for number, single in enumerate(contents_of(content), start=1):
        try:
            check_content(task, single)
        except UserError as error:
            raise UserError(f"annotation {number}: {error}") from None


def _check_word_picture(content: Mapping[str, Any]) -> None:
    if not {"task", "words"} <= content.keys():
        raise UserError("it has neither a text nor a picture made of words and that picture's task")
    task = content["task"]
    if not isinstance(task, str) or task not in RECORD_TASKS or task == "text":
        raise UserError(f"its words stand for a picture of the task {task!r}; name one that shows pictures")
    check_word_pictures(content, one=RECORD_TASKS[task].one_image)
    check_content(task, content)


def _image_and(text: str) -> list[Piece]:
    return [Piece("image", 0), Piece("text", text)]


def _caption_prompt(content: CaptionContent, language: str, style: str) -> list[Piece]:
    verb = "Generate the caption" if style == "training" else "Describe the image"
    return _image_and(f"{verb} in {language_name(language)}:")


def _grounding_prompt(content: GroundingContent, language: str, style: str) -> list[Piece]:
    return _image_and(f"Generate the caption in {language_name(language)} with grounding:")


def _grounding_answer(content: GroundingContent, language: str) -> list[Piece]:
    """A caption with its boxes.

    The space before a reference goes inside it, as the released model writes:
    `<ref> Woman</ref><box>(451,379),(731,806)</box> and<ref> her dog</ref><box>..`.
    """
    pieces: list[Piece] = []
    plain = " "  # text not yet emitted; the answer begins with a space
    for segment in content["segments"]:
        text = segment["text"]
        boxes = segment.get("boxes") or []
        if not boxes:
            plain += text
            continue
        phrase = text.strip()
        plain += text[: len(text) - len(text.lstrip())]
        if plain.endswith(" "):
            plain = plain[:-1]
            phrase = f" {phrase}"
        if plain:
            pieces.append(Piece("text", plain))
        pieces += ref_pieces(phrase)
        for box in boxes:
            pieces += box_pieces(box, content["width"], content["height"])
        plain = text[len(text.rstrip()) :]
    if plain:
        pieces.append(Piece("text", plain))
    return pieces


def _grounded_caption_prompt(content: GroundedCaptionContent, language: str, style: str) -> list[Piece]:
    this = "这" if language_name(language) == "Chinese" else "This"
    ref = ref_pieces(content.get("ref") or this)
    return [Piece("image", 0), *ref, *box_pieces(content["box"], content["width"], content["height"])]


def _grounded_caption_answer(content: GroundedCaptionContent, language: str) -> list[Piece]:
    verb = "是" if language_name(language) == "Chinese" else " is "
    return [Piece("text", f"{verb}{content['description']}")]


def _ocr_answer(content: OcrContent, language: str) -> list[Piece]:
    pieces: list[Piece] = []
    for line in content["lines"]:
        pieces += ref_pieces(line["text"])
        pieces += quad_pieces(line["quad"], content["width"], content["height"])
    return pieces


def _text_words(content: Mapping[str, Any]) -> str:
    return content.get("text") or "\n".join(word_pictures(content))


def _dialogue_regions(content: DialogueContent) -> Regions:
    boxes: list[Box] = []
    quads: list[Quad] = []
    for turn in content["turns"]:
        for part in turn["parts"]:
            if part.get("image", 0) == 0:
                boxes += part.get("boxes", ())
                quads += part.get("quads", ())
    return Regions(boxes, quads)


# The seven tasks of the multi-task stage (paper, Table 3 and Box B.1), the dialogues of stage 3 (B.2), and benchmarks.
RECORD_TASKS: dict[str, RecordTask[Any]] = {
    "caption": RecordTask(
        CaptionContent,
        words=lambda content: content["caption"],
        prompt=_caption_prompt,
        answer=lambda content, language: [Piece("text", f" {content['caption']}")],
    ),
    "vqa": RecordTask(
        VqaContent,
        words=lambda content: f"{content['question']} {content['answer']}",
        prompt=lambda content, language, style: _image_and(f"{content['question']} Answer:"),
        answer=lambda content, language: [Piece("text", f" {content['answer']}")],
    ),
    "grounding": RecordTask(
        GroundingContent,
        words=lambda content: "".join(segment["text"] for segment in content["segments"]),
        prompt=_grounding_prompt,
        answer=_grounding_answer,
        check=check_segments,
        regions=lambda content: Regions(
            boxes=[box for segment in content["segments"] for box in segment.get("boxes") or ()]
        ),
    ),
    "ref_grounding": RecordTask(
        RefGroundingContent,
        words=lambda content: content["phrase"],
        prompt=lambda content, language, style: [Piece("image", 0), *ref_pieces(content["phrase"])],
        answer=lambda content, language: box_pieces(content["box"], content["width"], content["height"]),
        answer_opening=BOX,
        regions=lambda content: Regions(boxes=[content["box"]]),
    ),
    "grounded_caption": RecordTask(
        GroundedCaptionContent,
        words=lambda content: content["description"],
        prompt=_grounded_caption_prompt,
        answer=_grounded_caption_answer,
        regions=lambda content: Regions(boxes=[content["box"]]),
    ),
    "ocr": RecordTask(
        OcrContent,
        words=lambda content: " / ".join(line["text"] for line in content["lines"]),
        prompt=lambda content, language, style: _image_and("OCR with grounding: "),
        answer=_ocr_answer,
        check=check_lines,
        regions=lambda content: Regions(quads=[line["quad"] for line in content["lines"]]),
    ),
    "text": RecordTask(
        TextContent,
        words=_text_words,
        answer=lambda content, language: [Piece("text", content["text"])],
        one_image=False,
    ),
    "dialogue": RecordTask(
        DialogueContent,
        words=dialogue_words,
        check=check_dialogue,
        regions=_dialogue_regions,
        one_image=False,
    ),
    EVALUATION: RecordTask(
        EvaluationContent,
        words=evaluation_words,
        check=check_evaluation,
        regions=lambda content: Regions(boxes=evaluation_boxes(content)),
        one_image=False,
        teaches=False,
    ),
}
