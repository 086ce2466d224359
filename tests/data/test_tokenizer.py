"""Both vocabularies: known ids, exact decoding, no forged special tokens, deterministic training."""

from __future__ import annotations

import base64
import importlib.util
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data import tags
from qwenvl_jax.data import tokenizer as tokenizer_module
from qwenvl_jax.data.tokenizer import (
    QWEN_SHA256,
    Tokenizer,
    load_tokenizer,
    packaged_qwen_vocabulary,
    vocabulary_digest,
)
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import SENTENCES

# Plain characters, CJK, combining marks that NFC composes, and everything that looks special to either library.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            ["<|im_end|>", "<box>", "</img>", "<|endoftext|>", "<|extra_3|>", "▁", "<0x0A>", "<unk>", "<s>", "\n", "\0"]
        ),
        st.sampled_from(["  ", "e\u0301", "你好，世界", "(661,612),(833,812)", "\r\n\t", "\u2047", "12345"]),
    ),
    max_size=6,
).map("".join)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def test_special_ids_are_the_released_ones(qwen: Tokenizer) -> None:
    special = qwen.special
    assert (special.eot, special.im_start, special.im_end) == (151643, 151644, 151645)
    assert special.extras == tuple(range(151646, 151851))
    assert (special.ref, special.ref_end, special.box, special.box_end) == (151851, 151852, 151853, 151854)
    assert (special.quad, special.quad_end) == (151855, 151856)
    assert (special.img, special.img_end, special.imgpad) == (151857, 151858, 151859)
    assert qwen.vocab_size == 151860
    assert qwen.special_by_name["<|extra_204|>"] == 151850


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (" A", [362]), (" B", [425]), (" C", [356]), (" D", [422]), (" E", [468]),
        ("A", [32]), ("D", [35]), ("\n", [198]),
        ("system", [8948]), ("user", [872]), ("assistant", [77091]),
        ("You are a helpful assistant.", [2610, 525, 264, 10950, 17847, 13]),
        ("Picture 1: ", [24669, 220, 16, 25, 220]),
        (" Answer:", [21806, 25]), ("答案：", [102349, 5122]), ("),(", [23547]), ("hi", [6023]),
    ],
)  # fmt: skip
def test_known_ids(qwen: Tokenizer, text: str, ids: list[int]) -> None:
    assert qwen.encode(text) == ids


def test_a_box_takes_eighteen_tokens(qwen: Tokenizer) -> None:
    assert len(qwen.encode("(661,612),(833,812)")) + 1 == 18


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    """The vocabulary as the released tokenization file builds it: tiktoken with its own special tokens."""
    ranks = {}
    for line in packaged_qwen_vocabulary().read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{k}|>" for k in range(205))]
    names += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    return tiktoken.Encoding(
        "reference",
        pat_str=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        mergeable_ranks=ranks,
        special_tokens={name: len(ranks) + k for k, name in enumerate(names)},
    )


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_qwen_agrees_with_tiktoken(qwen: Tokenizer, reference: tiktoken.Encoding, text: str) -> None:
    ids = qwen.encode(text)
    assert ids == reference.encode(nfc(text), disallowed_special=())
    assert qwen.decode(ids) == reference.decode(ids) == nfc(text)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_decoding_is_exact_and_text_forges_nothing(qwen: Tokenizer, tokenizer: Tokenizer, text: str) -> None:
    for each in (qwen, tokenizer):
        ids = each.encode(text)
        assert all(0 <= token < each.special.first for token in ids)
        assert each.decode(ids) == nfc(text)
        assert each.decode(ids, keep_special=False) == nfc(text)
        assert each.encode_array(text).tolist() == ids


def test_special_tokens_decode_to_their_names(qwen: Tokenizer, tokenizer: Tokenizer) -> None:
    for each in (qwen, tokenizer):
        s = each.special
        ids = [s.im_start, *each.encode("user 你"), s.box, *each.encode("(1,2)"), s.box_end, s.im_end]
        assert each.decode(ids) == "<|im_start|>user 你<box>(1,2)</box><|im_end|>"
        assert each.decode(ids, keep_special=False) == "user 你(1,2)"
        assert each.decode([each.vocab_size, each.vocab_size + 50]) == "\ufffd\ufffd"
        order = [s.eot, s.im_start, s.im_end, *s.extras]
        order += [s.ref, s.ref_end, s.box, s.box_end, s.quad, s.quad_end, s.img, s.img_end, s.imgpad]
        assert order == list(range(s.first, each.vocab_size))
        assert [each.special_names[token] for token in order if token not in s.extras] == [
            *tags.CONTROL_TAGS,
            *tags.IMAGE_TAGS,
        ]


