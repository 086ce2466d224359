"""What programs do with a release besides `generate` and `chat`: servers, demos, trainers, older and newer callers."""

from __future__ import annotations

import copy
import itertools
import pickle
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwenvl_jax.conversion.torch_model.qwen_generation_utils import StopWordsLogitsProcessor, chatml_prompt
from qwenvl_jax.conversion.torch_model.visual import preprocess
from qwenvl_jax.data.tokenizer import packaged_qwen_vocabulary
from tests.conversion.torch_tiny import (
    IMAGE_SIZE,
    QUERIES,
    TRAIN_LENGTH,
    make_config,
    make_model,
    pixels,
    random_ids,
    write_model,
    write_tokenizer,
)

GREEDY = dict(do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)


@pytest.fixture(scope="module")
def small_release(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("r") / "client_release"
    tokenizer = write_tokenizer(folder, tiny_data / "tiny.model", "tokenizer.model", QUERIES)
    write_model(folder, make_model(make_config(tokenizer.img_start_id, max_position_embeddings=4096)))
    return folder, tokenizer


@pytest.fixture
def model(small_release: tuple[Path, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(small_release[0]), trust_remote_code=True).eval()


@pytest.fixture
def tokenizer(small_release: tuple[Path, Any]) -> Any:
    return small_release[1]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tokenizer(tmp_path_factory.mktemp("t") / "qwen", packaged_qwen_vocabulary(), "qwen.tiktoken", 256)


def block(tokenizer: Any) -> Any:
    return torch.tensor([[tokenizer.img_start_id, *[tokenizer.img_pad_id] * QUERIES, tokenizer.img_end_id]])


# The cache, under its older and its newer name


@torch.no_grad()
def test_an_answer_that_grows_across_the_trained_length(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` computes one token at a time, on the factors of its prompt, and looks at a picture once."""
    ids = torch.cat([block(tokenizer), random_ids(1, 8)], dim=1)
    assert ids.shape[1] < TRAIN_LENGTH
    step = model(ids, pixel_values=pixels(1), use_cache=True, past_key_values=(cache := DynamicCache()))
    expected = []
    for _ in range(16):
        expected.append(int(step.logits[0, -1].argmax()))
        step = model(torch.tensor([[expected[-1]]]), past_key_values=cache, use_cache=True)
    assert ids.shape[1] + len(expected) > TRAIN_LENGTH + 4
    lengths: list[tuple[int, ...]] = []
    pictures: list[tuple[int, ...]] = []
    monkeypatch.setattr(model.transformer.wte, "forward", _noting(model.transformer.wte.forward, lengths))
    monkeypatch.setattr(model.transformer.visual, "forward", _noting(model.transformer.visual.forward, pictures))
    output = model.generate(ids, pixel_values=pixels(1), **GREEDY | {"max_new_tokens": 16})
    assert output[0, ids.shape[1] :].tolist() == expected
    assert [shape[1] for shape in lengths] == [ids.shape[1], *[1] * 15] and len(pictures) == 1


def _noting(function: Callable[[Any], Any], shapes: list[tuple[int, ...]]) -> Callable[[Any], Any]:
    """The function, which now also appends the shape of its argument to `shapes`."""

    def noting(x: Any) -> Any:
        shapes.append(tuple(x.shape))
        return function(x)

    return noting


@torch.no_grad()
def test_a_cache_has_two_names(model: Any) -> None:
    ids = random_ids(1, 12)
    caches = [DynamicCache(), DynamicCache()]
    for cache in caches:
        model(ids[:, :9], past_key_values=cache, use_cache=True)
    old = model(ids[:, 9:], past_key_values=caches[0], use_cache=True)
    new = model(ids[:, 9:], cache=caches[1], use_cache=True)
    assert torch.equal(old.logits, new.logits) and old.past_key_values is caches[0]
    field = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
    assert new[field] is caches[1]
    for prepare in (model.prepare_inputs_for_generation, model.forward):
        with pytest.raises(ValueError, match="two names of one argument"):
            prepare(ids, past_key_values=caches[0], cache=caches[1])
    for name in ("past_key_values", "cache"):
        given = model.prepare_inputs_for_generation(torch.cat([ids, ids[:, :1]], dim=1), **{name: caches[0]})
        assert given["past_key_values"] is caches[0] and given["input_ids"].tolist() == ids[:, :1].tolist()
    with pytest.raises(ValueError, match="holds 12 tokens and the prompt has 12; add at least one new token"):
        model.prepare_inputs_for_generation(ids, cache=caches[0])


@pytest.mark.parametrize("method", ["prepare_inputs_for_generation", "forward"])
def test_an_unknown_argument_is_an_error(model: Any, method: Any) -> None:
    call = getattr(model, method)
    with pytest.raises(TypeError, match="does not know the argument 'kv_store'"):
        call(random_ids(1, 3), kv_store=DynamicCache())
    with pytest.raises(TypeError, match="position_ids: positions follow from attention_mask"):
        call(random_ids(1, 3), position_ids=torch.arange(3)[None])
    call(random_ids(1, 3), kv_store=None)  # what says nothing changes nothing


@torch.no_grad()
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 2}, {"guidance_scale": 1.5},
                                     {"prompt_lookup_num_tokens": 2}, {"use_cache": False},
                                     {"do_sample": True, "top_k": 1}])  # fmt: skip
def test_every_way_of_decoding_takes_a_picture(model: Any, tokenizer: Any, options: Any) -> None:
    ids = torch.cat([block(tokenizer), random_ids(1, 9)], dim=1)
    options = GREEDY | {"max_new_tokens": 12, "eos_token_id": tokenizer.eod_id} | options
    output = model.generate(ids, pixel_values=pixels(1), **options)
    expected = model.generate(ids, pixel_values=pixels(1), **GREEDY | {"max_new_tokens": 12})
    if not {"num_beams", "guidance_scale", "use_cache"} & options.keys():
        assert output.tolist() == expected.tolist()
    other = model.generate(ids, pixel_values=-3 * pixels(1), **options)
    assert output.tolist() != other.tolist()


# Arguments of `forward`


@torch.no_grad()
def test_embeddings_instead_of_ids(model: Any, tokenizer: Any) -> None:
    ids = torch.cat([block(tokenizer), random_ids(1, 9)], dim=1)
    expected = model(ids, pixel_values=pixels(1)).logits
    embeds = model.transformer.embed(ids, pixels(1))
    assert torch.equal(model(inputs_embeds=embeds).logits, expected)
    whole = model.generate(ids, pixel_values=pixels(1), **GREEDY)[:, ids.shape[1] :]
    for use_cache in (True, False):
        options = GREEDY | {"use_cache": use_cache, "attention_mask": torch.ones_like(ids)}
        assert model.generate(inputs_embeds=embeds, **options).tolist() == whole.tolist()
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="pass either input_ids or inputs_embeds"):
            model(**wrong)
    with pytest.raises(ValueError, match="pixel_values cannot be combined with inputs_embeds"):
        model(inputs_embeds=embeds, pixel_values=pixels(1))
    with pytest.raises(ValueError, match=r"attention_mask must have shape \[1, 27\]"):
        model(ids, pixel_values=pixels(1), attention_mask=torch.ones(1, 5))


@torch.no_grad()
def test_tuples_and_attention_weights(model: Any) -> None:
    ids = random_ids(2, 40)  # log-n acts
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    expected = model(ids, attention_mask=mask)
    as_tuple = model(ids, attention_mask=mask, labels=ids, return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 2 and torch.equal(as_tuple[1], expected.logits)
    output = model(ids, attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(output.logits[:, 5:], expected.logits[:, 5:], rtol=1e-4, atol=1e-4)
    assert expected.attentions is None and len(output.attentions) == model.config.num_hidden_layers
    for weights in output.attentions:
        assert weights.shape == (2, 4, 40, 40)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 40))
        assert not weights[0, :, 5:, :5].any() and not weights.triu(1).any()
    written = model.generate(ids[1:], output_attentions=True, return_dict_in_generate=True, **GREEDY)
    assert [step[0].shape[-2:] for step in written.attentions] == [(40, 40), *[(1, 40 + k) for k in range(1, 8)]]
    assert written.sequences.tolist() == model.generate(ids[1:], **GREEDY).tolist()


@pytest.mark.parametrize("name,dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_the_published_way_to_choose_a_precision(
    small_release: tuple[Path, Any], name: str, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(small_release[0]), trust_remote_code=True, **{name: True})
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {buffer.dtype for buffer in model.buffers()} == {dtype}
    with pytest.raises(ValueError, match="bf16 and fp16 exclude one another"):
        AutoModelForCausalLM.from_pretrained(str(small_release[0]), trust_remote_code=True, bf16=True, fp16=True)


@torch.no_grad()
def test_pictures_without_a_prompt(model: Any, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    pictures[0].save(tmp_path / "a.png")
    features = model.transformer.visual.encode([str(tmp_path / "a.png"), pictures[1]])
    assert torch.equal(features, model.transformer.visual(preprocess(pictures, IMAGE_SIZE)))


# Stop words, conversations


def test_stop_words_end_an_answer(model: Any, tokenizer: Any) -> None:
    ids = random_ids(1, 12)
    free = model.generate(ids, **GREEDY | {"max_new_tokens": 12})[0, 12:].tolist()
    ending = [free[4:6], [401, 402]]
    at = next(k for k in range(2, 13) if free[k - 2 : k] == ending[0])
    end = tokenizer.eod_id
    options = GREEDY | {"max_new_tokens": 12, "eos_token_id": end}
    for eos in (end, [3, end]):
        output = model.generate(ids, stop_words_ids=ending, **options | {"eos_token_id": eos})[0, 12:].tolist()
        assert output == [*free[:at], end]
    model.generation_config.stop_words_ids = ending
    assert model.generate(ids, **options)[0, 12:].tolist() == [*free[:at], end]
    del model.generation_config.stop_words_ids
    prompt = torch.cat([ids, torch.tensor([ending[0]])], dim=1)  # stop words in the prompt are ignored
    assert model.generate(prompt, stop_words_ids=ending, **options)[0, 14] != end
    with pytest.raises(ValueError, match="needs an eos_token_id"):
        model.generate(ids, stop_words_ids=ending, **GREEDY)
    with pytest.raises(ValueError, match="empty sequence"):
        StopWordsLogitsProcessor([[]], 0, 0)
    rows = torch.tensor([[1, 2, 3], [3, 2, 1]])
    processors: Any = LogitsProcessorList([StopWordsLogitsProcessor([[2, 3]], 4, 1)])
    scores = processors(rows, torch.ones(2, 6))
    assert scores[0].argmax() == 4 and (scores[0, :4] < -1e30).all() and (scores[1] == 1).all()


@pytest.mark.parametrize("which", ["small", "qwen"])
def test_stop_strings(model: Any, tokenizer: Any, qwen: Any, which: Any) -> None:
    words = tokenizer if which == "small" else qwen
    ids = random_ids(1, 12)
    free = model.generate(ids, **GREEDY | {"max_new_tokens": 12})[0, 12:].tolist()
    text = words.decode(free[3])
    options = GREEDY | {"max_new_tokens": 12, "eos_token_id": words.eod_id}
    if "\ufffd" in text or not text.strip():
        pytest.skip("the fourth token is no whole text")
    output = model.generate(ids, stop_strings=[text], tokenizer=words, **options)[0, 12:].tolist()
    assert output == free[: len(output)] and text in words.decode(output) and len(output) <= 4


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").save("a.png")


def test_an_answer_can_be_streamed(model: Any, tokenizer: Any, picture: Any) -> None:
    history = [("<img>a.png</img> What?", "a"), ("Nobody answered", None)]
    settings = dict(do_sample=False, max_new_tokens=10)
    whole, _ = model.chat(tokenizer, "And?", list(history), **settings)
    parts = list(model.chat_stream(tokenizer, "And?", history, **settings))
    assert 1 < len(parts) <= 10 and parts[-1].replace("\ufffd", "") == whole.replace("\ufffd", "")
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(parts))
    assert len(history) == 2
    stream = model.chat_stream(tokenizer, "And?", history, **settings)
    assert next(stream) == parts[0]
    stream.close()  # the answer is given up, and the next one is right
    assert model.chat(tokenizer, "And?", list(history), **settings)[0] == whole
    with pytest.raises(ValueError, match=r"gone\.png"):
        model.chat_stream(tokenizer, "<img>gone.png</img>")
    with pytest.raises(ValueError):  # of transformers: beams cannot be streamed
        list(model.chat_stream(tokenizer, "hi", num_beams=2))


def test_arguments_of_chat(model: Any, tokenizer: Any) -> None:
    settings = dict(do_sample=False, max_new_tokens=8)
    answer, history = model.chat(tokenizer, "hi", generation_config=None, **settings)
    assert history == [("hi", answer)]
    assert model.chat(tokenizer, "hi", None, append_history=False, **settings) == (answer, [])
    before = (("a", "b"),)
    _, longer = model.chat(tokenizer, "hi", before, **settings)
    assert len(before) == 1 and len(longer) == 2  # only a list can grow in place
    other = GenerationConfig(do_sample=False, max_new_tokens=3)
    short, _ = model.chat(tokenizer, "hi", generation_config=other)
    assert short == tokenizer.decode(tokenizer.encode(short, allowed_special="none"))
    ids, _ = chatml_prompt(tokenizer, "hi", [], "You are a helpful assistant.", 6144)
    new = model.generate(torch.tensor([ids]), eos_token_id=tokenizer.eod_id, pad_token_id=0, **settings)[0, len(ids) :]
    stop = [new[2:3].tolist()]
    stopped, _ = model.chat(tokenizer, "hi", stop_words_ids=stop, **settings)
    assert stopped == tokenizer.decode(new[: new.tolist().index(stop[0][0]) + 1]).strip()
    with pytest.raises(TypeError, match="use chat_stream"):
        model.chat(tokenizer, "hi", stream=True)
    with pytest.raises(ValueError, match="not used by the model"):
        model.chat(tokenizer, "hi", temprature=1.0)


def test_a_query_without_a_response(tokenizer: Any) -> None:
    line, start, end = tokenizer.encode("\n"), tokenizer.im_start_id, tokenizer.im_end_id

    def said(role: Any, text: str = "") -> Any:
        return [start, *tokenizer.encode(role), *line, *tokenizer.encode(text)]

    ids, dropped = chatml_prompt(tokenizer, "b", [("a", None)], "s", 6144)
    assert dropped == 0
    asked = [*line, *said("user", "a"), end, *line]
    assert ids == [*said("system", "s"), end, *asked, *line, *said("user", "b"), end, *line, *said("assistant")]
    fits = len(said("system", "s")) + 1 + len(asked)
    assert chatml_prompt(tokenizer, "b", [("a", None)], "s", fits)[1] == 1
    assert chatml_prompt(tokenizer, "b", [("a", None)], "s", fits + 1)[1] == 0


# The tokenizer


def test_published_names_of_the_tokenizer(qwen: Any, tokenizer: Any) -> None:
    tags = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
    for each in (qwen, tokenizer):
        assert tuple(each.IMAGE_ST) == tags
        kinds = [f"{kind}_{side}_tag" for kind in ("ref", "box", "quad", "image") for side in ("start", "end")]
        assert tuple(getattr(each, name) for name in (*kinds, "image_pad_tag")) == tags
        assert each.image_special_tokens == {each.special_tokens[tag] for tag in tags[:6]}
        assert sorted(each.decoder) == list(range(len(each)))
        assert each.decoder[each.img_pad_id] == "<imgpad>"
        assert [each._convert_id_to_token(k) for k in (0, len(each) - 1)] == [each.convert_ids_to_tokens(0), "<imgpad>"]
        assert each._fetch_all_box_with_ref("<box>(1,2),(3,4)</box>") == [{"box": (1, 2, 3, 4)}]
    assert len(qwen.mergeable_ranks) == 151643 and qwen.mergeable_ranks[b" Answer"] == 21806
    assert qwen.decoder[21806] == b" Answer"
    assert qwen.tokenizer.n_vocab == 151860 and qwen.tokenizer.eot_token == 151643
    assert qwen.tokenizer.encode("a<img>", allowed_special="all") == [64, 151857]
    assert qwen.tokenizer.decode([21806, 151857]) == " Answer<img>"
    assert qwen.convert_tokens_to_ids([b" Answer", "<img>", b"no token", "no token"]) == [21806, 151857, None, None]
    for name in ("tokenizer", "mergeable_ranks"):
        with pytest.raises(NotImplementedError, match="SentencePiece"):
            getattr(tokenizer, name)
    with pytest.raises(ValueError, match="image_start_tag is '<img>' in this vocabulary and cannot be changed"):
        type(qwen)(vocab_file=str(packaged_qwen_vocabulary()), image_start_tag="<image>")
    assert type(qwen)(vocab_file=str(packaged_qwen_vocabulary()), image_start_tag="<img>").img_start_id == 151857


def test_a_server_may_wrap_the_tokenizer(qwen: Any) -> None:
    """Servers make a subclass at run time whose `get_vocab` is a constant, or which knows no pictures."""
    fresh = pickle.loads(pickle.dumps(qwen))

    kind: Any = type(fresh)

    class Cached(kind):
        def get_vocab(self) -> Any:
            return {}

    fresh.__class__ = Cached
    assert fresh.convert_tokens_to_ids("<img>") == 151857
    assert fresh("a dog")["input_ids"] == qwen("a dog")["input_ids"] and fresh.decode(fresh.encode("a dog")) == "a dog"
    assert fresh.convert_tokens_to_ids(["a", "Ġdog", "<|im_end|>"]) == [64, 5562, 151645]

    class WithoutPictures(kind):
        def tokenize(self, text: str, allowed_special: Any = "all", disallowed_special: Any = (), **unused: Any) -> Any:
            text = unicodedata.normalize("NFC", text)
            ids = self.tokenizer.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
            return [self.decoder[k] for k in ids]

        def _decode(self, token_ids: Any, skip_special_tokens: Any = False, errors: Any = None, **unused: Any) -> Any:
            ids = [token_ids] if isinstance(token_ids, int) else token_ids
            return self.tokenizer.decode(ids, errors=errors or self.errors)

    plain = copy.deepcopy(qwen)
    plain.__class__ = WithoutPictures
    text = "Picture 1: <img></img>\nwhat, é?<|im_end|>"
    ids = plain(text)["input_ids"]
    assert ids == plain.encode(text) == qwen.tokenizer.encode(text, allowed_special="all") and 151859 not in ids
    assert plain.decode(ids) == text
