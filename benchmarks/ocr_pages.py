"""Pages per second of one core: synthetic pages, PDF pages, HTML screens, and the original SynthDoG.

Usage: python benchmarks/ocr_pages.py [--makers=synthetic,pdf,html] [--languages=en,zh] [--pages=30] [--repeats=3]
       [--cache=data/cache] [--synthdog=FOLDER --synthdog_python=PYTHON]

Time is processor time of the process and its children, so that other programs count little; the browser's processes
count too. FOLDER is `synthdog` of https://github.com/clovaai/donut, PYTHON an interpreter with `synthtiger` (1.2.1,
with numpy < 2, Pillow 9.4, opencv < 4.12). Both generators draw the same texts in the same fonts with the same
photographs, at SynthDoG's default settings, one process each; the paper is FOLDER's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import ocr_sources
import yaml

from data_pipelines.fetch.wallpapers import wallpapers
from data_pipelines.ocr import worker
from data_pipelines.ocr.fonts import page_fonts
from data_pipelines.ocr.pdf import RenderedPage
from data_pipelines.ocr.photographs import DRAFT_PX, Photographs
from data_pipelines.ocr.synthetic import render_page
from data_pipelines.ocr.synthetic_settings import PageSettings
from qwenvl_jax.data.images.exact import decode_image

STARTED = 2  # pages of the run whose time is subtracted as its start


def processor_s() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def running_children_s() -> float:
    """Processor time of all processes below this one that still run."""
    parents: dict[int, tuple[int, float]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks = sum(map(int, fields[11:15]))
            parents[int(entry)] = (int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"))

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid][0]
            if pid == os.getpid():
                return True
        return False

    return sum(seconds for pid, (_, seconds) in parents.items() if is_below(pid))


def per_second(make: Callable[[], int]) -> float:
    """Pages per second of processor time, without the start of other processes, which is paid once."""
    make()
    start = processor_s() + running_children_s()
    pages = make()
    return pages / (processor_s() + running_children_s() - start)


def rendered(pages: object) -> int:
    return sum(isinstance(page, RenderedPage) for page in pages)  # type: ignore[attr-defined]


def synthdog_config(folder: Path, language: str, cache: Path, target: Path) -> Path:
    """The original's configuration with our texts, fonts and photographs."""
    config = yaml.safe_load((folder / f"config_{language}.yaml").read_text())
    fonts = target / "fonts"
    fonts.mkdir()
    for font in page_fonts(language, cache):
        shutil.copy(font.path, fonts)
    backgrounds = target / "backgrounds"
    backgrounds.mkdir()
    for file in wallpapers(cache):  # as small as ours are decoded, so that the original need not decode more
        image = decode_image(file.read_bytes(), draft=DRAFT_PX)
        image.save(backgrounds / f"{file.stem}.jpg", quality=90)
    corpus = target / "texts.txt"
    corpus.write_text("\n".join(ocr_sources.texts(language, cache)._texts))
    config["document"]["content"]["text"]["path"] = str(corpus)
    config["document"]["content"]["font"]["paths"] = [str(fonts)]
    config["background"]["image"]["paths"] = [str(backgrounds)]
    config["document"]["paper"]["image"]["paths"] = [str(folder / "resources/paper")]
    path = target / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def synthdog(folder: Path, python: str, language: str, cache: Path, pages: int) -> float:
    """Pages per second of processor time of the original, without its start."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        config = synthdog_config(folder.absolute(), language, cache, target)
        spent = []
        for count in (STARTED, STARTED + pages):
            tool = str(Path(python).parent / "synthtiger")
            command = [tool, "-o", str(target / "out"), "-c", str(count), "-w", "1", "-s", "0"]
            before = processor_s()
            done = subprocess.run(
                [*command, "template.py", "SynthDoG", str(config)], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"synthtiger failed: {done.stderr[-500:]}")
            spent.append(processor_s() - before)
        return pages / (spent[1] - spent[0])


def makers_of(language: str, cache: Path, pages: int) -> dict[str, Callable[[], int]]:
    """Functions that make so many pages and return their number."""
    made_of = ocr_sources.ingredients(language, cache)

    def synthetic() -> int:
        # Photographs are decoded again, as those of a large folder are for almost every page.
        decoding = dataclasses.replace(made_of, photographs=Photographs.of_debian(cache))
        return len([render_page(1, number, decoding, PageSettings()) for number in range(pages)])

    return {
        "synthetic": synthetic,
        "pdf": lambda: rendered(ocr_sources.pdf_pages(language, cache, pages)),
        "html": lambda: rendered(ocr_sources.html_screens(language, cache, pages)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--makers", default="synthetic,pdf,html")
    parser.add_argument("--languages", default="en,zh")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--synthdog", type=Path)
    parser.add_argument("--synthdog_python", default="python")
    options = parser.parse_args()
    for language in options.languages.split(","):
        makers = makers_of(language, options.cache, options.pages)
        for name in options.makers.split(","):
            values = [per_second(makers[name]) for _ in range(options.repeats)]
            print(json.dumps({"maker": name, "language": language, "pages_per_core_s": _summary(values)}), flush=True)
        if options.synthdog:
            peer = [
                synthdog(options.synthdog, options.synthdog_python, language, options.cache, options.pages)
                for _ in range(options.repeats)
            ]
            print(json.dumps({"maker": "synthdog", "language": language, "pages_per_core_s": _summary(peer)}))
            ours = [per_second(makers["synthetic"]) for _ in range(options.repeats)]
            ratio = statistics.median(ours) / statistics.median(peer)
            print(json.dumps({"language": language, "times_as_fast_as_synthdog": round(ratio, 1)}), flush=True)
    for workers in worker._idle.values():
        for each in workers:
            each.close()


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


if __name__ == "__main__":
    main()
