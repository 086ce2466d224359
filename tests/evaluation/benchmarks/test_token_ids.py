"""Prompts and options as ids of the released vocabulary."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import tiktoken

from qwenvl_jax.data import tags
from qwenvl_jax.data.examples import tokenize_pieces
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import Tokenizer, packaged_qwen_vocabulary
from qwenvl_jax.evaluation.asking.questions import QuestionSet
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark
from qwenvl_jax.evaluation.benchmarks.registry import PUBLISHED
from tests.evaluation.benchmarks.published_records import SAMPLES, ask, record_for

GOLDEN = Path(__file__).parents[2] / "golden/prompts"


def of(name: str) -> Benchmark:
    return PUBLISHED[name]


def test_options_are_single_tokens_of_the_real_vocabulary(qwen: Tokenizer) -> None:
    letters = {" A": 362, " B": 425, " C": 356, " D": 422, " E": 468}
    many = [str(number) for number in range(7)]
    letters |= {"A": 32, "B": 33, "C": 34, "D": 35}
    asked = {
        "scienceqa_img_test": [" A", " B", " C"],
        "mmbench_dev": [" A", " B", " C", " D"],
        "seed_bench": [" A", " B", " C", " D"],
        "mmlu_test": [" A", " B", " C", " D"],
        "cmmlu_test": ["A", "B", "C", "D"],
        "ceval_val": ["A", "B", "C", "D"],
    }
    for name, expected in asked.items():
        options = ask(of(name)).options
        assert [qwen.encode(option) for option in options] == [[letters[option]] for option in expected]
    assert ask(of("scienceqa_img_test"), options=many).options == (" A", " B", " C", " D", " E")
    assert ask(of("seed_bench"), options=["x", "y"]).options == (" A", " B", " C", " D")


def test_prompts_are_tokenised_as_the_released_scripts_do(qwen: Tokenizer) -> None:
    """One text between two tags is encoded as one: "Answer:" after the question, "Context:" after the image."""
    tokens = tokenize_pieces(ask(of("vqav2_val")).pieces, qwen, 1).tokens_L.tolist()
    assert tokens[3:] == qwen.encode("What is the man holding? Answer:")
    tokens = tokenize_pieces(ask(of("refcoco_val")).pieces, qwen, 1).tokens_L.tolist()
    assert tokens[3:] == [151851, *qwen.encode("the left zebra"), 151852, 151853]


@pytest.fixture(scope="module")
def tiktoken_encoding() -> tiktoken.Encoding:
    """The released tokenizer: its vocabulary file, pattern and special tokens (facts of tokenization_qwen.py)."""
    ranks = {}
    for line in packaged_qwen_vocabulary().read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
    names += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    special = {name: len(ranks) + number for number, name in enumerate(names)}
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern = words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    return tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_ids_of_prompts_are_those_of_the_released_tokenizer(
    name: str, qwen: Tokenizer, tiktoken_encoding: tiktoken.Encoding
) -> None:
    """The golden text as one string, as the released scripts encode it; the path of an image has no ids of its own."""
    golden = (GOLDEN / f"{name}.txt").read_text().removesuffix("\n")
    expected = tiktoken_encoding.encode(re.sub(r"<img>\d</img>", "<img></img>", golden), allowed_special="all")
    tokens = tokenize_pieces(ask(of(name)).pieces, qwen, 1).tokens_L.tolist()
    assert [token for token in tokens if token != 151859] == expected


def test_chats_end_at_the_tags_of_chatml(qwen: Tokenizer) -> None:
    for name in ("mme", "touchstone_en", "touchstone_cn"):
        assert of(name).stops == (tags.IM_END, tags.IM_START, tags.ENDOFTEXT)
        assert not any(piece.supervised for piece in ask(of(name)).pieces)
    tokens = tokenize_pieces(ask(of("mme")).pieces, qwen, 1).tokens_L.tolist()
    system = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    assert tokens[: len(system)] == system
    assert tokens[len(system)] == 151857
    assert tokens[-5:] == [151645, 198, 151644, 77091, 198]


@pytest.mark.parametrize(("length", "kept"), [(2047, 2047), (2048, 2048), (2049, 2047), (3000, 2047)])
def test_long_examinations_keep_their_last_tokens(length: int, kept: int, qwen: Tokenizer, tmp_path: Path) -> None:
    """As in the released evaluate_mmlu.py: a prompt of more than 2,048 tokens keeps its last 2,047."""
    short = ask(of("mmlu_test"))
    missing = length - len(tokenize_pieces(short.pieces, qwen, 1).tokens_L)
    text = str(SAMPLES["mmlu_test"].question["text"]).replace(" do ", f" do{' so' * missing} ")
    record = record_for("mmlu_test", text=text)
    write_records(tmp_path / "test", {"test": [record]}, name="mmlu")
    questions = QuestionSet(of("mmlu_test"), RecordReader(tmp_path / "test", "test"), range(1), qwen, Asking())
    [whole] = of("mmlu_test").questions(record, Asking())
    ids = tokenize_pieces(whole.pieces, qwen, 1).tokens_L.tolist()
    assert len(ids) == length
    [asked] = questions.prepared([0], 1, 28, 8192)
    assert asked.request is not None
    assert asked.request.tokens_L.tolist() == ids[-kept:]
    assert questions.longest(1, 8192) == kept
