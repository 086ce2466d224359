"""Answers a prompt about every picture of a folder, a pattern or a list: JSON lines and one page.

    python -m qwenvl_jax.infer --workdir=runs/quickstart/stage3_sft --images='photos/*.jpg' \
        --prompt='Describe the image in English:' --output=answers

--workdir is a run, or a release, which is imported once below --imported.
--images takes pictures, patterns, folders, text files with a path per line and JSON lines ({"image": "a.jpg", "prompt":
"..", "id": ".."}), on disks and on gs://. A command that was killed continues where it stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from absl import logging

from qwenvl_jax.data.tokenizer import vocabulary_digest
from qwenvl_jax.evaluation import checkpoint, placement
from qwenvl_jax.evaluation.generation.sampling import BeamSearch, Limits, Sampling
from qwenvl_jax.evaluation.inference.answer_file import ROWS, AnswerFile
from qwenvl_jax.evaluation.inference.inputs import Inputs, read_inputs
from qwenvl_jax.evaluation.inference.page import answers_page
from qwenvl_jax.evaluation.inference.run import Decoding, Inference, settings_of
from qwenvl_jax.runtime import artifacts, distributed, folder_lock, log, retries, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from qwenvl_jax.serving.open_model import OpenedModel, open_model
from qwenvl_jax.sharding.mesh import config_of

PAGE = "answers.html"
_EARLY: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and answers."""
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file
    with exit_on_user_error():
        retries.patience()
        args = _parser().parse_args(argv)
        distributed.require_alone("batch inference")
        decoding = _decoding(args)
        prompts = _prompts(args)
        inputs = read_inputs([each for group in args.images for each in group], prompts)
        imported = storage.path(args.imported)
        opened = open_model(args.workdir, args.step, imported, image_size=args.image_size, mesh=args.mesh)
        answer_all(opened, inputs, prompts, decoding, args)


def answer_all(
    opened: OpenedModel, inputs: Inputs, prompts: Sequence[str], decoding: Decoding, args: argparse.Namespace
) -> None:
    """Answers all inputs, writes rows and page, and says what was done.

    Raises:
      UserError: if the output folder holds other answers, or not a single input can be asked.
    """
    start, tokenizer, image_size, mesh = opened
    config = start.config
    vocabulary = vocabulary_digest(config.tokenizer)
    settings = settings_of(decoding, prompts, checkpoint.identity(start), vocabulary, image_size)
    inference = Inference(
        lambda: placement.load(start, mesh),
        tokenizer,
        config.model.resampler.queries,
        config.model.decoder.max_positions,
        image_size,
        decoding,
        args.batch_size,
        mesh,
    )
    output = artifacts.output_folder(args.output)
    began = time.monotonic()
    with (
        folder_lock.locked(output, f"another command writes to {output}; wait for it or name another --output"),
        folder_lock.removed_if_empty(output),
        AnswerFile(output, settings) as answers,
    ):
        known = sum(each.key in answers.rows for each in inputs.asked)
        inference.answer(inputs.asked, answers)
        rows = answers.finish(each.key for each in inputs.asked)
        intro = f"{config.model.name}, step {start.step} of {args.workdir}."
        artifacts.write_text(output / PAGE, answers_page(rows, intro, args.shown))
    missing = [row for row in rows if row["answer"] is None]
    counts = [f"{len(rows) - len(missing):,} answers in {output / ROWS}, shown in {PAGE}"]
    counts += [f"{known:,} were there already"] if known else []
    counts += [f"{inputs.repeated:,} were named twice"] if inputs.repeated else []
    log.line(log.printable(f"{', '.join(counts)} ({time.monotonic() - began:.0f} s)"))
    if missing:
        first = f"the first because of: {missing[0]['why']}"
        if len(missing) == len(rows):
            raise UserError(f"none of the {len(rows):,} inputs could be asked, {first}")
        log.line(log.printable(f"{len(missing):,} could not be asked, {first}"))


def _prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of the command line; none if the JSON lines bring theirs.

    Raises:
      UserError: if there are two sources of prompts, or a file has none.
    """
    if args.prompt is not None and args.prompts:
        raise UserError("--prompt and --prompts exclude each other; write all prompts into the file of --prompts")
    if not args.prompts:
        return [] if args.prompt is None else [args.prompt]
    try:
        text = storage.read_bytes(storage.path(args.prompts)).decode()
    except FileNotFoundError:
        raise UserError(f"{args.prompts} does not exist; correct --prompts") from None
    except UnicodeDecodeError:
        raise UserError(f"{args.prompts} is not UTF-8; save it as UTF-8") from None
    prompts = list(dict.fromkeys(line.rstrip("\r") for line in text.split("\n") if line.strip()))
    if not prompts:
        raise UserError(f"{args.prompts} has no prompt; write one per line")
    return prompts


def _decoding(args: argparse.Namespace) -> Decoding:
    """How answers are written.

    Raises:
      UserError: for values out of range, or that contradict each other.
    """
    Limits(args.max_new_tokens, args.min_new_tokens)
    search = None
    if args.num_beams > 1:
        search = BeamSearch(args.num_beams, args.length_penalty, _EARLY[args.early_stopping])
    elif args.num_beams < 1:
        raise UserError(f"--num_beams={args.num_beams} must be at least 1")
    if args.batch_size < 1 or args.shown < 0:
        raise UserError("--batch_size must be at least 1, and --shown must not be negative")
    if not args.temperature and (args.top_k or args.top_p != 1):
        raise UserError("--top_k and --top_p draw tokens and need a --temperature, such as 1")
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    return Decoding(args.chat, args.max_new_tokens, args.min_new_tokens, sampling, search, args.samples, args.seed)


def _parser() -> Parser:
    parser = Parser("python -m qwenvl_jax.infer", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the training run, or of a release")
    parser.add_argument("--step", type=int, default=-1, help="of the checkpoint; -1 is the newest")
    parser.add_argument("--imported", default="imported", help="folder for the imports of releases")
    parser.add_argument(
        "--images", nargs="+", action="append", required=True, help="pictures, patterns, folders, lists, JSON lines"
    )
    parser.add_argument("--prompt", default=None, help="the text after each picture")
    parser.add_argument("--prompts", default="", help="file with a prompt per line; every picture is asked each")
    parser.add_argument("--chat", action="store_true", help="ask in the form of a dialogue (models of stage 3)")
    parser.add_argument("--output", default="answers", help="folder for answers.jsonl and answers.html")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="the largest number of tokens of an answer")
    parser.add_argument("--min_new_tokens", type=int, default=0, help="tokens before which no answer ends")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    parser.add_argument("--top_k", type=int, default=0, help="draw from this many tokens; 0: from all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from the tokens that make up this probability")
    parser.add_argument("--seed", type=int, default=0, help="of draws")
    parser.add_argument("--samples", type=int, default=1, help="answers per input: draws, or the best beams")
    parser.add_argument("--num_beams", type=int, default=1, help="beams of a beam search")
    parser.add_argument("--length_penalty", type=float, default=1.0, help="above 0, beam search favours long answers")
    parser.add_argument("--early_stopping", choices=sorted(_EARLY), default="false", help="when a beam search ends")
    parser.add_argument("--batch_size", type=int, default=8, help="answers, or beams, that are continued together")
    parser.add_argument("--image_size", type=int, default=0, help="pixels of an image's side; default: as in training")
    parser.add_argument("--mesh", type=config_of, default=None, help="such as fsdp=4,tensor=2; default: one device")
    parser.add_argument("--shown", type=int, default=100, help="inputs on the page")
    return parser


if __name__ == "__main__":
    main()