def test_lone_surrogates_become_replacement_characters(qwen: Tokenizer, tokenizer: Tokenizer) -> None:
    for each in (qwen, tokenizer):
        assert each.decode(each.encode("a\ud800b")) == "a\ufffdb"


def test_a_text_that_tiktoken_cannot_split_is_a_mistake_of_the_text(qwen: Tokenizer) -> None:
    """Tiktoken ends with a panic, which is no `Exception`."""
    with pytest.raises(UserError, match="shorten its run of hundreds of thousands of spaces"):
        qwen.encode_array(" " * 1_000_000)


def test_sentencepiece_keeps_digits_single(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("661")) == 3
    assert tokenizer.encode("\n") == tokenizer.encode("\n\n")[:1]


def test_training_is_deterministic_and_small(tmp_path: Path) -> None:
    first = train_sentencepiece(SENTENCES, 400, tmp_path / "a.model")
    train_sentencepiece(iter(SENTENCES), 400, tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert first.vocab_size <= 400
    again = load_tokenizer(TokenizerConfig("sentencepiece", str(tmp_path / "a.model")))
    assert again.encode(SENTENCES[1]) == first.encode(SENTENCES[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_training_with_more_characters_than_places(tmp_path: Path) -> None:
    """Rare characters fall back to bytes instead of failing the training."""
    many = ["".join(chr(0x4E00 + k) for k in range(start, start + 40)) for start in range(0, 2000, 40)]
    small = train_sentencepiece(many, 330, tmp_path / "c.model")
    assert small.vocab_size <= 330
    assert small.decode(small.encode(many[7])) == many[7]


def test_training_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", " \n"], 400, tmp_path / "x.model")
    with pytest.raises(UserError, match="no room"):
        train_sentencepiece(SENTENCES, 270, tmp_path / "x.model")
    assert not list(tmp_path.iterdir())


def test_missing_or_wrong_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(TokenizerConfig("qwen", str(tmp_path / "none.tiktoken")))
    (tmp_path / "wrong").write_text("hello\n")
    for kind in ("qwen", "sentencepiece"):
        with pytest.raises(UserError, match="is not a"):
            load_tokenizer(TokenizerConfig(kind, str(tmp_path / "wrong")))
    with pytest.raises(UserError, match="path is empty"):
        load_tokenizer(TokenizerConfig("sentencepiece", ""))
    with pytest.raises(UserError, match="kind"):
        load_tokenizer(TokenizerConfig("bert", ""))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements\.txt") as caught:
        packaged_qwen_vocabulary()
    assert "--config.tokenizer.path" in str(caught.value)


def test_a_changed_packaged_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "qwen.tiktoken"
    changed.write_bytes(packaged_qwen_vocabulary().read_bytes() + b"\n")
    monkeypatch.setattr(tokenizer_module, "packaged_qwen_vocabulary", lambda: changed)
    tokenizer_module._released_tokenizer.cache_clear()
    with pytest.raises(UserError, match="not the released"):
        load_tokenizer(TokenizerConfig("qwen", ""))
    tokenizer_module._released_tokenizer.cache_clear()
    assert load_tokenizer(TokenizerConfig("qwen", str(changed))).vocab_size == 151860  # a named file is taken as it is


def test_a_vocabulary_is_known_by_its_bytes_wherever_it_lies(tmp_path: Path) -> None:
    train_sentencepiece(["a dog and a bird", "two cats"] * 20, 330, tmp_path / "a.model")
    (tmp_path / "b.model").write_bytes((tmp_path / "a.model").read_bytes())
    train_sentencepiece(["other words", "of other things"] * 20, 330, tmp_path / "c.model")
    a, b, c = (vocabulary_digest(TokenizerConfig("sentencepiece", str(tmp_path / f"{name}.model"))) for name in "abc")
    assert a == b != c
    assert vocabulary_digest(TokenizerConfig("qwen", "")) == QWEN_SHA256
