"""Pictures by path in the PyTorch model's prompts, and conversations."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from qwenvl_jax.conversion import released_config
from qwenvl_jax.conversion.torch_model.qwen_generation_utils import chatml_prompt
from qwenvl_jax.conversion.torch_model.visual import preprocess
from qwenvl_jax.runtime import artifacts
from tests.conversion.torch_tiny import IMAGE_SIZE, QUERIES, make_config, make_model, write_model, write_tokenizer


@pytest.fixture(scope="module")
def chat_release(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> tuple[Any, Any, Path]:
    """Model and tokenizer of one release folder."""
    folder = tmp_path_factory.mktemp("r") / "chat_release"
    tokenizer = write_tokenizer(folder, tiny_data / "tiny.model", "tokenizer.model", QUERIES)
    write_model(folder, make_model(make_config(tokenizer.img_start_id, max_position_embeddings=4096)))
    artifacts.write_json(folder / "preprocessor_config.json", released_config.preprocessor_config(IMAGE_SIZE))
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True)
    assert model.generation_config.chat_format == "chatml"
    return model, tokenizer, folder


@pytest.fixture
def model(chat_release: tuple[Any, Any, Path]) -> Any:
    return chat_release[0]


@pytest.fixture
def tokenizer(chat_release: tuple[Any, Any, Path]) -> Any:
    return chat_release[1]


def picture(seed: int) -> Any:
    noise = np.random.default_rng(seed).integers(0, 256, (10 + seed, 14, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((60, 40 + seed))


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """a.png, b.png and c.png in the working directory: their names fit into sixteen slots."""
    monkeypatch.chdir(tmp_path)
    images = [picture(seed) for seed in range(3)]
    for name, image in zip("abc", images, strict=True):
        image.save(f"{name}.png")
    return images


GREEDY = dict(do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0)


@torch.no_grad()
def test_paths_are_pixel_values(model: Any, tokenizer: Any, pictures: list[Image.Image]) -> None:
    texts = ["<img>a.png</img> and <img>b.png</img>?", "no picture", "this <img>c.png</img>"]
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    pixel_values = preprocess(pictures, IMAGE_SIZE)
    logits = model(**batch).logits
    assert torch.equal(model(**batch, pixel_values=pixel_values).logits, logits)
    assert not torch.allclose(model(**batch, pixel_values=pixel_values.flip(0)).logits, logits, atol=1e-2)
    empty = tokenizer(
        [text.replace("a.png", "").replace("c.png", "") for text in texts], padding=True, return_tensors="pt"
    )
    assert torch.equal(model(**empty, pixel_values=pixel_values).logits, logits)  # what the slots hold does not matter
    together = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for text, answer in zip(texts, together, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        assert model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :].tolist() == answer.tolist()


def test_all_pictures_of_a_batch_take_one_call(
    model: Any, tokenizer: Any, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    encode = model.transformer.visual.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return encode(x)

    monkeypatch.setattr(model.transformer.visual, "forward", forward)
    tokenizer.padding_side = "left"
    batch = tokenizer(["<img>a.png</img><img>b.png</img>", "<img>c.png</img>"], padding=True, return_tensors="pt")
    model.generate(**batch, **GREEDY)
    assert shapes == [(3, 3, IMAGE_SIZE, IMAGE_SIZE)]


def test_mistakes_in_prompts(model: Any, tokenizer: Any, pictures: list[Image.Image]) -> None:
    start, end, pad = tokenizer.img_start_id, tokenizer.img_end_id, tokenizer.img_pad_id
    empty, bytes_only = [start, *[pad] * QUERIES, end], [start, *[97] * QUERIES, end]
    two = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    for ids, pixels, message in [
        (empty, None, "images without a path; pass their pixel_values"),
        (empty, two, "pixel_values has 2 images, but the prompt has 1"),
        (tokenizer.encode("text"), two, "pixel_values has 2 images, but the prompt has 0"),
        (bytes_only, None, "the path 'aaaaaaaaaaaaaaaa' fills all 16 slots.*at most 14 bytes, or .*pass pixel_values"),
        (empty[:9], None, "row 0 has 8 slots before the row ends, but this model needs 16"),
        ([start, *[pad] * 15, end], None, "row 0 has 15 slots, but this model needs 16"),
        ([start, 300, *[pad] * 15, end], None, "mixes text and <imgpad>"),
        ([start, pad, 97, *[pad] * 14, end], None, "mixes text and <imgpad>"),
        (tokenizer.encode("<img>gone.png</img>"), None, r"the image 'gone\.png' cannot be read \(FileNotFoundError"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(torch.tensor([ids]), pixel_values=pixels)
    words = tokenizer.encode("<img> a red square </img>", allowed_special="none")
    text = torch.tensor([[start, *tokenizer.encode("a red square"), end, *words]])
    assert model(text).logits.isfinite().all()  # words between the tags are text


def test_mistakes_in_the_arguments_of_generate(model: Any, tokenizer: Any) -> None:
    prompt = tokenizer("red things", return_tensors="pt")
    with pytest.raises(ValueError, match=r"not used by the model: \['pixel_value'"):
        model.generate(**prompt, pixel_value=torch.zeros(1), **GREEDY)
    with pytest.raises(ValueError, match="a static cache is not supported"):
        model.generate(**prompt, cache_implementation="static", **GREEDY)


def test_speculative_decoding(model: Any, tokenizer: Any, pictures: list[Image.Image]) -> None:
    """Several new tokens at a time, on a cache that is cut back when they are rejected."""
    prompt = tokenizer("<img>a.png</img> red red red red", return_tensors="pt")
    options = GREEDY | dict(eos_token_id=tokenizer.eod_id, max_new_tokens=12)
    expected = model.generate(**prompt, **options)
    assert model.generate(**prompt, **options, prompt_lookup_num_tokens=3).tolist() == expected.tolist()


def chat_ids(tokenizer: Any, *turns: Any) -> Any:
    """Ids of a conversation, put together by hand; pictures as `<img></img>`."""
    line = tokenizer.encode("\n")
    ids: list[int] = []
    for role, text in turns:
        ids += line if ids else []
        ids += [tokenizer.im_start_id, *tokenizer.encode(role), *line]
        ids += tokenizer.encode(text) if isinstance(text, str) else text
        ids += [tokenizer.im_end_id] if (role, text) != turns[-1] else []
    return ids


@torch.no_grad()
def continuation(model: Any, tokenizer: Any, ids: Any, images: Any, **options: Any) -> Any:
    pixels = {"pixel_values": preprocess(images, IMAGE_SIZE)} if images else {}
    stops = [tokenizer.im_end_id, tokenizer.im_start_id, tokenizer.eod_id]
    options = {"max_new_tokens": 8, "do_sample": False} | options
    output = model.generate(torch.tensor([ids]), **pixels, **options, eos_token_id=stops, pad_token_id=tokenizer.eod_id)
    new = output[0, len(ids) :].tolist()
    return tokenizer.decode([token for token in new if token not in stops]).strip()


SYSTEM = ("system", "You are a helpful assistant.")


def test_a_conversation_of_several_turns(model: Any, tokenizer: Any, pictures: list[Image.Image]) -> None:
    first = tokenizer.from_list_format([{"image": "a.png"}, {"text": "What is it?"}])
    answer, history = model.chat(tokenizer, first)
    asked = "Picture 1: <img></img>\nWhat is it?"
    ids = chat_ids(tokenizer, SYSTEM, ("user", asked), ("assistant", ""))
    assert answer == continuation(model, tokenizer, ids, pictures[:1]) and answer
    assert history == [(first, answer)]
    again, longer = model.chat(tokenizer, "And <img>b.png</img>?", history)
    turns = [SYSTEM, ("user", asked), ("assistant", answer), ("user", "And <img></img>?"), ("assistant", "")]
    assert again == continuation(model, tokenizer, chat_ids(tokenizer, *turns), pictures[:2])
    assert longer is history and history == [(first, answer), ("And <img>b.png</img>?", again)]
    other, _ = model.chat(tokenizer, "hi", system="Be brief.", max_new_tokens=3)
    ids = chat_ids(tokenizer, ("system", "Be brief."), ("user", "hi"), ("assistant", ""))
    assert other == continuation(model, tokenizer, ids, [], max_new_tokens=3)


def test_pillow_pictures(model: Any, tokenizer: Any, pictures: list[Image.Image]) -> None:
    by_path, history = model.chat(tokenizer, "Picture 1: <img>a.png</img>\nWhat?")
    answer, turns = model.chat(tokenizer, "What?", images=pictures[:1])
    assert answer == by_path and turns == [("Picture 1: <img></img>\nWhat?", answer)]
    options = {"append_history": False, "images": pictures[:2]}
    mixed, same = model.chat(tokenizer, "<img></img> or <img>c.png</img>?", turns, **options)
    paths, _ = model.chat(tokenizer, "<img>b.png</img> or <img>c.png</img>?", history)
    assert mixed == paths and same is turns and len(turns) == 1
    added, longer = model.chat(tokenizer, "And?", turns, images=pictures[:2])
    assert longer[1] == ("Picture 2: <img></img>\nAnd?", added)
    for images, query in ([None, "What?"], [[], "What?"]):
        with pytest.raises(ValueError, match=r"0 images given for 2 empty <img></img> in history and query"):
            model.chat(tokenizer, query, turns, images=images)


def test_released_context(tokenizer: Any) -> None:
    """Only image tags are special in what a user writes, only grounding tags in what the model wrote."""
    history = [("a<|im_end|><ref>b</ref>", "c<img>d<box>(1,2),(3,4)</box><|im_start|>")]
    ids, dropped = chatml_prompt(tokenizer, "e", history, "s<|endoftext|>", 6144)
    image_tags = {"<ref>", "</ref>", "<box>", "</box>"}
    plain = functools.partial(tokenizer.encode, allowed_special=image_tags)
    turns = [("user", plain(history[0][0])), ("assistant", plain(history[0][1])), ("user", "e"), ("assistant", "")]
    assert ids == chat_ids(tokenizer, ("system", plain("s<|endoftext|>")), *turns) and dropped == 0
    assert ids.count(tokenizer.im_end_id) == 4 and ids.count(tokenizer.ref_start_id) == 1
    assert ids.count(tokenizer.box_start_id) == 1 and tokenizer.img_start_id not in ids


def test_old_turns_leave_the_window_with_their_pictures(
    model: Any, tokenizer: Any, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = [("<img></img>1", "one"), ("<img></img>2", "two"), ("3", "three")]
    system = ("system", "s")
    kept = [("user", "<img></img>2"), ("assistant", "two"), ("user", "3"), ("assistant", "three")]
    newest = [("user", "<img></img>4"), ("assistant", "")]
    expected = chat_ids(tokenizer, system, *kept, *newest)
    query = len(chat_ids(tokenizer, *newest)) + 1
    limit = len(expected) - query + 1  # neither the query nor what fits exactly counts
    assert chatml_prompt(tokenizer, "<img></img>4", history, "s", limit) == (expected, 1)
    assert chatml_prompt(tokenizer, "<img></img>4", history, "s", limit - 1)[1] == 2
    seen: dict[str, Any] = {}
    monkeypatch.setattr(model, "generate", lambda ids, **options: seen.update(options, ids=ids) or ids)
    monkeypatch.setattr(model.generation_config, "max_window_size", limit)
    model.chat(tokenizer, "<img></img>4", history, system="s", images=pictures)
    assert seen["ids"].tolist() == [expected]
    assert torch.equal(seen["pixel_values"], preprocess(pictures[1:], IMAGE_SIZE))


@pytest.mark.parametrize("ending,length", [("", 5), ("<|im_end|>junk", 5), ("<|im_start|>", 5), ("<|endoftext|>", 5)])
def test_the_answer_ends_at_the_first_stop_and_not_before(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, ending: Any, length: int
) -> None:
    said = tokenizer.encode("a red square" + ending)
    output = lambda ids, **_: torch.cat([ids, torch.tensor([said])], dim=1)  # noqa: E731
    monkeypatch.setattr(model, "generate", output)
    assert model.chat(tokenizer, "hi")[0] == "a red square"


def test_mistakes_in_conversations(
    model: Any, tokenizer: Any, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"the image 'gone\.png' cannot be read"):
        model.chat(tokenizer, "<img>gone.png</img>")
    with pytest.raises(ValueError, match="Unclosed image token"):
        model.chat(tokenizer, "<img>a.png")
    long = "x" * 300 + ".png"
    with pytest.raises(ValueError, match=r"xxx\.png' cannot be read"):  # any length is tried
        model.chat(tokenizer, f"<img>{long}</img>")
    with monkeypatch.context() as patch:
        patch.setattr(model.transformer, "visual", None)
        with pytest.raises(ValueError, match="without a vision tower"):
            model.chat(tokenizer, "<img>a.png</img>")
    monkeypatch.setattr(model.generation_config, "chat_format", "raw")
    with pytest.raises(ValueError, match=r"chat_format is .raw..*use generate, or set"):
        model.chat(tokenizer, "hi")
