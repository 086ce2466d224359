"""Peak memory and encoded pictures of a sweep of 20,000 questions about 4,000 pictures of 448 pixels.

    python benchmarks/sweep_memory.py [--questions=20000] [--scratch=DIR] [--batch=32]

Writes evaluation records with five questions per picture (JPEGs of 640 x 480 pixels), makes a small model whose images
have 448 pixels, and asks it by `sweep` in a process of its own. Prints one JSON object: the largest resident memory of
that process in MiB, how many pictures the vision tower encoded per picture of the set, questions and seconds. If the
whole set were decoded at once, its pixels alone would take 2.4 GB.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PER_PICTURE = 5
SIDE = 448
COLOURS = ("red", "green", "blue", "white", "black")

ASK = """
import json, resource, sys, time
from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation.config import EvalConfig
from qwenvl_jax.evaluation.sweep import sweep

began = time.monotonic()
sweep(from_config_dict(EvalConfig, json.load(open(sys.argv[1]))))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak_mib": round(peak), "seconds": round(time.monotonic() - began)}))
"""


def picture(number: int) -> bytes:
    """A JPEG of coloured rectangles, different for every number."""
    draw = np.random.default_rng(number)
    small = draw.integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((640, 480), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def write_records(folder: Path, pictures: int) -> None:
    """The questions as records of the task "evaluation"."""
    from qwenvl_jax.data.record_writer import write_records as write
    from qwenvl_jax.data.schema import Record

    def records() -> Iterator[Record]:
        for number in range(pictures):
            questions = [
                {"id": f"{number * PER_PICTURE + index}", "text": f"How much {colour} is there?", "answers": [colour]}
                for index, colour in enumerate(COLOURS)
            ]
            content = {"questions": questions}
            yield Record(f"{number}", "evaluation", "made", "en", "CC0-1.0", (picture(number),), content)  # type: ignore[arg-type]

    write(folder, {"val": records()}, name="asked")


def write_model(folder: Path) -> dict[str, object]:
    """A small model and its vocabulary; the values of its tokenizer."""
    import dataclasses

    import jax

    from qwenvl_jax.checkpoint import imported
    from qwenvl_jax.models import qwen_vl
    from tests.support import tiny_run

    config = tiny_run.make_config(tiny_run.write_data(folder / "data"), data__image_size=SIDE)
    params = qwen_vl.init_params(config.model, jax.random.key(0))
    imported.save_params(folder / "run", jax.device_get(params), config)
    return dataclasses.asdict(config.tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--scratch", help="default: a folder that is removed")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    pictures = arguments.questions // PER_PICTURE
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        write_records(folder / "asked", pictures)
        settings = {
            "checkpoints": [{"name": "small", "workdir": str(folder / "run"), "image_size": SIDE}],
            "tokenizer": write_model(folder),
            "benchmarks": [{"name": "vqav2_val", "records": str(folder / "asked"), "max_new_tokens": 2}],
            "batch_size": arguments.batch,
            "prompt_style": "released",
            "output": str(folder / "output"),
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [sys.executable, "-c", ASK, str(folder / "settings.json")]
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        summary = json.loads((folder / "output/predictions/small/vqav2_val.json").read_text())
        figures = json.loads(run.stdout.splitlines()[-1])
        figures |= {"questions": summary["questions"], "pictures": pictures}
        figures["encoded_per_picture"] = summary["pictures_encoded"] / pictures
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
