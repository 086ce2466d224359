"""A release in programs written for the published Qwen-VL: the names they import and the calls they make."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.generation import GenerationConfig

from qwenvl_jax.conversion import released_config
from qwenvl_jax.conversion.torch_model.qwen_generation_utils import (
    StopWordsLogitsProcessor,
    decode_tokens,
    get_stop_words_ids,
    make_context,
)
from qwenvl_jax.data.tokenizer import packaged_qwen_vocabulary
from qwenvl_jax.runtime import artifacts
from tests.conversion.torch_tiny import VISUAL, make_config, make_model, write_model, write_tokenizer

SYSTEM = "You are a helpful assistant."
ENDOFTEXT, IM_START, IM_END, EXTRA_0, IMG = 151643, 151644, 151645, 151646, 151857
SETTINGS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of a tiny model with the vocabulary of the published one."""
    folder = tmp_path_factory.mktemp("r") / "dialect_release"
    write_tokenizer(folder, packaged_qwen_vocabulary(), "qwen.tiktoken", 256)
    visual = {**VISUAL, "n_queries": 256, "image_start_id": IMG}
    write_model(folder, make_model(make_config(IMG, vocab_size=151936, seq_length=2048, visual=visual)))
    settings = released_config.generation_config(stage="sft", end_id=ENDOFTEXT)
    artifacts.write_json(folder / "generation_config.json", settings | {"do_sample": False, "max_new_tokens": 8})
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer, loaded with the arguments of the published demos."""
    source: dict[str, Any] = {"trust_remote_code": True, "revision": "master"}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **source)
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), device_map="cpu", **source).eval()
    model.generation_config = GenerationConfig.from_pretrained(str(folder), **source)
    return model, tokenizer


@pytest.fixture
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return copy.deepcopy(loaded[1])


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """The paths of two pictures."""
    for name, colour in (("one", "red"), ("two", "navy")):
        Image.linear_gradient("L").convert("RGB").resize((80, 60)).save(tmp_path / f"{name}.png")
        Image.new("RGB", (100, 50), colour).save(tmp_path / f"{name}.jpg")
    return [str(tmp_path / "one.png"), str(tmp_path / "two.jpg")]


# Stop words


@pytest.mark.parametrize(
    "wrong", [[], [[]], [[1], []], [1, 2], "stop", ["stop"], [["stop"]], [[-1]], [[1.5]], 7, [None]]
)
def test_mistakes_in_stop_words(model: Any, tokenizer: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match="stop_words_ids"):
        StopWordsLogitsProcessor(wrong, ENDOFTEXT)
    if wrong != []:
        for call in (model.chat, model.chat_stream):
            with pytest.raises(ValueError, match="stop_words_ids"):
                list(call(tokenizer, "hi", stop_words_ids=wrong, **SETTINGS))


def test_stop_words_as_a_processor(model: Any, tokenizer: Any) -> None:
    """By the published constructor it also looks at the prompt; a stop word may have several tokens."""
    rows = torch.tensor([[1, 2, 3], [2, 3, 1], [9, 9, 3]])
    stop = StopWordsLogitsProcessor(stop_words_ids=[np.array([2, 3]), [1]], eos_token_id=5)
    forced = stop(rows, torch.zeros(3, 8)).argmax(-1)
    assert forced.tolist() == [5, 5, 0] and stop(rows[:, :1], torch.zeros(3, 8)).argmax(-1).tolist() == [5, 0, 0]
    _, ids = make_context(tokenizer, "hi", system=SYSTEM)
    prompt = torch.tensor([ids])
    settings = {**SETTINGS, "max_new_tokens": 8, "eos_token_id": ENDOFTEXT, "pad_token_id": ENDOFTEXT}
    free = model.generate(prompt, **settings)[0, len(ids) :].tolist()
    words = [free[2:4]]
    processors = LogitsProcessorList([StopWordsLogitsProcessor(words, ENDOFTEXT)])
    expected = [*ids, *free[:4], ENDOFTEXT]
    assert model.generate(prompt, None, processors, **settings)[0].tolist() == expected
    assert (
        model.generate(prompt, model.generation_config, None, stop_words_ids=words, **settings)[0].tolist() == expected
    )
    other = LogitsProcessorList([StopWordsLogitsProcessor([free[5:6]], ENDOFTEXT)])
    assert model.generate(prompt, None, other, stop_words_ids=words, **settings)[0].tolist() == expected


# Demos and servers


def continuation(model: Any, tokenizer: Any, query: str, history: Any, **settings: Any) -> list[int]:
    """New ids of `generate` up to the first one that ends an answer."""
    _, ids = make_context(tokenizer, query, history, SYSTEM)
    output = model.generate(torch.tensor([ids]), **{**SETTINGS, **settings}, pad_token_id=ENDOFTEXT)
    new = output[0, len(ids) :].tolist()
    return new[: next((k for k, token in enumerate(new) if token in (ENDOFTEXT, IM_START, IM_END)), len(new))]


def test_calls_of_the_web_demo(model: Any, tokenizer: Any, pictures: list[str], tmp_path: Path) -> None:
    """Pictures are turns of their own, numbered over the conversation; the demo streams and draws."""
    conversation: list[Any] = [((pictures[0],), None), ("What is it", "a dog"), ((pictures[1],), None), ("", None)]
    turns, text, number = [], "", 0
    for asked, answered in conversation:
        if isinstance(asked, tuple):
            number += 1
            text += f"Picture {number}: <img>{asked[0]}</img>\n"
        else:
            turns.append((text + asked, answered))
            text = ""
    *history, (message, _) = turns
    before = copy.deepcopy(history)
    parts = list(model.chat_stream(tokenizer, message, history=history))
    assert history == before and all(isinstance(part, str) for part in parts)
    new = continuation(model, tokenizer, message, history, max_new_tokens=8)
    flags = {"skip_special_tokens": True, "keep_image_special": True, "errors": "ignore"}
    assert parts == [tokenizer.decode(new[: k + 1], **flags).strip() for k in range(len(new))]
    history.append((message, parts[-1]))
    assert tokenizer.draw_bbox_on_latest_picture(parts[-1], history) is None
    answer = "<ref>It</ref><box>(100,200),(500,600)</box>"
    drawn = tokenizer.draw_bbox_on_latest_picture(answer, history)
    drawn.save(str(tmp_path / "drawn.jpg"))
    assert Image.open(tmp_path / "drawn.jpg").size == (100, 50)


def test_calls_of_the_api_server(model: Any, tokenizer: Any, pictures: list[str]) -> None:
    """Turns are lists; streamed answers are sent as what is new since the last part."""
    history = [[f"<img>{pictures[0]}</img>What?", "a dog"], ["And?", "a cat"]]
    response, _ = model.chat(tokenizer, "Why?", history=copy.deepcopy(history))
    new = continuation(model, tokenizer, "Why?", history, max_new_tokens=8)
    assert response == tokenizer.decode(new).strip()
    sent = ""
    for part in model.chat_stream(tokenizer, "Why?", history):
        sent += part[len(sent) :]
        assert sent == part
    assert sent == part


def test_calls_of_the_evaluation_scripts(model: Any, tokenizer: Any, pictures: list[str]) -> None:
    tokenizer.padding_side = "left"
    tokenizer.pad_token_id = tokenizer.eod_id
    prompts = [f"<img>{path}</img>{text} Answer:" for path, text in zip(pictures, ["Why?", "a b c d"], strict=True)]
    batch = tokenizer(prompts, return_tensors="pt", padding="longest")
    common: dict[str, Any] = dict(
        do_sample=False, num_beams=1, max_new_tokens=5, min_new_tokens=5, length_penalty=1, num_return_sequences=1,
        output_hidden_states=True, use_cache=True, pad_token_id=tokenizer.eod_id, eos_token_id=tokenizer.eod_id,
    )  # fmt: skip
    output = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **common)
    answers = [tokenizer.decode(row[batch.input_ids.size(1) :].cpu(), skip_special_tokens=True) for row in output]
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = tokenizer(prompt, return_tensors="pt")
        row = model.generate(**alone, **common)[0, alone.input_ids.size(1) :]
        assert tokenizer.decode(row, skip_special_tokens=True) == answer


def test_chats_in_one_batch(folder: Path, loaded: tuple[Any, Any]) -> None:
    """Prompts as text, tokenized together, padded on the left with `<|extra_0|>`, and no attention mask."""
    words: Any = {"pad_token": "<|extra_0|>", "eos_token": "<|endoftext|>", "padding_side": "left"}
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True, **words)
    assert tokenizer.pad_token_id == EXTRA_0
    model, plain = loaded
    config: Any = GenerationConfig.from_pretrained(str(folder), pad_token_id=tokenizer.pad_token_id, **SETTINGS)
    assert config.chat_format == "chatml" and config.max_window_size == 6144
    queries = ["hi", "What do you see in the sky? " * 3, "a"]
    texts = []
    for query in queries:
        text, _ = make_context(
            tokenizer, query, system=SYSTEM, max_window_size=config.max_window_size, chat_format=config.chat_format
        )
        texts.append(text)
    ids = torch.tensor(tokenizer(texts, padding="longest")["input_ids"])
    padded = (ids == EXTRA_0).sum(-1)
    assert padded.min() == 0 < padded.max() and (ids[:, 0] == EXTRA_0).sum() == 2
    stop = get_stop_words_ids(config.chat_format, tokenizer)
    output = model.generate(ids, stop_words_ids=stop, return_dict_in_generate=False, generation_config=config)
    for query, text, row, padding in zip(queries, texts, output, padded.tolist(), strict=True):
        length = ids.shape[1] - padding
        answer = decode_tokens(row[padding:], tokenizer, len(text), length, chat_format="chatml", errors="replace")
        assert answer == model.chat(plain, query, history=None, generation_config=config)[0]


def test_arguments_of_chat_by_position(model: Any, tokenizer: Any) -> None:
    config = GenerationConfig(do_sample=False, max_new_tokens=4, chat_format="chatml")
    expected, _ = model.chat(tokenizer, "hi", system="S", generation_config=config)
    turns: list[Any] = []
    assert model.chat(tokenizer, "hi", turns, "S", False, None, None, config) == (expected, [])
    assert model.chat(tokenizer, "hi", turns, "S", True, False, [], config, max_window_size=None)[1] is turns
    assert turns == [("hi", expected)]
    streamed = list(model.chat_stream(tokenizer, "hi", None, "S", None, None, config))
    assert len(streamed) == 4
    banned = tokenizer.encode(expected, allowed_special="none")[0]

    class Ban(torch.nn.Module):
        def forward(self, ids: Any, scores: Any) -> Any:
            return scores.index_fill(1, torch.tensor([banned]), -1e9)

    other = list(model.chat_stream(tokenizer, "hi", None, "S", None, LogitsProcessorList([Ban()]), config))
    assert other[0] != streamed[0]


def test_an_end_token_of_the_caller_is_added_to_those_of_the_format(model: Any, tokenizer: Any) -> None:
    seen: list[Any] = []

    class Note(torch.nn.Module):
        def forward(self, ids: Any, scores: Any) -> Any:
            seen.append(ids.shape[1])
            return torch.zeros_like(scores).index_fill(1, torch.tensor([IM_END]), 9.0)

    settings: dict[str, Any] = {
        **SETTINGS,
        "eos_token_id": ENDOFTEXT,
        "logits_processor": LogitsProcessorList([Note()]),
    }
    assert model.chat(tokenizer, "hi", **settings)[0] == "" and len(seen) == 1
    assert list(model.chat_stream(tokenizer, "hi", **settings)) == [""]  # a loop over the parts runs at least once


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"query": None}, "query must be a text, not NoneType"),
        ({"query": [{"text": "hi"}]}, "query must be a text, not list; join .* tokenizer.from_list_format"),
        ({"system": None}, "system must be a text, not NoneType"),
        ({"history": [{"role": "user", "content": "hi"}]}, r"history\[0\] is .*apply_chat_template"),
        ({"history": [("a", "b"), "cd"]}, r"history\[1\] is 'cd'"),
        ({"history": [("a", "b", "c")]}, r"history\[0\]"),
        ({"history": [(("a.png",), None)]}, r"history\[0\]"),
        ({"history": [("a", 7)]}, r"history\[0\]"),
        ({"num_return_sequences": 2}, "use generate for several answers"),
        ({"return_dict_in_generate": True}, "use generate for several answers"),
        ({"warmth": 1.0}, "warmth"),
        ({"stop": ["a"]}, "stop"),
        ({"query": "<img>a.png"}, "Unclosed image token"),
    ],
)
def test_what_is_not_understood_is_an_error(model: Any, tokenizer: Any, arguments: Any, message: str) -> None:
    arguments = {"query": "hi", "history": [], **SETTINGS, **arguments}
    history = copy.deepcopy(arguments["history"])
    for call in (model.chat, model.chat_stream):
        with pytest.raises((ValueError, TypeError), match=message):
            list(call(tokenizer, **arguments))
    assert arguments["history"] == history


def test_a_picture_in_the_system_text(model: Any, tokenizer: Any, pictures: list[str]) -> None:
    system = f"This is the house: <img>{pictures[0]}</img>"
    answer, _ = model.chat(tokenizer, "Who?", system=system, **SETTINGS)
    ids = torch.tensor([make_context(tokenizer, "Who?", system=system)[1]])
    settings = {**SETTINGS, "eos_token_id": [IM_END, IM_START, ENDOFTEXT], "pad_token_id": ENDOFTEXT}
    new = model.generate(ids, **settings)[0, ids.shape[1] :].tolist()
    assert answer == tokenizer.decode([token for token in new if token not in (IM_END, IM_START, ENDOFTEXT)]).strip()
    with pytest.raises(ValueError, match="cannot be read"):
        model.chat(tokenizer, "Who?", system="<img>gone.png</img>", **SETTINGS)


# The tokenizer


def test_the_latest_picture(tokenizer: Any, pictures: list[str]) -> None:
    history = [(f"<img>{pictures[0]}</img>", "ok"), (f"<img>{pictures[1]}</img>?", None), ["and?", "<img>no.png</img>"]]
    assert tokenizer._fetch_latest_picture("a", history) == pictures[1]
    assert tokenizer._fetch_latest_picture(f"<img>{pictures[0]}</img>b", history) == pictures[0]
    for none in (None, [], [("no picture", "")], [(None, None)], [("<img></img>", "")]):
        assert tokenizer._fetch_latest_picture("a", none) is None
    box = "<box>(0,0),(9,9)</box>"
    assert tokenizer.draw_bbox_on_latest_picture(box, [*history, (None, "a")]).size == (100, 50)
    assert tokenizer.draw_bbox_on_latest_picture(box, [*history, ("<img></img>", "a")]) is None
    # Some programs keep the pictures themselves and replace the method.
    tokenizer._fetch_latest_picture = lambda *arguments, **named: pictures[0]
    assert tokenizer.draw_bbox_on_latest_picture(box, [("hi", "a")]).size == (80, 60)


def test_a_fine_tuning_framework_changes_the_tokenizer_class(folder: Path) -> None:
    """It empties IMAGE_ST of the class, and wraps `_decode`, which it expects to get its ids by name, as a list."""
    kind: Any = get_class_from_dynamic_module("tokenization_qwen.QWenTokenizer", str(folder))
    inner, tags = kind._decode, kind.IMAGE_ST
    lengths = []

    def outer(self: Any, *arguments: Any, skip_special_tokens: bool = False, **named: Any) -> str:
        if skip_special_tokens:
            ids = named["token_ids"]
            while ids and ids[-1] in (IM_END, ENDOFTEXT):
                ids.pop()
            lengths.append(len(ids))
        return inner(self, *arguments, skip_special_tokens=False, **named)

    try:
        kind._auto_class, kind.IMAGE_ST, kind._decode = "AutoTokenizer", (), outer
        tokenizer = kind.from_pretrained(str(folder), trust_remote_code=True)
        assert tags == tokenizer.IMAGE_ST and len(tags) == 9
        ids = tokenizer.encode("<ref>a</ref> dog<|im_end|><|endoftext|>")
        assert tokenizer.decode(ids, skip_special_tokens=True) == "<ref>a</ref> dog"
        assert tokenizer.batch_decode([ids, ids[:1]], skip_special_tokens=True) == ["<ref>a</ref> dog", "<ref>"]
        assert lengths == [len(ids) - 2, len(ids) - 2, 1]
    finally:
        kind.IMAGE_ST, kind._decode = tags, inner


# The modules of the model


def test_a_server_of_features_reads_the_tower(model: Any, folder: Path, pictures: list[str]) -> None:
    visual = model.transformer.visual
    pixels = torch.stack([visual.image_transform(Image.open(path)) for path in pictures])
    with torch.no_grad():
        assert torch.equal(visual(pixels), visual.encode(pictures))
    block = visual.transformer.resblocks[0]
    kinds = [get_class_from_dynamic_module(f"visual.{name}", str(folder)).__name__ for name in
             ("VisualAttentionBlock", "TransformerBlock", "VisionTransformer", "Resampler")]  # fmt: skip
    assert kinds[:2] == [type(block).__name__, type(visual.transformer).__name__]
    assert visual.transformer.get_cast_dtype() == torch.float32
    x = torch.randn(1, 4, block.ln_1.weight.numel())
    y = x + block.attention(q_x=block.ln_1(x))
    assert torch.equal(block(x), y + block.mlp(block.ln_2(y)))
    with pytest.raises(TypeError, match="attend to their own input only"):
        block.attention(x, attn_mask=torch.ones(4, 4))


@torch.no_grad()
def test_the_decoder_without_its_head(model: Any) -> None:
    """Its output is that of transformers, by name, by index or as a tuple; arguments are in the published order."""
    ids = torch.arange(24).view(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    expected = model(ids, attention_mask=mask, output_hidden_states=True)
    output = model.transformer(ids, None, mask, token_type_ids=torch.zeros_like(ids), output_hidden_states=True)
    assert output[0] is output.last_hidden_state and output[0].shape == (2, 12, model.config.hidden_size)
    assert torch.equal(model.lm_head(output[0]), expected.logits)
    assert len(output.hidden_states) == 3 and torch.equal(output.hidden_states[-1], output[0])
    as_tuple = model.transformer(ids, None, mask, use_cache=False, return_dict=False)
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], output[0])
    assert torch.equal(model(ids, None, mask).logits, expected.logits)
    for call in (model, model.transformer):
        for wrong in ({"token_type_ids": torch.ones_like(ids)}, {"head_mask": [1]}, {"position_ids": ids}):
            with pytest.raises(TypeError, match=next(iter(wrong))):
                call(ids, **wrong)
        with pytest.raises(TypeError, match="must be a cache of transformers"):
            call(ids, past_key_values=((mask, mask),))
    assert model.transformer.get_input_embeddings() is model.get_input_embeddings() is model.transformer.wte


def test_settings_of_the_published_config() -> None:
    ids = torch.arange(12)[None]
    for name in ("emb_dropout_prob", "attn_dropout_prob"):
        small = make_model(make_config(445, **{name: 0.5}))
        still = make_model(make_config(445))
        assert torch.equal(small(ids).logits, still(ids).logits)
        assert not torch.allclose(small.train()(ids).logits, still.train()(ids).logits)
        assert torch.equal(still(ids).logits, still(ids).logits)
    assert still.transformer.drop.p == 0.0  # some programs wrap this module so that it copies its input
    for wrong in ({"no_bias": False}, {"rotary_pct": 0.5}, {"scale_attn_weights": False}):
        with pytest.raises(ValueError, match=f"config.{next(iter(wrong))} is .* supports only"):
            make_model(make_config(445, **wrong))
    for unused in ({"use_flash_attn": True}, {"use_cache_quantization": True}, {"softmax_in_fp32": True}):
        with pytest.warns(UserWarning, match=f"no effect: {next(iter(unused))}"):
            make_model(make_config(445, **unused))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model(make_config(445, use_flash_attn="auto"))
