"""Selects the stamps that scenes use from a source, with short names in both languages and prepared sizes.

raws, _ = tuxpaint.load(cache)
stamps = select_stamps(raws, count=40, sizes_px=range(35, 61))
stamps[0].name_en, stamps[0].name_zh          # "a badger", "一只獾"
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from data_pipelines.quickstart.raw_stamp import RawStamp, load_rgba
from qwenvl_jax.runtime.errors import UserError

# A pixel is part of a stamp, and of its box, from this alpha (of 255) on.
VISIBLE_ALPHA = 96

# Tux Paint stamps that the eye can tell apart at 40 px, the most different ones first; the first N are used.
PREFERRED = [
    "animals/mammals/badger",
    "vehicles/emergency/firetruck",
    "food/fruit/lemon",
    "sports/basketball",
    "animals/birds/penguin",
    "plants/flowers/daffodil",
    "animals/mammals/cats/tiger",
    "hobbies/music/string/guitar_classical",
    "animals/mammals/equines/zebra",
    "household/rubberduck",
    "food/fruit/Strawberry2",
    "vehicles/masstransit/green_korean_bus",
    "animals/amphibians/frog",
    "household/tools/toolbox",
    "animals/mammals/elephant",
    "food/fruit/kiwi",
    "sports/soccer",
    "vehicles/flight/planes/747",
    "plants/trees/liberia-palm",
    "animals/mammals/aquatic/dolphin",
    "animals/birds/owl",
    "household/Lightbulb",
    "animals/mammals/rodents/squirrel",
    "sports/tennis_ball",
    "vehicles/cycle/pink_tricycle",
    "animals/mammals/camel/camel",
    "animals/mammals/dogs/fox",
    "hobbies/camera_35mm",
    "food/fruit/Apricot_whole",
    "animals/fish/seahorse",
    "plants/trees/pinecone",
    "animals/mammals/aquatic/orca",
    "household/kettle",
    "animals/mammals/giraffe",
    "animals/birds/turkey",
    "hobbies/music/percussion/drumkit",
    "vehicles/ship/walnutBoat",
    "animals/mammals/pig",
    "animals/marsupials/koala",
    "animals/insects/grasshopper",
    "animals/mammals/bovines/cow",
    "animals/birds/duck",
    "food/fruit/avocado",
    "animals/mammals/rodents/rabbit",
    "vehicles/race/indycar",
    "animals/birds/crow",
    "sports/trophy_cup",
    "food/fruit/mandarine",
    "animals/mammals/hippopotamus",
    "animals/mammals/bovines/sheep",
    "animals/mammals/equines/horse",
    "animals/mammals/deer/deer",
    "animals/mammals/apes/gorilla",
    "animals/insects/hornet",
    "animals/birds/seagull",
    "animals/mammals/rodents/beaver",
    "hobbies/music/string/violin",
    "animals/mammals/bovines/bison",
    "animals/birds/ostrich",
    "animals/mammals/aquatic/sea_lion",
]

# Stamps whose Chinese caption is wrong in the source: bear is "pear", lion is "onion", yak is "nonsense", ...
MISTRANSLATED = frozenset([
    "animals/mammals/bears/bear", "animals/mammals/cats/lion", "animals/mammals/cats/lion-2",
    "animals/mammals/bovines/yak", "animals/insects/xanthia", "animals/birds/nandou",
    "animals/mammals/bovines/mountaingoat", "animals/mammals/rodents/rat", "food/fruit/cartoon/prune",
    "food/fruit/sliced_lime", "food/dessert/cartoon/pink_cake", "seasonal/christmas/xmaswreath",
    "seasonal/halloween/grave-b", "seasonal/halloween/grave-i", "town/cartoon/mine", "town/cartoon/wishing_well",
    "symbols/math/operators/op2_multiply", "symbols/shapes/scream_balloon", "symbols/shapes/speech_balloon",
])  # fmt: skip

_ENGLISH_NAME = re.compile(r"^An? ([A-Za-z][a-z]+(?: [a-z]+)?)[.!]?$")
_CHINESE_NAME = re.compile(r"^(?:一[只个条头匹辆架棵朵块片把座艘面])?([\u4e00-\u9fff]{1,6})[。！!.]?$")
_DRAWN = re.compile(r"cartoon|symbols|toys|town/|seasonal/|people/|military|medical")
# Measure word -> endings of the nouns that take it. The measure word of other nouns depends on their category.
_MEASURE_WORDS = {
    "匹": ("斑马", "马"),
    "头": ("象", "牛", "驴", "猪"),
    "辆": ("车", "巴士"),
    "架": ("飞机",),
    "艘": ("船",),
    "棵": ("树",),
    "朵": ("花",),
    "把": ("琴", "吉他"),
    "台": ("相机",),
    "套": ("鼓",),
    "只": ("海马", "河马", "蜗牛", "鸭子"),
}
_MIN_SIDE_PX, _MIN_ASPECT, _MIN_COLORS = 90, 0.35, 500


@dataclasses.dataclass(frozen=True)
class View:
    """One size of a stamp, trimmed so that its visible pixels touch all four edges.

    Attributes:
      premultiplied_HWC: [H, W, 3] uint16, colour times alpha / 255.
      alpha_HW1: [H, W, 1] uint16 in [0, 255].
      visible_HW: [H, W] bool, alpha >= VISIBLE_ALPHA.
    """

    premultiplied_HWC: np.ndarray
    alpha_HW1: np.ndarray
    visible_HW: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Stamp:
    """A stamp as scenes use it. `noun` is bare ("badger", "獾"); `name` has an article ("a badger", "一只獾")."""

    id: str
    category: str
    noun_en: str
    name_en: str
    noun_zh: str
    name_zh: str
    license: str
    source: str
    views: dict[int, View]

    def noun(self, language: str) -> str:
        """The bare noun in `language`, "en" or "zh"."""
        return self.noun_en if language == "en" else self.noun_zh

    def name(self, language: str) -> str:
        """The noun with its article in `language`, "en" or "zh"."""
        return self.name_en if language == "en" else self.name_zh


def select_stamps(
    raws: Sequence[RawStamp], count: int, sizes_px: Iterable[int], listed: Sequence[str] = (), grid_px: int = 1
) -> list[Stamp]:
    """Selects `count` stamps, in a fixed order.

    Args:
      raws: all stamps of a source.
      count: number of stamps; every noun occurs once in each language.
      sizes_px: long sides to prepare, in pixels.
      listed: ids to take instead of those that the rule selects.
      grid_px: both sides of a prepared stamp are multiples of it.

    Raises:
      UserError: if a listed id does not exist or is unusable, or fewer than `count` stamps are usable.
    """
    by_id = {raw.id: raw for raw in raws}
    for name in listed:
        if name not in by_id or names_of(by_id[name]) is None:
            raise UserError(f"stamp {name!r} does not exist or has no short name in both languages; list another")
    order = [by_id[name] for name in listed] if listed else list(_rule_order(raws))
    wanted = len(listed) or count
    sizes = sorted(set(sizes_px))
    chosen: list[Stamp] = []
    nouns: set[str] = set()
    for raw in order:
        if len(chosen) == wanted:
            break
        names = names_of(raw)
        if names is None or names[0] in nouns or names[1] in nouns:
            continue
        pixels = load_rgba(raw)
        if not listed and not looks_photographic(pixels, drawn=raw.source == "rendered"):
            continue
        nouns.update(names)
        noun_en, noun_zh = names
        chosen.append(
            Stamp(
                id=raw.id,
                category=raw.category,
                noun_en=noun_en,
                name_en=f"{article(noun_en)} {noun_en}",
                noun_zh=noun_zh,
                name_zh=f"一{measure_word(noun_zh, raw.category)}{noun_zh}",
                license=raw.license,
                source=raw.source,
                views=prepare_views(pixels, sizes, grid_px),
            )
        )
    if len(chosen) < wanted:
        raise UserError(f"only {len(chosen)} stamps are usable, {count} were asked for; lower --num_stamps")
    return chosen


def names_of(raw: RawStamp) -> tuple[str, str] | None:
    """(English noun, Chinese noun) of a stamp with a picture and a short name in both languages, else None."""
    english = english_name(raw.caption_en)
    chinese = _CHINESE_NAME.match(raw.caption_zh)
    if not raw.has_picture or raw.id in MISTRANSLATED or not english or chinese is None:
        return None
    return english, chinese.group(1)


def english_name(caption_en: str) -> str:
    """The noun, one or two words, in a caption such as "A fire truck."; "" if the caption is longer."""
    match = _ENGLISH_NAME.match(caption_en)
    return match.group(1).lower() if match else ""


def article(noun: str) -> str:
    """ "a" or "an"."""
    return "an" if noun[0] in "aeiou" and not noun.startswith(("eu", "uni")) else "a"


def measure_word(noun_zh: str, category: str) -> str:
    """The Chinese measure word of a noun, e.g. 只 for most animals, 辆 for vehicles on wheels."""
    matches = [(len(e), word) for word, endings in _MEASURE_WORDS.items() for e in endings if noun_zh.endswith(e)]
    if matches:
        return max(matches)[1]  # that of the longest ending
    return {"animals": "只", "vehicles": "辆"}.get(category, "个")


def looks_photographic(pixels_HWC: np.ndarray, drawn: bool) -> bool:
    """Whether a cut-out is large, compact and rich in colours. A drawn one need not be rich in colours."""
    alpha = pixels_HWC[..., 3]
    box = tight_box(alpha >= VISIBLE_ALPHA)
    if box is None:
        return False
    x1, y1, x2, y2 = box
    sides = sorted((x2 - x1, y2 - y1))
    covered = float((alpha[y1:y2, x1:x2] >= VISIBLE_ALPHA).mean())
    colors = len(np.unique(pixels_HWC[alpha >= VISIBLE_ALPHA][:, :3], axis=0))
    compact = sides[1] >= _MIN_SIDE_PX and sides[0] >= _MIN_ASPECT * sides[1] and covered >= 0.2
    return compact and (drawn or (covered <= 0.97 and colors >= _MIN_COLORS))


def tight_box(visible_HW: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x1, y1, x2, y2) of the true pixels, x2 and y2 exclusive; None if there are none."""
    columns = np.flatnonzero(visible_HW.any(axis=0))
    rows = np.flatnonzero(visible_HW.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def prepare_views(pixels_HWC: np.ndarray, sizes_px: Sequence[int], grid_px: int = 1) -> dict[int, View]:
    """The stamp at every long side in `sizes_px`, resized in premultiplied colour so that edges have no halo.

    The sides are rounded to multiples of `grid_px`.
    """
    box = tight_box(pixels_HWC[..., 3] >= VISIBLE_ALPHA)
    if box is None:
        raise UserError("a stamp has no visible pixel; remove it from the list")
    cut = Image.fromarray(pixels_HWC).crop(box).convert("RGBa")
    views = {}
    for size in sizes_px:
        scale = size / max(cut.size)
        width = grid_px * max(1, round(cut.width * scale / grid_px))
        height = grid_px * max(1, round(cut.height * scale / grid_px))
        method = Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.HAMMING
        # Pillow cannot convert mode RGBa to an array, so its bytes are used.
        flat = np.frombuffer(cut.resize((width, height), method).tobytes(), np.uint8)
        small = flat.reshape(height, width, 4)
        trimmed = tight_box(small[..., 3] >= VISIBLE_ALPHA)
        if trimmed is None:
            raise UserError(f"a stamp has no visible pixel at {size} px; remove it from the list")
        x1, y1, x2, y2 = trimmed
        small = small[y1:y2, x1:x2].astype(np.uint16)
        views[size] = View(small[..., :3], small[..., 3:], small[..., 3] >= VISIBLE_ALPHA)
    return views


def _rule_order(raws: Sequence[RawStamp]) -> Iterator[RawStamp]:
    """Preferred stamps first, then one of each category in turn, without drawings and signs."""
    by_id = {raw.id: raw for raw in raws}
    yield from (by_id[name] for name in PREFERRED if name in by_id)
    rest: dict[str, list[RawStamp]] = {}
    for raw in sorted(raws, key=lambda raw: raw.id):
        if raw.id not in PREFERRED and not _DRAWN.search(raw.id):
            rest.setdefault(raw.category, []).append(raw)
    while any(rest.values()):
        for category in sorted(rest):
            if rest[category]:
                yield rest[category].pop(0)
