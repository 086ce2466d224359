"""Cosine similarities of pictures and texts by CLIP, on all devices of this process.

    scorer = ClipScorer.load("ViT-B-32", "open_clip_pytorch_model.bin", "bpe_simple_vocab_16e6.txt.gz")
    for similarities in scorer.score([(picture, ["a cat", "a dog"]), ..]):    # [0.27, 0.19]

Pictures are decoded in processes, or on threads, while the devices work. Every shape is static: pictures come in
batches of one size, texts in batches of one size for each of a few lengths, so each tower is compiled once per shape.
The same pairs in the same order give the same bits.

Shape suffixes: I images, H/W pixels (square), T texts, L tokens, E width of the embeddings.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.config import ComputeConfig
from qwenvl_jax.conversion.from_openclip import load_clip
from qwenvl_jax.data.images.pool import DecodePool, PixelBuffer
from qwenvl_jax.models import clip
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.models.clip import CLIP_MODELS, ClipConfig
from qwenvl_jax.models.qwen_vl import INITIALISATION
from qwenvl_jax.params import Params, path_of
from qwenvl_jax.runtime.errors import UserError, nearest, one_line
from qwenvl_jax.scoring.clip_tokenizer import ClipTokenizer
from qwenvl_jax.sharding.mesh import AXES, BATCH_AXES

TEXT_LENGTHS = (16, 32, 77)  # tokens; a text is padded to the next one, at most to the model's context
WINDOW_BATCHES = 8  # of pictures, whose texts are sorted by length together
TEXT_BATCH_SHARE = 2  # a batch of texts has this part of the rows of a batch of pictures: its last one is not full
BATCHES_IN_FLIGHT = 2  # that are computed while the next one is prepared
BATCHES_AHEAD = 2  # of pictures that are being decoded while another one is computed
GROUP = 8  # pictures that a decoder gets at once

Pair = tuple[bytes, Sequence[str]]
Encode = Callable[[Params, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class NotScored:
    """Takes the place of the similarities of a picture that cannot be decoded."""

    reason: str


@dataclasses.dataclass(frozen=True)
class _Decoding:
    """A batch of pairs whose pictures are being decoded.

    Attributes:
      pairs: at most as many as pixels_IHWC has rows.
      pixels_IHWC: uint8; zeros where there is no pair, or a picture cannot be decoded.
      errors: of each `GROUP` of pictures, "" if there is none.
    """

    pairs: Sequence[Pair]
    pixels_IHWC: np.ndarray
    buffer: PixelBuffer | None
    errors: Sequence[Future[str]]


class ClipScorer:
    """A CLIP model on the devices of this process.

    Attributes:
      config: the architecture.
      batch_size: pictures, and texts of one length, that are computed at once; a multiple of the devices.
    """

    def __init__(
        self,
        params: Params,
        config: ClipConfig,
        tokenizer: ClipTokenizer,
        batch_size: int = 0,
        compute_dtype: str = "",
        decode_workers: int | None = None,
    ):
        """Puts the parameters on the devices.

        Args:
          params: the tree of `models.clip.init_params`.
          config: the architecture.
          tokenizer: its vocabulary must be that of `config`.
          batch_size: 0 for 256 per accelerator, or 32 on a CPU.
          compute_dtype: "" for bfloat16 on accelerators and float32 on a CPU.
          decode_workers: processes that decode pictures, 0 for threads. By default one per core, at most 64, if there
            are accelerators; on a CPU the tower needs the cores.

        Raises:
          UserError: if the vocabulary does not fit the model.
        """
        if tokenizer.vocab_size != config.text.vocab_size:
            raise UserError(
                f"the vocabulary has {tokenizer.vocab_size} entries, but the model's has {config.text.vocab_size}; "
                "name the vocabulary file that belongs to the checkpoint"
            )
        devices = jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        dtype = compute_dtype or ("float32" if on_cpu else "bfloat16")
        self.config = config
        self.batch_size = _multiple(batch_size or (32 if on_cpu else 256 * len(devices)), len(devices))
        self._text_batch = _multiple(self.batch_size // TEXT_BATCH_SHARE, len(devices))
        self._tokenizer = tokenizer
        self._mesh = Mesh(np.asarray(devices, dtype=object).reshape(-1, 1, 1), AXES)
        compute = dataclasses.replace(
            INITIALISATION,
            compute_dtype=dtype,
            attention=resolve_attention("auto", jax.default_backend(), dtype),
            unroll_layers=on_cpu,
        )
        self._rows = NamedSharding(self._mesh, P(BATCH_AXES))
        self._params = jax.device_put(_as_used(params, dtype), NamedSharding(self._mesh, P()))
        self._encode_images = _compiled(clip.encode_images, config, compute)
        self._encode_texts = _compiled(clip.encode_texts, config, compute)
        workers = min(64, os.cpu_count() or 1) if decode_workers is None and not on_cpu else decode_workers or 0
        self._decoders = DecodePool(workers, config.image_size, "center")
        weakref.finalize(self, self._decoders.close)
        self._in_flight: collections.deque[jax.Array] = collections.deque()
        self._one_caller = threading.Lock()  # `score` may run on several threads

    @classmethod
    def load(
        cls, model: str, checkpoint: epath.PathLike, vocabulary: epath.PathLike, batch_size: int = 0
    ) -> ClipScorer:
        """Reads a model.

        Args:
          model: one of `CLIP_MODELS`.
          checkpoint: of OpenCLIP; see `load_clip`.
          vocabulary: see `ClipTokenizer.load`.
          batch_size: as above.

        Raises:
          UserError: for an unknown model, or files that are not its own.
        """
        if model not in CLIP_MODELS:
            raise UserError(
                f"{model!r} is not a CLIP model; name one of {', '.join(CLIP_MODELS)}{nearest(model, CLIP_MODELS)}"
            )
        config = CLIP_MODELS[model]
        tokenizer = ClipTokenizer.load(vocabulary, config.text.context)
        return cls(load_clip(checkpoint, config), config, tokenizer, batch_size)

    def score(self, pairs: Iterable[Pair]) -> Iterator[list[float] | NotScored]:
        """The similarities of each picture to its texts, in order.

        Args:
          pairs: encoded pictures, each with any number of texts. They are read ahead by up to a window of
            `WINDOW_BATCHES` batches, and `BATCHES_AHEAD`.

        Yields:
          Per picture, one cosine per text; or the reason if the picture cannot be decoded.
        """
        before: _Window | None = None
        decoded = self._decoded_ahead(pairs)
        while window := self._start_window(decoded):
            if before:
                yield from before.similarities()
            before = window
        if before:
            yield from before.similarities()

    def put(self, rows: np.ndarray) -> jax.Array:
        """Copies a batch to the devices, split by rows."""
        return jax.device_put(rows, self._rows)

    def encode_images(self, images_IHWC: jax.Array) -> jax.Array:
        """`models.clip.encode_images` of `batch_size` images that `put` has copied; returns before it is computed."""
        return self._call(self._encode_images, images_IHWC)

    def _call(self, encode: Encode, rows: jax.Array) -> jax.Array:
        with jax.set_mesh(self._mesh):
            return encode(self._params, rows)

    def _decoded_ahead(self, pairs: Iterable[Pair]) -> Iterator[_Decoding]:
        """Batches of pairs whose pictures are being decoded, `BATCHES_AHEAD` before they are asked for."""
        waiting: collections.deque[_Decoding] = collections.deque()
        source = iter(pairs)
        while batch := list(itertools.islice(source, self.batch_size)):
            waiting.append(self._decode(batch))
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _decode(self, pairs: Sequence[Pair]) -> _Decoding:
        size = self.config.image_size
        shape = (self.batch_size, size, size, 3)
        buffer = self._decoders.buffer(shape)
        pixels_IHWC = np.zeros(shape, np.uint8) if buffer is None else buffer.array
        errors = [
            self._submit([picture for picture, _ in pairs[first : first + GROUP]], pixels_IHWC, buffer, first)
            for first in range(0, len(pairs), GROUP)
        ]
        return _Decoding(pairs, pixels_IHWC, buffer, errors)

    def _submit(
        self, pictures: Sequence[bytes], pixels_IHWC: np.ndarray, buffer: PixelBuffer | None, first: int
    ) -> Future[str]:
        return self._decoders.submit(pictures, [None] * len(pictures), pixels_IHWC, buffer, first)

    def _wrong(self, batch: _Decoding) -> dict[int, NotScored]:
        """Waits until a batch is decoded; by index the pictures that cannot be."""
        wrong = {}
        for group, error in enumerate(batch.errors):
            if not error.result():
                continue
            for index in range(group * GROUP, min((group + 1) * GROUP, len(batch.pairs))):  # which one it was
                alone = self._submit([batch.pairs[index][0]], batch.pixels_IHWC, batch.buffer, index).result()
                if alone:
                    wrong[index] = NotScored(one_line(alone))
                    batch.pixels_IHWC[index] = 0
        return wrong

    def _start_window(self, decoded: Iterator[_Decoding]) -> _Window | None:
        """Sends the next `WINDOW_BATCHES` batches of pictures, and their texts, to the devices; None at the end."""
        window = _Window(self.config.embed_dim)
        for batch in itertools.islice(decoded, WINDOW_BATCHES):
            wrong = self._wrong(batch)
            for index, (_, texts) in enumerate(batch.pairs):
                window.add(wrong.get(index), [] if index in wrong else [self._tokenizer.encode(text) for text in texts])
            window.image_batches.append(self._run(self._encode_images, batch.pixels_IHWC, len(batch.pairs)))
        if not window.rows:
            return None
        lengths = [length for length in TEXT_LENGTHS if length < self.config.text.context]
        lengths.append(self.config.text.context)
        for tokens_TL in window.texts_by_length(lengths):
            for first in range(0, len(tokens_TL), self._text_batch):
                rows_TL = tokens_TL[first : first + self._text_batch]
                padded_TL = np.zeros((self._text_batch, rows_TL.shape[1]), np.int32)
                padded_TL[: len(rows_TL)] = rows_TL
                window.text_batches.append(self._run(self._encode_texts, padded_TL, len(rows_TL)))
        return window

    def _run(self, encode: Encode, rows: np.ndarray, count: int) -> _Embeddings:
        """Starts the computation of a batch, of which only the first `count` rows matter."""
        with self._one_caller:
            while len(self._in_flight) >= BATCHES_IN_FLIGHT:
                self._in_flight.popleft().block_until_ready()
            embeddings = self._call(encode, self.put(rows))
            self._in_flight.append(embeddings)
        return _Embeddings(embeddings, count)


@dataclasses.dataclass(frozen=True)
class _Embeddings:
    """The first `count` rows of an array [I or T, E] that may still be computed."""

    array: jax.Array
    count: int


class _Window:
    """Pictures in order, with the batches that contain their embeddings and those of their texts."""

    def __init__(self, width: int):
        self.rows: list[int | NotScored] = []  # number of texts per picture
        self.image_batches: list[_Embeddings] = []
        self.text_batches: list[_Embeddings] = []
        self._texts: list[list[int]] = []
        self._order: np.ndarray = np.zeros(0, np.int64)
        self._width = width

    def add(self, wrong: NotScored | None, ids: list[list[int]]) -> None:
        """Appends a picture and its texts."""
        self.rows.append(wrong or len(ids))
        self._texts += ids

    def texts_by_length(self, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """int32 [T, L] for each of the lengths that a text needs, padded with 0."""
        buckets: list[list[int]] = [[] for _ in lengths]
        for number, ids in enumerate(self._texts):
            buckets[bisect.bisect_left(lengths, len(ids))].append(number)
        self._order = np.array([number for bucket in buckets for number in bucket], np.int64)
        for length, bucket in zip(lengths, buckets, strict=True):
            tokens_TL = np.zeros((len(bucket), length), np.int32)
            for row, number in zip(tokens_TL, bucket, strict=True):
                row[: len(self._texts[number])] = self._texts[number]
            yield tokens_TL

    def similarities(self) -> Iterator[list[float] | NotScored]:
        """Waits for the embeddings; the cosines of each picture, in order."""
        images_IE = _joined(self.image_batches, self._width)
        texts_TE = np.empty((len(self._texts), self._width), np.float32)
        texts_TE[self._order] = _joined(self.text_batches, self._width)
        counts = [0 if isinstance(count, NotScored) else count for count in self.rows]
        cosines = iter(np.einsum("te,te->t", np.repeat(images_IE, counts, axis=0), texts_TE).tolist())
        for row in self.rows:
            yield row if isinstance(row, NotScored) else list(itertools.islice(cosines, row))


def _joined(batches: Sequence[_Embeddings], width: int) -> np.ndarray:
    rows = [np.asarray(batch.array)[: batch.count] for batch in batches]
    return np.concatenate([np.zeros((0, width), np.float32), *rows])


def _multiple(count: int, of: int) -> int:
    """The next multiple, at least one."""
    return max(1, -(-count // of)) * of


def _as_used(params: Params, dtype: str) -> Params:
    """The kernels in the compute dtype, to which they are cast whenever they are used; the rest as it is."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(jnp.dtype(dtype)) if path_of(path)[-1] == "kernel" else leaf, params
    )


def _compiled(function: Callable[..., jax.Array], config: ClipConfig, compute: ComputeConfig) -> Encode:
    def encode(params: Params, rows: jax.Array) -> jax.Array:
        return function(params, config, compute, rows)

    return jax.jit(encode)
