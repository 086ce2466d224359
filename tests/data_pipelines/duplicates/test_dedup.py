"""Rules across pairs: which pair of several stays, on real changes of pictures and texts."""

from __future__ import annotations

import io

import datasketch
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_pipelines.clean.across import AcrossRule, Candidate
from data_pipelines.clean.text import longest_caption
from data_pipelines.duplicates.dedup import ExactDuplicates, LongestText, NearPictures, NearTexts
from data_pipelines.duplicates.signatures import hash_of, minhash, plain_text, shingles
from data_pipelines.pair import Answer, Picture, Question, RawPair, Region
from tests.support.cleaning import pair_of, verdict


def kept(rule: AcrossRule, pairs: list[RawPair]) -> list[str]:
    """The ids of the pairs that stay, by the definition in `across`."""
    candidates: list[Candidate | None] = [rule.candidate(pair) for pair in pairs]
    ids = []
    for position, one in enumerate(candidates):
        better = [
            np.frombuffer(other.signature, np.uint8)
            for index, other in enumerate(candidates)
            if one and other and (other.rank, -index) > (one.rank, -position) and set(one.keys) & set(other.keys)
        ]
        if one and better:
            assert all(len(signature) == rule.signature_bytes for signature in better)
            if rule.similar(np.frombuffer(one.signature, np.uint8), np.stack(better)).any():
                continue
        ids.append(pairs[position].id)
    return ids


def scene(seed: int) -> Image.Image:
    """Coloured discs and bars, different for every seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:240, 0:320]
    pixels = np.zeros((240, 320, 3)) + rng.integers(0, 255, 3)
    for _ in range(14):
        top, left, radius = rng.integers(0, 240), rng.integers(0, 320), rng.integers(15, 70)
        pixels[(y - top) ** 2 + (x - left) ** 2 < radius**2] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pair(name: str, image: Image.Image | bytes, *texts: str) -> RawPair:
    payload = image if isinstance(image, bytes) else encoded(image)
    width, height = Image.open(io.BytesIO(payload)).size
    return RawPair(name, "test", "x", pictures=(Picture(payload, "", width, height),), texts=texts)


def test_the_longest_text_of_a_picture_stays() -> None:
    pairs = [
        pair("a", scene(1), "a fox"),
        pair("b", scene(1), "a red fox", "x"),
        pair("c", scene(1), "a big fox"),
        pair("d", scene(2), "a"),
        pair_of("text alone"),
    ]
    assert kept(LongestText(), pairs) == ["b", "d", "a"]


def test_the_longest_of_the_texts_of_a_pair_stays() -> None:
    one = RawPair("a", "t", "x", texts=("a fox", "a red fox", "the old ox"), regions=(Region("fox", (), 2, 5),))
    after = verdict(longest_caption, one)
    assert isinstance(after, RawPair) and after.texts == ("the old ox",) and after.regions[0].start == -1
    assert verdict(longest_caption, after) is after


def test_exact_duplicates_are_equal_in_everything() -> None:
    asked = RawPair("e", "t", "x", pictures=pair("a", scene(1)).pictures, questions=(Question("?", (Answer("1"),)),))
    pairs = [
        pair("a", scene(1), "x"),
        pair("b", scene(1), "x"),
        pair("c", scene(2), "x"),
        pair("d", scene(1), "y"),
        asked,
    ]
    assert kept(ExactDuplicates(), pairs) == ["a", "c", "d", "e"]


CHANGES = {
    "jpeg": lambda image: encoded(image, "JPEG", quality=30),
    "half": lambda image: encoded(image.resize((160, 120))),
    "square": lambda image: encoded(image.resize((224, 224))),
    "mirror": lambda image: encoded(ImageOps.mirror(image)),
    "grey": lambda image: encoded(image.convert("L")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_of_pictures(change: str) -> None:
    pairs = [pair(f"{seed}", scene(seed)) for seed in range(20)]
    changed = [pair(f"{seed} {change}", CHANGES[change](scene(seed))) for seed in range(20)]
    remaining = kept(NearPictures(), [*pairs, *changed])
    assert [name for name in remaining if " " not in name] == [f"{seed}" for seed in range(20)]
    assert len(remaining) == 20


def test_the_largest_of_near_pictures_stays() -> None:
    small = pair("small", scene(1).resize((160, 120)))
    assert kept(NearPictures(), [small, pair("large", scene(1))]) == ["large"]


def test_the_nearness_of_pictures_is_that_of_the_nearer_side() -> None:
    upright, changed = scene(1), scene(1).resize((90, 60))
    rule = NearPictures()
    signatures = [
        np.frombuffer(rule.candidate(pair("x", image)).signature, np.uint8)  # type: ignore[union-attr]
        for image in (upright, changed, ImageOps.mirror(changed))
    ]
    bits = [np.unpackbits(signature[:32]) for signature in signatures]
    apart = int((bits[0] != bits[1]).sum())
    assert rule.nearness(signatures[1], signatures[0]) == {"distance": apart}
    assert rule.nearness(signatures[2], signatures[0])["distance"] <= 12 < int((bits[0] != bits[2]).sum())


def test_plain_pictures_are_not_compared() -> None:
    assert hash_of(Image.new("RGB", (50, 50), "red")) is None
    blank = encoded(Image.new("RGB", (50, 50), "white"))
    assert kept(NearPictures(), [pair("a", blank), pair("b", blank)]) == ["a", "b"]
    damaged = RawPair("c", "t", "x", pictures=(Picture(encoded(scene(1))[:50]),))
    assert NearPictures().candidate(damaged) is None


ENGLISH = "The quick brown fox jumps over the lazy dog while the farmer is asleep under the old apple tree."
CHINESE = "敏捷的棕色狐狸跳过了懒狗，而农夫正在院子里那棵老苹果树下面睡觉，直到太阳下山。"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_near_duplicates_of_texts(text: str) -> None:
    loud = text.upper().replace(" ", "  ").replace("，", ", ")
    other = pair_of(
        "A completely different sentence about trains, clouds and the price of bread in the city.", text[::-1]
    )
    pairs = [RawPair(name, "t", "x", texts=(each,)) for name, each in (("a", text), ("b", loud), ("c", text[:-4]))]
    assert set(kept(NearTexts(), [*pairs, other])) <= {"a", "b"} | {other.id}
    assert len(kept(NearTexts(), [*pairs, RawPair("d", "t", "x", texts=other.texts[:1])])) == 2
    assert NearTexts().candidate(pair_of("…!")) is None


def jaccard(one: str, other: str) -> float:
    first, second = set(shingles(plain_text(one))), set(shingles(plain_text(other)))
    return len(first & second) / len(first | second)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.6))
def test_minhash_estimates_as_datasketch_does(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    words = [f"word{number}" for number in rng.integers(0, 500, 40)]
    changed = [f"new{number}" if rng.random() < share else word for number, word in enumerate(words)]
    one, other = " ".join(words), " ".join(changed)
    ours, theirs = minhash(one), minhash(other)
    assert ours is not None and theirs is not None
    peers = [datasketch.MinHash(num_perm=120), datasketch.MinHash(num_perm=120)]
    for peer, text in zip(peers, (one, other), strict=True):
        peer.update_batch([shingle.encode() for shingle in shingles(plain_text(text))])
    assert abs(float((ours == theirs).mean()) - jaccard(one, other)) < 0.25  # five standard deviations
    assert abs(float((ours == theirs).mean()) - peers[0].jaccard(peers[1])) < 0.32
