"""How the audit reads a sample back from its tokens: spans of text, tags and images, and the regions among them."""

from __future__ import annotations

import pytest

from qwenvl_jax.auditing.spans import regions_of, spans_of
from qwenvl_jax.data.examples import tokenize_pieces
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.tokenizer import Tokenizer
from tests.data.record_samples import make_record

QUERIES = 4


def test_a_region_belongs_to_the_images_before_it(tokenizer: Tokenizer) -> None:
    def box(text: str, supervised: bool = False) -> list[Piece]:
        return [Piece("special", "<box>", supervised), Piece("text", text), Piece("special", "</box>", supervised)]

    one, two = Piece("image", 5), Piece("image", 3)
    pieces = [*box("(1,2),(3,4)"), one, *box("(5,6),(5,8)", True), two, *box("(9,8),(7,6)"), one]
    pieces += [*box("(1,2),(3"), *box("(0,0),(999,999)")]
    found = regions_of(spans_of(tokenize_pieces(pieces, tokenizer, QUERIES), tokenizer, QUERIES))
    assert [region.images for region in found] == [(), (0,), (0, 1), (1, 0), (1, 0)]
    assert [region.corners for region in found] == [
        ((1, 2), (3, 4)),
        ((5, 6), (5, 8)),
        ((9, 8), (7, 6)),
        (),
        ((0, 0), (999, 999)),
    ]
    assert [region.empty for region in found] == [False, True, True, True, False]
    assert [region.supervised for region in found] == [False, True, False, False, False]


@pytest.mark.parametrize("task", ["caption", "dialogue", "grounding", "text", "ocr"])
def test_spans_are_the_tokens(tokenizer: Tokenizer, task: str) -> None:
    """Their text is the decoded sample, and as many tokens are marked as the loss counts."""
    for k in range(6):
        tokens = tokenize_pieces(training_pieces(make_record(task, k)), tokenizer, QUERIES)
        spans = spans_of(tokens, tokenizer, QUERIES)
        text = "".join("<imgpad>" * span.tokens if span.kind == "image" else span.text for span in spans)
        assert text == tokenizer.decode(tokens.tokens_L)
        assert sum(span.tokens for span in spans) == len(tokens.tokens_L)
        assert sum(span.tokens for span in spans if span.supervised) == tokens.is_target_L[1:].sum()
        assert all(span.tokens == QUERIES for span in spans if span.kind == "image")


def test_a_character_that_starts_a_text_stays_whole(tokenizer: Tokenizer) -> None:
    """Its first byte is predicted by nothing, the others are: it counts as supervised, and nothing is lost."""
    assert len(tokenizer.encode("𝄞")) == 4, "bytes"
    spans = spans_of(tokenize_pieces([Piece("text", "𝄞 sounds", True)], tokenizer, QUERIES), tokenizer, QUERIES)
    assert [(span.text, span.supervised) for span in spans] == [("", False), ("𝄞 sounds", True)]
