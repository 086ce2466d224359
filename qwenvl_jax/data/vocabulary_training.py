"""Trains the SentencePiece vocabularies of small models."""

from __future__ import annotations

import collections
import io
from collections.abc import Iterable, Iterator

import sentencepiece
from etils import epath

from qwenvl_jax.data import tags
from qwenvl_jax.data.tokenizer import SENTENCEPIECE_SPACE, SentencePieceTokenizer, Tokenizer
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def train_sentencepiece(texts: Iterable[str], vocab_size: int, path: epath.PathLike) -> Tokenizer:
    """Trains a byte-pair SentencePiece vocabulary and writes its model file to `path`, atomically.

    Digits stay single, unknown characters become bytes, white space is unchanged and no space is added in front, so
    that decoding is exact. There is one thread and no sampling: the same texts give the same file. At most half of the
    pieces are single characters, because Chinese has more characters than a small vocabulary has pieces; the rarest
    characters become bytes.

    Args:
      texts: any strings; lines are trained on one by one.
      vocab_size: ids in use including the special tokens. Fewer come out if the texts do not yield as many.
      path: of the model file, usually ending in `.model`.

    Raises:
      UserError: if there is no text, or `vocab_size` has no room for bytes and special tokens.
    """
    pieces = vocab_size - len(tags.CONTROL_TAGS) - len(tags.IMAGE_TAGS)
    plain_texts = (tags.normal_form(text).replace(SENTENCEPIECE_SPACE, " ") for text in texts)
    lines = [line for text in plain_texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError("there is no text to train a vocabulary from; give some records with text")
    room = pieces - 257  # the unknown piece and 256 bytes
    if room < 32:
        raise UserError(f"a vocabulary of {vocab_size} ids has no room for text; give at least 301")
    counts = collections.Counter(character for line in lines for character in line)
    rare = dict.fromkeys((ord(character) for character, _ in counts.most_common()[room // 2 :]), "\n")
    lines = [part for line in lines for part in line.translate(rare).splitlines() if part]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_within(lines, 4000),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,  # the rare ones are gone already
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        num_threads=1,
        shuffle_input_sentence=False,
        input_sentence_size=0,
        minloglevel=2,
    )
    storage.write_bytes(path, model.getvalue())
    return SentencePieceTokenizer(model.getvalue())


def _within(lines: Iterable[str], characters: int) -> Iterator[str]:
    """Cuts lines to what the trainer reads; it skips anything over 4,192 bytes."""
    step = characters // 4  # a character has at most four bytes
    for line in lines:
        for start in range(0, len(line), step):
            yield line[start : start + step]
