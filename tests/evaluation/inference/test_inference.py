"""Batch inference: answers, hostile pictures, resumption after a kill, the page, and mistakes on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenvl_jax import infer
from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import to_torch
from qwenvl_jax.data.examples import make_prompt
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.generate import generate
from qwenvl_jax.evaluation.generation.sampling import Limits
from qwenvl_jax.evaluation.inference import run as inference
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import folder_lock
from qwenvl_jax.serving.conversation import Conversation
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.options import AnswerOptions
from tests.evaluation.samples import grey, noise

ROOT = Path(__file__).parents[3]
PROMPT = "What is it?"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        (folder / f"{number}.jpg").write_bytes(noise(number))
    return folder


def infer_main(checkpoint: Path, images: Path | str, output: Path, *flags: str, prompt: str = PROMPT) -> None:
    asked = [f"--prompt={prompt}"] if prompt else []
    infer.main(
        [f"--workdir={checkpoint}", f"--images={images}", f"--output={output}", "--max_new_tokens=5",
         "--min_new_tokens=1", "--batch_size=4", *asked, *flags]
    )  # fmt: skip


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text().split("\n")[:-1]]


def test_hostile_pictures_cost_only_themselves(
    checkpoint: Path,
    loaded: LoadedModel,
    config: Config,
    tokenizer: Tokenizer,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All others get the answers of the generator."""
    hostile = {
        "cut.jpg": noise(1)[:200], "text.png": b"no picture", "empty.gif": b"", "bomb.bmp": _bmp(60_000, 60_000),
    }  # fmt: skip
    folder = tmp_path / "album"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).symlink_to(path)
    for name, payload in hostile.items():
        (folder / name).write_bytes(payload)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    (tmp_path / "list.txt").write_text("\n".join(str(folder / name) for name in sorted(os.listdir(folder))))
    infer_main(checkpoint, tmp_path / "list.txt", tmp_path / "out")
    rows = {Path(row["id"]).name: row for row in rows_of(tmp_path / "out")}
    bad = {name for name, row in rows.items() if row["answer"] is None}
    assert bad == {*hostile, "folder.jpg", "pipe.jpg", "gone.jpg"}
    for name in bad:
        assert name in rows[name]["why"]
    assert "7 could not be asked" in capsys.readouterr().out

    queries = config.model.resampler.queries
    size = config.data.image_size
    limits = Limits(5, 1, (tokenizer.special.eot,))
    for number in range(6):
        pieces = inference.pieces_of(PROMPT, 1, chat=False)
        prompt = make_prompt(pieces, [noise(number)], tokenizer, queries, size)
        [ids] = generate(loaded, [prompt], limits)
        assert rows[f"{number}.jpg"]["answer"] == tokenizer.decode(ids).strip()

    page = (tmp_path / "out" / "answers.html").read_text()
    assert page.count("data:image/") == 6 and "7 inputs have no answer" in page and "bomb.bmp" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def _bmp(width: int, height: int) -> bytes:
    """The header of a BMP without its pixels."""
    size = (40).to_bytes(4, "little") + width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return b"BM" + bytes(8) + (54).to_bytes(4, "little") + size + b"\x01\x00\x18\x00" + bytes(24)


@pytest.mark.slow
def test_a_chat_prompt_is_that_of_the_chat(
    checkpoint: Path, loaded: LoadedModel, config: Config, tokenizer: Tokenizer, pictures: Path, tmp_path: Path
) -> None:
    infer_main(checkpoint, pictures / "0.jpg", tmp_path, "--chat", "--min_new_tokens=0")
    [row] = rows_of(tmp_path)
    with Engine(loaded, tokenizer, config.data.image_size) as engine:
        conversation = Conversation(engine, AnswerOptions(max_new_tokens=5))
        conversation.add_image(noise(0))
        assert row["answer"] == conversation.ask(PROMPT).text.strip()


def test_a_release_answers_as_its_run(checkpoint: Path, config: Config, pictures: Path, tmp_path: Path) -> None:
    params, _ = restore.deferred_params(checkpoint)
    release = to_torch.release(params, config, tmp_path / "release")
    imported = f"--imported={tmp_path}/imported"
    for model, output in ((checkpoint, "of_run"), (Path(release), "of_release")):
        infer_main(model, pictures / "0.jpg", tmp_path / output, imported)
    answers = [[row["answer"] for row in rows_of(tmp_path / output)] for output in ("of_run", "of_release")]
    assert answers[0] == answers[1] and answers[0][0]


@pytest.mark.slow
def test_samples_and_beams(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path / "drawn", "--temperature=1", "--samples=3")
    rows = rows_of(tmp_path / "drawn")
    assert all(len(row["samples"]) == 3 and row["answer"] == row["samples"][0]["answer"] for row in rows)
    assert len({sample["answer"] for row in rows for sample in row["samples"]}) > 10
    infer_main(checkpoint, f"{pictures}/[34].jpg", tmp_path / "some", "--temperature=1", "--samples=3")
    assert rows_of(tmp_path / "some") == rows[3:5]  # draws depend on the input alone
    infer_main(checkpoint, f"{pictures}/[34].jpg", tmp_path / "beams", "--num_beams=3", "--samples=2")
    for row in rows_of(tmp_path / "beams"):
        first, second = row["samples"]
        assert row["score"] == first["score"] > second["score"]


