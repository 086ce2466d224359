"""The pictures and prompts that a user names: patterns, folders, lists of paths, JSON lines."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from qwenvl_jax.data.images.exact import SUFFIXES
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

_MAGIC = re.compile(r"[*?\[]")
_IMAGE_TAG = re.compile(r"</?img>|<imgpad>")
LINES = (".jsonl", ".ndjson")
LISTS = (".txt", ".lst", ".list")


class Input(NamedTuple):
    """A prompt about pictures.

    Attributes:
      id: of the JSON line, or else the path of the picture.
      images: paths; those of a list begin with the folder of the list, unless they begin at the root.
      prompt: the text after the pictures.
      why: why this cannot be asked; empty if it can.
    """

    id: str
    images: tuple[str, ...]
    prompt: str
    why: str = ""

    @property
    def key(self) -> str:
        """24 hex digits that are equal for equal ids, pictures and prompts."""
        return key_of(self.id, self.images, self.prompt)


class Inputs(NamedTuple):
    """Everything to ask.

    Attributes:
      asked: no two of them are equal.
      repeated: how many were named again and are left out.
    """

    asked: list[Input]
    repeated: int


def key_of(name: str, images: Sequence[str], prompt: str) -> str:
    """The key of an input, see `Input.key`."""
    return hashlib.sha256(json.dumps([name, list(images), prompt]).encode()).hexdigest()[:24]


def read_inputs(named: Sequence[str], prompts: Sequence[str]) -> Inputs:
    """Everything that is to be asked, in the order in which it is named.

    Args:
      named: each is a picture, a pattern such as `photos/*.jpg` (`**` stands for folders of any depth), a folder, a
        text file with a path per line, or a file of JSON lines with `image` or `images`, and maybe `prompt` and `id`.
      prompts: every picture is asked each; a prompt of a JSON line replaces them.

    Raises:
      UserError: if one of them names nothing, or there is no prompt.
    """
    if not named:
        raise UserError("--images is missing; name pictures, such as --images='photos/*.jpg'")
    for prompt in prompts:
        check_prompt(prompt)
    asked: dict[str, Input] = {}
    count = 0
    for text in named:
        before = count
        for each in _read(text, prompts):
            asked.setdefault(each.key, each)
            count += 1
        if count == before:
            raise UserError(f"no picture matches {text!r}; correct --images, and put a pattern in quotes")
    return Inputs(list(asked.values()), count - len(asked))


def check_prompt(prompt: str) -> None:
    """Raises UserError if a prompt names pictures itself, as prompts of the released tokenizer do."""
    if _IMAGE_TAG.search(prompt):
        raise UserError(
            f"the prompt {prompt!r} has an image tag; leave it out, because the pictures of --images come first"
        )


def _read(text: str, prompts: Sequence[str]) -> Iterator[Input]:
    path = storage.path(text)
    name = path.name.lower()
    if not storage.exists(path):
        if _MAGIC.search(text):
            yield from _about(_matching(text), prompts)
            return
        raise UserError(f"{text} does not exist; correct --images")
    if storage.is_folder(path):
        suffixes = tuple(f".{suffix}" for suffix in SUFFIXES)
        files = storage.files_below(path)
        yield from _about((str(path / file) for file in files if file.lower().endswith(suffixes)), prompts)
    elif name.endswith(LINES):
        yield from _json_lines(text, prompts)
    elif name.endswith(LISTS):
        for number, line in _lines(text):
            if line is None:
                yield Input(f"line {number} of {path.name}", (), "", "this line is not UTF-8")
            else:
                yield from _about([_from(text, line)], prompts)
    else:
        yield from _about([text], prompts)


def _about(images: Iterable[str], prompts: Sequence[str]) -> Iterator[Input]:
    if not prompts:
        raise UserError("there is no prompt; give --prompt or --prompts")
    for image in images:
        for prompt in prompts:
            yield Input(image, (image,), prompt)


def _from(listed_in: str, written: str) -> str:
    """A path that is written in a list; a relative one begins at the folder of the list."""
    if storage.scheme_of(written) or written.startswith(("/", "~")) or "/" not in listed_in:
        return written
    return f"{listed_in.rpartition('/')[0]}/{written}"


def _lines(text: str) -> Iterator[tuple[int, str | None]]:
    """The lines that are not blank with their numbers from 1; None for one that is not UTF-8."""
    for number, line in enumerate(storage.read_bytes(storage.path(text)).split(b"\n"), 1):
        try:
            decoded = line.decode().strip()
        except UnicodeDecodeError:
            yield number, None
            continue
        if decoded:
            yield number, decoded


def _json_lines(text: str, prompts: Sequence[str]) -> Iterator[Input]:
    name = storage.path(text).name
    for number, line in _lines(text):
        try:
            row = json.loads(line) if line is not None else None
        except (ValueError, RecursionError):
            row = None
        yield from _of_row(row, f"line {number} of {name}", text, prompts)


def _of_row(row: Any, name: str, listed_in: str, prompts: Sequence[str]) -> Iterator[Input]:
    """The inputs of one JSON line; one with a reason if it cannot be asked."""

    def refused(why: str) -> Input:
        return Input(name, (), "", why)

    if not isinstance(row, dict):
        yield refused("this line is not a JSON object")
        return
    images = row.get("images", row.get("image", []))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        yield refused("'image' must be a path, or 'images' a list of paths")
        return
    images = [_from(listed_in, image) for image in images]
    prompt = row.get("prompt")
    if not (prompt is None or isinstance(prompt, str)):
        yield refused("'prompt' must be a text")
        return
    if prompt is None and not prompts:
        yield refused("there is no prompt, neither in this line nor in --prompt")
        return
    identifier = row.get("id", ", ".join(images) or name)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        yield refused("'id' must be a text or a whole number")
        return
    for each in prompts if prompt is None else [prompt]:
        try:
            check_prompt(each)
        except UserError as error:
            yield refused(str(error))
            continue
        if not images and not each:
            yield refused("there are neither pictures nor a prompt")
            continue
        yield Input(str(identifier), tuple(images), each)


def _matching(pattern: str) -> Iterator[str]:
    """The files that match a pattern, on a disk or an object store, sorted."""
    name = storage.scheme_of(pattern)
    scheme = pattern[: len(name) + 3] if name else ""
    parts = pattern.removeprefix(scheme).split("/")
    plain = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    start = scheme + "/".join(parts[:plain])
    if plain and not start:
        start = "/"
    yield from _below(start, [part for part in parts[plain:] if part])


def _below(folder: str, parts: Sequence[str]) -> Iterator[str]:
    part, *rest = parts
    where = storage.path(folder or ".")
    if part == "**":
        yield from _below(folder, rest or ["*"])
    elif not _MAGIC.search(part):
        if rest and storage.is_folder(where / part):
            yield from _below(_joined(folder, part), rest)
        elif not rest and storage.exists(where / part) and not storage.is_folder(where / part):
            yield _joined(folder, part)
        return
    if not storage.is_folder(where):
        return
    for name, entry in sorted(storage.entries(where).items()):
        if name.startswith(".") and not part.startswith("."):
            continue
        is_folder = entry.size is None
        if part == "**":
            if is_folder:
                yield from _below(_joined(folder, name), parts)
        elif fnmatch.fnmatchcase(name, part):
            if rest and is_folder:
                yield from _below(_joined(folder, name), rest)
            elif not rest and not is_folder:
                yield _joined(folder, name)


def _joined(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder and folder != "/" else f"{folder}{name}"
