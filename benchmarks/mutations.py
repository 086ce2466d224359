"""Ways to damage bytes and JSON values, drawn from a `random.Random`, so that a seed says which."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
LARGEST_INSERT = 4096


def damaged_bytes(payload: bytes, rng: random.Random) -> bytes:
    """The payload after one to four changes; rarely something else altogether."""
    if rng.random() < 0.02:
        return rng.choice((b"", b"\0", b"\xff" * 64, rng.randbytes(rng.randrange(2000)), b"[" * 100_000))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        payload = rng.choice(_CHANGES)(payload, rng)
    return payload


def _place(payload: bytes, rng: random.Random) -> int:
    """Somewhere; often near the beginning or the end, where headers and indexes lie."""
    size = len(payload)
    return min(size, int(size * rng.random() ** rng.choice((1, 1, 6)))) if rng.random() < 0.8 else max(0, size - 64)


def _flip(payload: bytes, rng: random.Random) -> bytes:
    if not payload:
        return b"\1"
    changed = bytearray(payload)
    for _ in range(rng.choice((1, 1, 1, 8, 64))):
        changed[min(_place(payload, rng), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _extreme(payload: bytes, rng: random.Random) -> bytes:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    value = (rng.choice(EXTREMES) & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]
    at = _place(payload, rng)
    return payload[:at] + value + payload[at + width :]


def _digits(payload: bytes, rng: random.Random) -> bytes:
    """Another number where one stands in digits."""
    places = [k for k, byte in enumerate(payload[:20_000]) if 48 <= byte <= 57]
    if not places:
        return payload
    at = rng.choice(places)
    return payload[:at] + rng.choice((b"9" * 30, b"-1", b"0", b"1e999", b"7", b"8")) + payload[at + 1 :]


def _cut(payload: bytes, rng: random.Random) -> bytes:
    return payload[: _place(payload, rng)]


def _block(payload: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(payload, rng)
    return start, min(len(payload), start + rng.choice((1, 2, 4, 16, 64, 512, 4096)))


def _remove(payload: bytes, rng: random.Random) -> bytes:
    start, stop = _block(payload, rng)
    return payload[:start] + payload[stop:]


def _insert(payload: bytes, rng: random.Random) -> bytes:
    at, size = _place(payload, rng), rng.choice((1, 2, 7, 64, 512, LARGEST_INSERT))
    return payload[:at] + rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size))) + payload[at:]


def _repeat(payload: bytes, rng: random.Random) -> bytes:
    start, stop = _block(payload, rng)
    return payload[:stop] + payload[start:stop] * rng.choice((1, 1, 2, 20)) + payload[stop:]


def _move(payload: bytes, rng: random.Random) -> bytes:
    start, stop = _block(payload, rng)
    block, rest = payload[start:stop], payload[:start] + payload[stop:]
    at = _place(rest, rng)
    return rest[:at] + block + rest[at:]


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _extreme, _extreme, _digits, _cut, _remove, _insert, _repeat, _move,
)  # fmt: skip


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e308, 1e-300, float("nan"), float("inf"), 10**30, -(10**30), 10**400,
    "", " ", "a", "\0", "\ud800", "\u202e", "词" * 3000, "<box>(1,1),(2,2)</box>", "</ref><img>", "<|im_end|>", "../x",
    "/", "gs:/nowhere/x", "https://x.org/a.png", "a" * 300, "null", "NaN", "1", [], {}, [[]], [None], [0] * 3,
    [1, 2, 3, 4], [[1, 1]] * 4, {"text": None}, {"": ""}, [{}], ["a"], [1e400, 2, 3, 4],
)  # fmt: skip


def damaged_value(value: Any, rng: random.Random) -> Any:
    """A JSON value after one to three changes at any depth."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            value = _change(value, rng)
        except RecursionError:  # what is copied has become too deep for that
            break
    return value


def _change(value: Any, rng: random.Random) -> Any:
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if rng.random() < 0.6:
            value[key] = _change(value[key], rng)
            return value
        what = rng.randrange(5)
        if what == 0:
            del value[key]
        elif what == 1 and isinstance(value, dict) and isinstance(key, str):
            value[rng.choice((key.upper(), key + "s", "", "id", "extra"))] = value.pop(key)
        elif what == 2 and isinstance(value, list):
            value.extend(copy.deepcopy(value[key]) for _ in range(rng.choice((1, 3, 300))))
        elif what == 3:
            value[key] = value[rng.choice(keys)]
        elif isinstance(value, list):
            rng.shuffle(value)
        return value
    what = rng.randrange(8)
    if what == 0 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return rng.choice((value + 1, -value, value * 1000, value // 3, f"{value:.3g}" if abs(value) < 1e300 else ""))
    if what == 1:
        deep: Any = value
        for _ in range(rng.choice((2, 20, 3000))):
            deep = [deep]
        return deep
    if what == 2 and isinstance(value, str):
        return "".join(rng.choice((value, value[::-1], value[: len(value) // 2], rng.choice("\0\n\r\t\ud83d猫"))))
    return copy.deepcopy(rng.choice(_VALUES))


def damaged_json(value: Any, rng: random.Random) -> bytes:
    """A JSON text whose value or whose bytes are damaged. Python's Infinity and NaN may stand in it."""
    if rng.random() < 0.75:
        value = damaged_value(value, rng)
    else:
        return damaged_bytes(json.dumps(value).encode(), rng)
    try:
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except RecursionError:
        text = "[" * 5000
    return text.encode("utf-8", "surrogatepass")
