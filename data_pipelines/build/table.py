"""The end report of a run, in the shape of the paper's Table 2, with one line per rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def table(manifest: Mapping[str, Any]) -> str:
    """Lines of text: rows, what every rule dropped, what is left in per cent, records per task.

    Args:
      manifest: the manifest of the output, as `finish` writes it.
    """
    return "\n".join(_lines(manifest))


def _lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    original = manifest["rows"]
    left = original - manifest["failed"]["rows"]
    name = f"{manifest['corpus']}, {manifest['split']}"
    yield f"{name:<32}{'dropped':>14}{'left':>14}{'left %':>9}"
    yield _line("original", None, original, original)
    if manifest["failed"]["rows"]:
        yield _line("failed", manifest["failed"]["rows"], left, original)
        for reason, count in manifest["failed"]["reasons"].items():
            yield _line(f"  {reason}", count)
    for rule in manifest["rules"]:
        dropped = sum(rule["dropped"].values())
        left -= dropped
        yield _line(rule["rule"], dropped, left, original)
        if len(rule["dropped"]) > 1:
            for reason, count in rule["dropped"].items():
                yield _line(f"  {reason}", count)
    yield _line("cleaned", None, manifest["kept"], original)
    for task, split in manifest["tasks"].items():
        size = f"{split['bytes'] / 1e9:,.2f} GB in {len(split['shards'])} shards"
        yield f"{task}: {split['records']:,} records, {split['samples']:,} samples, {split['images']:,} images, {size}"


def _line(name: str, dropped: int | None, left: int | None = None, original: int = 0) -> str:
    columns = ["" if dropped is None else f"{dropped:,}", "" if left is None else f"{left:,}"]
    share = f"{100 * left / original:.1f}" if left is not None and original else ""
    return f"{name[:32]:<32}{columns[0]:>14}{columns[1]:>14}{share:>9}".rstrip()