def test_a_prompt_beyond_the_model_costs_only_its_input(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"What is it?\n{'so ' * 5000}\n")
    flags = (f"--prompts={tmp_path / 'prompts.txt'}",)
    infer_main(checkpoint, pictures / "0.jpg", tmp_path / "out", *flags, prompt="")
    short, long = rows_of(tmp_path / "out")
    assert short["answer"] is not None
    assert "the model takes at most 256" in long["why"]


def test_boxes_are_drawn(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(grey(200, 100))
    monkeypatch.setattr(Tokenizer, "decode", lambda *_, **__: "<ref>a <b>dog</ref><box>(100,200),(500,800)</box>")
    infer_main(checkpoint, tmp_path / "a.png", tmp_path / "out")
    [row] = rows_of(tmp_path / "out")
    assert row["boxes"] == [{"ref": "a <b>dog", "image": 0, "box": [20.0, 20.0, 100.0, 80.0]}]
    page = (tmp_path / "out" / "answers.html").read_text()
    assert 'points="20,20 100,20 100,80 20,80"' in page and "a &lt;b&gt;dog" in page and "<b>dog" not in page


def test_the_page_shows_a_bounded_number(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path, "--shown=2")
    page = (tmp_path / "answers.html").read_text()
    assert page.count("data:image/") == 2 and "6 answers, of which the first 2 are shown here" in page


class _Killed(BaseException):
    pass


def test_an_interrupted_command_asks_only_what_is_missing(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path / "whole")
    row_of = inference.Inference._row
    calls: list[str] = []

    def counted(self: Any, each: Any, *arguments: Any) -> dict[str, Any]:
        calls.append(each.id)
        if len(calls) == 4:
            raise _Killed
        return row_of(self, each, *arguments)

    monkeypatch.setattr(inference.Inference, "_row", counted)
    with pytest.raises(_Killed):
        infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path / "cut")
    assert not (tmp_path / "cut" / "answers.jsonl").exists()
    infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path / "cut")
    assert "3 were there already" in capsys.readouterr().out
    assert len(calls) == 4 + 3
    assert (tmp_path / "cut" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path / "cut")
    assert len(calls) == 4 + 3


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--num_beams=0"], "--num_beams=0 must be at least 1"),
        (["--num_beams=2", "--temperature=1"], "exclude each other"),
        (["--num_beams=2", "--samples=3"], "raise --num_beams"),
        (["--samples=2"], "all samples would be equal"),
        (["--top_p=0.5"], "need a --temperature"),
        (["--top_p=1.5", "--temperature=1"], "top_p 1.5"),
        (["--min_new_tokens=9"], "min_new_tokens 9"),
        (["--max_new_tokens=many"], "invalid int value: 'many'"),
        (["--early_stopping=maybe"], "invalid choice: 'maybe'"),
        (["--bach_size=2"], "did you mean '--batch_size'"),
        (["--mesh=fsdp=three"], "the mesh 'fsdp=three' must be"),
        (["--mesh=fsdp=0"], "must be positive numbers of devices"),
        (["--mesh=fsdp=64"], "devices"),
        (["--prompts=/nowhere.txt"], "exclude each other"),
        (["--image_size=29"], "patches"),
    ],
)
def test_mistakes_are_one_sentence(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        infer_main(checkpoint, f"{pictures}/*.jpg", tmp_path / "out", *flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "images,prompt,message",
    [
        ("{pictures}/*.webp", PROMPT, "no picture matches"),
        ("{pictures}/*.jpg", "", "there is no prompt"),
        ("{pictures}", "Why?", "another prompt"),
    ],
)
def test_wrong_pictures_and_prompts_are_one_sentence(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: Any, images: str, prompt: str, message: str
) -> None:
    (tmp_path / "inference.json").write_text(json.dumps({"prompt": [PROMPT]}))
    with pytest.raises(SystemExit) as ended:
        infer_main(checkpoint, images.format(pictures=pictures), tmp_path, prompt=prompt)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and (message in said or "another checkpoint" in said)


def test_a_second_command_for_the_same_folder_is_refused(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    with folder_lock.locked(output, ""):
        with pytest.raises(SystemExit) as stopped:
            infer_main(checkpoint, pictures, output)
        assert stopped.value.code == 2 and list(output.iterdir()) == []
    assert f"error: another command writes to {output}; wait for it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_continues(checkpoint: Path, tmp_path: Path) -> None:
    """Killed several times while it answers, at no moment that it chose, it ends with the same bytes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02d}.jpg").write_bytes(noise(number % 50))
    (folder / "broken.jpg").write_bytes(b"no picture")
    command = [sys.executable, "-m", "qwenvl_jax.infer", f"--workdir={checkpoint}", f"--images={folder}/*.jpg"]
    command += [f"--prompt={PROMPT}", "--max_new_tokens=40", "--batch_size=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(output: Path) -> str:
        finished = subprocess.run(
            [*command, f"--output={output}"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    run(tmp_path / "whole")
    unfinished = tmp_path / "killed" / "answers.unfinished.jsonl"
    before = 0
    for round_ in range(2):
        process = subprocess.Popen([*command, f"--output={tmp_path / 'killed'}"], env=environment, cwd=ROOT)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            lines = unfinished.read_bytes().count(b"\n") if unfinished.exists() else 0
            if lines >= before + 5 + int(np.random.default_rng(round_).integers(5)):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = unfinished.read_bytes().count(b"\n")
        assert 5 <= before < 61
    said = run(tmp_path / "killed")
    assert "were there already" in said
    assert (tmp_path / "killed/answers.jsonl").read_bytes() == (tmp_path / "whole/answers.jsonl").read_bytes()
    assert len(rows_of(tmp_path / "killed")) == 61
