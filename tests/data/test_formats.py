"""What is written for each task and where the loss counts, against strings written by hand.

In the expected strings `[..]` encloses what is supervised; an image block stands as `<img>..</img>` with one
`<imgpad>` per feature slot.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import Tokens, decode_images, make_example, make_prompt, tokenize_pieces
from qwenvl_jax.data.formats import prompt_pieces, training_pieces
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import encoded_image, make_record, with_content

PAD2 = "<img><imgpad><imgpad></img>"
SIZE = {"width": 200, "height": 100}


def record(task: str, content: dict[str, Any], images: int = 1, language: str = "en") -> Record:
    return Record(
        "r1", task, "tests", language, "CC0-1.0", tuple(encoded_image(k) for k in range(images)), cast(Content, content)
    )


def marked(tokens: Tokens, tokenizer: Tokenizer) -> str:
    """The decoded sample with brackets around every supervised run."""
    bounds = np.flatnonzero(np.diff(tokens.is_target_L.astype(int), prepend=0, append=0))
    out, last = "", 0
    for start, stop in bounds.reshape(-1, 2):
        out += tokenizer.decode(tokens.tokens_L[last:start])
        out += "[" + tokenizer.decode(tokens.tokens_L[start:stop]) + "]"
        last = stop
    return out + tokenizer.decode(tokens.tokens_L[last:])


GOLDEN = [
    (
        record("caption", {"caption": "the beautiful flowers for design."}),
        PAD2 + "Generate the caption in English:[ the beautiful flowers for design.<|endoftext|>]",
    ),
    (
        record("caption", {"caption": "一只猫。"}, language="zh_CN"),
        PAD2 + "Generate the caption in Chinese:[ 一只猫。<|endoftext|>]",
    ),
    (
        record("vqa", {"question": "What is the title of this book?", "answer": "Asi Se Dice!"}),
        PAD2 + "What is the title of this book? Answer:[ Asi Se Dice!<|endoftext|>]",
    ),
    (
        record(
            "grounding",
            {
                "segments": [
                    {"text": "Beautiful shot of ", "boxes": []},
                    {"text": "bees", "boxes": [[132.2, 61.2, 166.6, 81.2], [24, 55.5, 53, 77]]},
                    {"text": " gathering nectars from ", "boxes": []},
                    {"text": "an apricot flower", "boxes": [[44.8, 1.3, 79.8, 31.3]]},
                ],
                **SIZE,
            },
        ),
        PAD2 + "Generate the caption in English with grounding:[ Beautiful shot of<ref> bees</ref>"
        "<box>(661,612),(833,812)</box><box>(120,555),(265,770)</box> gathering nectars from"
        "<ref> an apricot flower</ref><box>(224,13),(399,313)</box><|endoftext|>]",
    ),
    (
        record(
            "grounding",
            {
                "segments": [
                    {"text": "女人 ", "boxes": [[0, 0, 200, 100]]},
                    {"text": "和"},
                    {"text": "狗", "boxes": [[2, 1, 4, 2]]},
                    {"text": "。"},
                ],
                **SIZE,
            },
            language="zh",
        ),
        PAD2 + "Generate the caption in Chinese with grounding:[<ref> 女人</ref><box>(0,0),(999,999)</box> 和"
        "<ref>狗</ref><box>(10,10),(20,20)</box>。<|endoftext|>]",
    ),
    (
        record("ref_grounding", {"phrase": "the ear on a giraffe", "box": [35.2, 10.6, 46.4, 16], **SIZE}),
        PAD2 + "<ref>the ear on a giraffe</ref>[<box>(176,106),(232,160)</box><|endoftext|>]",
    ),
    (
        record("grounded_caption", {"box": [72, 54.2, 95.2, 70.5], "description": "skis", "ref": "This", **SIZE}),
        PAD2 + "<ref>This</ref><box>(360,542),(476,705)</box>[ is skis<|endoftext|>]",
    ),
    (
        record("grounded_caption", {"box": [72, 54.2, 95.2, 70.5], "description": "滑雪板", **SIZE}, language="zh"),
        PAD2 + "<ref>这</ref><box>(360,542),(476,705)</box>[是滑雪板<|endoftext|>]",
    ),
    (
        record(
            "ocr",
            {
                "lines": [
                    {"text": "It is managed", "quad": [[113.6, 12.1], [125, 13.1], [124.8, 18.2], [113.4, 17.2]]},
                    {"text": "广告", "quad": [[0, 0], [200, 0], [200, 100], [0, 100]]},
                ],
                **SIZE,
            },
        ),
        PAD2 + "OCR with grounding: [<ref>It is managed</ref><quad>(568,121),(625,131),(624,182),(567,172)</quad>"
        "<ref>广告</ref><quad>(0,0),(999,0),(999,999),(0,999)</quad><|endoftext|>]",
    ),
    (
        record("text", {"text": "Just text with <box> and <|im_end|>."}, images=0),
        "[Just text with <box> and <|im_end|>.<|endoftext|>]",
    ),
]

DIALOGUE = {
    "system": "",
    "turns": [
        {"role": "user", "parts": [{"image": 0}, {"text": "What is the sign in the picture?"}]},
        {"role": "assistant", "parts": [{"text": "A road closure."}]},
        {
            "role": "user",
            "parts": [{"text": "Compare with "}, {"image": 1}, {"text": "and "}, {"image": 0}, {"text": "now."}],
        },
        {
            "role": "assistant",
            "parts": [
                {"text": "See "},
                {"ref": "the dogs", "boxes": [[20, 10, 40, 20], [0, 0, 200, 100]], "image": 1},
                {"text": " here: "},
                {"image": 1},
                {"text": "Fine."},
            ],
        },
    ],
    "sizes": [[28, 28], [200, 100]],
}

DIALOGUE_TEXT = (
    "[<|im_start|>]system\nYou are a helpful assistant.[<|im_end|>\n"
    f"<|im_start|>]user\nPicture 1: {PAD2}\nWhat is the sign in the picture?[<|im_end|>\n"
    "<|im_start|>]assistant\n[A road closure.<|im_end|>\n"
    f"<|im_start|>]user\nCompare with Picture 2: {PAD2}\nand Picture 3: {PAD2}\nnow.[<|im_end|>\n"
    "<|im_start|>]assistant\n[See <ref>the dogs</ref><box>(100,100),(200,200)</box><box>(0,0),(999,999)</box> here: "
    f"Picture 4: ]{PAD2}[\nFine.<|im_end|>\n]"
)


@pytest.mark.parametrize(("sample", "expected"), GOLDEN, ids=[f"{r.task}-{r.language}" for r, _ in GOLDEN])
@pytest.mark.parametrize("vocabulary_name", ["qwen", "tokenizer"])
def test_every_task(sample: Record, expected: str, vocabulary_name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary_name)
    assert marked(tokenize_pieces(training_pieces(sample), tokenizer, 2), tokenizer) == expected


@pytest.mark.parametrize("vocabulary_name", ["qwen", "tokenizer"])
def test_a_dialogue_of_two_turns_and_several_images(vocabulary_name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary_name)
    tokens = tokenize_pieces(training_pieces(record("dialogue", DIALOGUE, images=2)), tokenizer, 2)
    assert marked(tokens, tokenizer) == DIALOGUE_TEXT
    slots = tokens.image_query_L[tokens.image_query_L >= 0].tolist()
    assert slots == [0, 1, 2, 3, 0, 1, 2, 3]  # pictures 3 and 4 show images 1 and 2 again
    assert tokens.image_indices == (0, 1)


def test_chatml_ids_are_the_released_ones(qwen: Tokenizer) -> None:
    """Also `make_context` of the released code for the query "hi"."""
    pieces = chat_pieces([{"role": "user", "parts": [{"text": "hi"}]}], open_end=True)
    # fmt: off
    assert tokenize_pieces(pieces, qwen, 2).tokens_L.tolist() == [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198,
        151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198,
    ]
    # fmt: on


def released_labels(turns: list[tuple[str, int]]) -> list[bool]:
    """Labels as finetune.py makes them, from the role and the content length of each turn."""
    labels: list[bool] = []
    for role, length in turns:
        labels += [True, False, False] + [role == "assistant"] * length + [True, True]
    return labels


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_dialogue_labels_follow_the_released_rule(qwen: Tokenizer, exchanges: list[tuple[str, str]]) -> None:
    turns = [
        {"role": role, "parts": [{"text": text}]}
        for pair in exchanges
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    tokens = tokenize_pieces(chat_pieces(turns), qwen, 2)
    texts = [text for pair in exchanges for text in pair]
    lengths = [(str(turn["role"]), len(qwen.encode(text))) for turn, text in zip(turns, texts, strict=True)]
    assert tokens.is_target_L.tolist() == released_labels([("system", 6), *lengths])
    assert np.count_nonzero(tokens.tokens_L == qwen.special.im_start) == len(turns) + 1  # none forged by text


PROMPTS = [
    ("caption", "released", PAD2 + "Describe the image in English:"),
    ("caption", "training", PAD2 + "Generate the caption in English:"),
    ("vqa", "released", PAD2 + "How many dog? Answer:"),
    ("grounding", "released", PAD2 + "Generate the caption in English with grounding:"),
    ("ref_grounding", "released", PAD2 + "<ref>dog</ref><box>"),
    ("grounded_caption", "training", PAD2 + "<ref>This</ref><box>(0,0),(999,999)</box>"),
    ("ocr", "released", PAD2 + "OCR with grounding: "),
    (
        "dialogue",
        "released",
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: {PAD2}\n"
        "What is this?<|im_end|>\n<|im_start|>assistant\ndog<|im_end|>\n<|im_start|>user\n"
        f"Picture 2: {PAD2}\nAnd this?<|im_end|>\n<|im_start|>assistant\n",
    ),
]


@pytest.mark.parametrize(("task", "style", "expected"), PROMPTS)
def test_evaluation_prompts(tokenizer: Tokenizer, task: str, style: str, expected: str) -> None:
    pieces = prompt_pieces(make_record(task, 0), style)
    assert not any(piece.supervised for piece in pieces)
    prompt = make_prompt(pieces, make_record(task, 0).images, tokenizer, 2, 28)
    assert tokenizer.decode(prompt.tokens_L) == expected
    assert prompt.images_IHWC.shape == (2 if task == "dialogue" else 1, 28, 28, 3)
    assert len(prompt.image_query_L) == len(prompt.tokens_L)


def test_chinese_caption_prompt(tokenizer: Tokenizer) -> None:
    pieces = prompt_pieces(make_record("caption", 4))
    assert tokenizer.decode(tokenize_pieces(pieces, tokenizer, 2).tokens_L) == PAD2 + "Describe the image in Chinese:"


@pytest.mark.parametrize(
    "task", ["caption", "vqa", "grounding", "grounded_caption", "ocr", "ref_grounding", "dialogue"]
)
def test_a_training_sample_begins_with_its_training_prompt(tokenizer: Tokenizer, task: str) -> None:
    """What is generated from a prompt continues exactly the tokens that training saw."""
    sample = make_record(task, 3)
    prompt = tokenize_pieces(prompt_pieces(sample, "training"), tokenizer, 3)
    whole = tokenize_pieces(training_pieces(sample), tokenizer, 3)
    np.testing.assert_array_equal(whole.tokens_L[: len(prompt.tokens_L)], prompt.tokens_L)
    np.testing.assert_array_equal(whole.image_query_L[: len(prompt.tokens_L)], prompt.image_query_L)
    assert whole.is_target_L[len(prompt.tokens_L) :].all()


def test_make_example(tokenizer: Tokenizer) -> None:
    caption = record("caption", {"caption": "dog"})
    example = make_example(caption, 3, tokenizer, 4)
    assert (example.source, example.record_id, example.error) == (3, "r1", "")
    assert (example.images, example.stated_sizes) == (caption.images, (None,))
    tokens_L, is_target_L, image_query_L, image_indices = example.tokens
    assert tokens_L.dtype == np.int32 and is_target_L.dtype == bool
    special = tokenizer.special
    assert tokens_L[:6].tolist() == [special.img, *[special.imgpad] * 4, special.img_end]
    assert image_query_L[:7].tolist() == [-1, 0, 1, 2, 3, -1, -1]
    assert image_indices == (0,)


def test_an_example_states_the_size_of_its_image(tokenizer: Tokenizer) -> None:
    assert make_example(make_record("ref_grounding", 0), 0, tokenizer, 4).stated_sizes == ((28, 28),)


def test_decoded_images_are_squares_of_bytes() -> None:
    images_IHWC = decode_images([encoded_image(1), encoded_image(2, 40, 30)], 56)
    assert images_IHWC.shape == (2, 56, 56, 3) and images_IHWC.dtype == np.uint8


def test_full_size_image_block_is_258_tokens(qwen: Tokenizer) -> None:
    tokens = tokenize_pieces(prompt_pieces(make_record("ref_grounding", 0)), qwen, 256)
    assert tokens.tokens_L.tolist()[:2] + tokens.tokens_L.tolist()[256:258] == [151857, 151859, 151859, 151858]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (record("ref_grounding", {"phrase": "a", "box": [0, 0, 201, 5], **SIZE}), "'r1' of 'tests': box .* outside"),
        (record("ref_grounding", {"phrase": "a", "box": [9, 0, 5, 5], **SIZE}), "inverted"),
        (record("ocr", {"lines": [{"text": "a", "quad": [[0, 0]]}], **SIZE}), "four"),
        (record("vqa", {"question": "a"}), "does not fit.*answer"),
        (record("caption", {"caption": "a"}, language="fr"), "language 'fr'"),
        (record("dialogue", {**DIALOGUE, "turns": []}, images=2), "begin with a turn of the user"),
        (record("dialogue", DIALOGUE, images=1), "shows image 1"),
        (record("dialogue", {"turns": [{"role": "user", "parts": [{"sound": 0}]}]}), "keys sound"),
        (record("dialogue", {"turns": [{"role": "user", "parts": []}, {"role": "bot", "parts": []}]}), "role 'bot'"),
    ],
)
def test_wrong_content_is_one_sentence(sample: Record, message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_pieces(sample)


def test_prompt_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'released'"):
        prompt_pieces(make_record("caption", 0), "release")
    with pytest.raises(UserError, match="no prompt"):
        prompt_pieces(make_record("text", 0))


def test_bytes_that_are_not_an_image(tokenizer: Tokenizer) -> None:
    pieces = prompt_pieces(make_record("caption", 0))
    with pytest.raises(UserError, match="not a readable image"):
        make_prompt(pieces, [b"not an image"], tokenizer, 2, 28)


def test_a_text_record_may_hold_a_sample_over_a_picture_made_of_words() -> None:
    content = {"task": "ref_grounding", "words": "sky owl", "phrase": "an owl", "box": [20, 20, 100, 60], **SIZE}
    sample = check_record(record("text", content, images=0))
    pieces = training_pieces(sample)
    assert "".join(str(piece.value) for piece in pieces) == (
        "<img> sky owl</img><ref>an owl</ref><box>(100,200),(500,600)</box><|endoftext|>"
    )
    supervised = [str(piece.value) for piece in pieces if piece.supervised]
    assert supervised == ["<box>", "(100,200),(500,600)", "</box>", "<|endoftext|>"]
    with pytest.raises(UserError, match="neither a text nor a picture"):
        check_record(with_content(sample, {"words": "sky"}))


def test_a_text_record_may_hold_a_dialogue_over_several_pictures_made_of_words() -> None:
    asked = [{"image": 0}, {"image": 1}, {"text": "Where is it?"}]
    turns = [
        {"role": "user", "parts": asked},
        {"role": "assistant", "parts": [{"ref": "The owl", "boxes": [[20, 20, 100, 60]], "image": 1}]},
    ]
    sizes = [[SIZE["width"], SIZE["height"]]] * 2
    content = {"task": "dialogue", "words": ["sky sky", "sky owl"], "turns": turns, "sizes": sizes}
    sample = check_record(record("text", content, images=0))
    assert "".join(str(piece.value) for piece in training_pieces(sample)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Picture 1: <img> sky sky</img>\nPicture 2: <img> sky owl</img>\nWhere is it?<|im_end|>\n"
        "<|im_start|>assistant\n<ref>The owl</ref><box>(100,200),(500,600)</box><|im_end|>\n"
    )
    with pytest.raises(UserError, match="a turn shows image 1, but there are 1"):
        training_pieces(with_content(sample, {**content, "words": ["sky sky"]}))
    for words in ([], ["sky", ""], ["sky", 3]):
        with pytest.raises(UserError, match="'words'"):
            check_record(with_content(sample, {**content, "words": words}))
    with pytest.raises(UserError, match="'words' must be a text"):
        check_record(with_content(sample, {"task": "vqa", "words": ["sky"], "question": "?", "answer": "!"}))
