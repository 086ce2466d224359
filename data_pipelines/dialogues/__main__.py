"""Builds the dialogue set of supervised fine-tuning from record folders of annotated pictures, exactly once.

    python -m data_pipelines.dialogues --records=FOLDER[,FOLDER] --output=FOLDER [--text=FOLDER] [--count=350000]
        [--seed=0] [--endpoint=https://HOST/v1 --model=NAME --key_variable=OPENAI_API_KEY] [--help]

A run that was ended in any way continues when the same command is started again. See docs/dialogues.md.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence

from data_pipelines.dialogues.concatenation import weights_of
from data_pipelines.dialogues.job import TEXT_TASKS, DialogueJob, EndpointSettings, record_folders
from data_pipelines.dialogues.picture import TASKS
from qwenvl_jax.data.record_format import MANIFEST
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.endpoint import checked_url, key_of
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

_LAYOUTS = {"qwen_vl": "qwen_vl_dialogues", "llava": "llava"}


def _parser() -> Parser:
    parser = Parser("python -m data_pipelines.dialogues", __doc__)
    add = parser.add_argument
    add("--records", help="record folders of annotated pictures, or outputs of data_pipelines; joined by commas")
    add("--text", default="", help="record folders or folders of JSON with dialogues without pictures")
    add("--text_format", default="qwen_vl", choices=sorted(_LAYOUTS), help="layout of the JSON files; default qwen_vl")
    add("--output", help="record folder to write, on a disk or gs://")
    add("--split", default="train", help="split of the inputs; default train")
    add("--count", type=int, default=0, help="number of dialogues; default: as many as the pictures allow")
    add("--seed", type=int, default=0, help="seed of all random choices; default 0")
    add("--text_share", type=float, default=0.3, help="share of dialogues without a picture; default 0.3")
    add("--passes", type=int, default=1, help="how many dialogues a picture may be in; default 1")
    add("--weights", default="", help="weights of the kinds of exchange, such as where=3,count=0")
    add("--dialogues_per_shard", type=int, default=2000, help="dialogues in a shard; default 2000")
    add("--workers", type=int, default=0, help="processes; default: one per core, at most 4")
    ask = parser.add_argument_group("language model").add_argument
    ask("--endpoint", default="", help="URL of an OpenAI-compatible endpoint, up to and with /v1")
    ask("--model", default="", help="name of the model at the endpoint")
    ask("--key_variable", default="", help="environment variable with the key; default: no key is sent")
    ask(
        "--self_instruction",
        type=float,
        default=0.3,
        help="share of dialogues about pictures that it writes; default 0.3",
    )
    ask("--replies", default="", help="folder of the stored replies; default OUTPUT-replies")
    for name, default, text in (
        ("temperature", 0.7, "temperature of sampling"),
        ("timeout", 120.0, "seconds to wait for a reply"),
        ("backoff", 1.0, "seconds before the first retry, doubled for each further one"),
        ("requests_per_minute", 0.0, "limit of requests, 0: no limit"),
        ("tokens_per_minute", 0.0, "limit of tokens, 0: no limit"),
        ("input_price", 0.0, "price of a million input tokens"),
        ("output_price", 0.0, "price of a million output tokens"),
        ("budget", 0.0, "limit of the cost of all replies, earlier runs included, 0: no limit"),
    ):
        ask(f"--{name}", type=float, default=default, help=f"{text}; default {default:g}")
    for number, count, text in (
        ("max_tokens", 1024, "tokens of a reply at most"),
        ("tries", 3, "replies per picture at most, until one is good"),
        ("retries", 6, "retries of a request that is not answered"),
        ("concurrency", 4, "requests at the same time"),
    ):
        ask(f"--{number}", type=int, default=count, help=f"{text}; default {count}")
    return parser


def _check(flags: argparse.Namespace) -> None:
    for name in ("records", "output"):
        if not getattr(flags, name):
            raise UserError(f"--{name} is missing; name a folder on a disk or gs://")
    for name in ("count", "workers", "retries"):
        if getattr(flags, name) < 0:
            raise UserError(f"--{name} must be 0 or more")
    for name in ("passes", "dialogues_per_shard", "max_tokens", "tries", "concurrency"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be 1 or more")
    for name in ("temperature", "requests_per_minute", "tokens_per_minute", "input_price", "output_price", "budget"):
        if not 0 <= getattr(flags, name) < math.inf:
            raise UserError(f"--{name} must be a number of 0 or more")
    for name in ("timeout", "backoff"):
        if not 0 < getattr(flags, name) < math.inf:
            raise UserError(f"--{name} must be more than 0 seconds")
    if not 0 <= flags.text_share < 1 or not 0 <= flags.self_instruction <= 1:
        raise UserError("--text_share must be from 0 to below 1, and --self_instruction from 0 to 1")
    if flags.budget and not (flags.input_price or flags.output_price):
        raise UserError("--budget needs --input_price and --output_price, in the same currency per million tokens")
    if bool(flags.endpoint) != bool(flags.model):
        raise UserError("--endpoint and --model belong together; give both or neither")


def _endpoint(flags: argparse.Namespace) -> EndpointSettings | None:
    if not flags.endpoint:
        return None
    names = EndpointSettings.__dataclass_fields__.keys() - {"url"}
    settings = EndpointSettings(url=flags.endpoint, **{name: getattr(flags, name) for name in names})
    checked_url(settings.url, bool(key_of(settings.key_variable)))
    return settings


def _folders(text: str) -> list[str]:
    return [os.fspath(storage.absolute(folder)) for folder in filter(None, text.split(","))]


def _texts(flags: argparse.Namespace, output: str) -> tuple[str, ...]:
    """Record folders of the texts; JSON is first written into one, next to the output."""
    from data_pipelines.dialogues.texts import staged

    folders: list[str] = []
    for folder in _folders(flags.text):
        if storage.exists(storage.path(folder) / MANIFEST):
            folders += record_folders(folder, flags.split, TEXT_TASKS)
        else:
            target = storage.path(f"{output}-texts")
            folders.append(staged(folder, _LAYOUTS[flags.text_format], flags.split, target))
    return tuple(folders)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one sentence on a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    with exit_on_user_error():
        flags, beam_flags = _parser().parse_known_args(argv)
        _check(flags)
        weights = weights_of(flags.weights)
        endpoint = _endpoint(flags)
        logging.disable(logging.WARNING)  # Beam's import warns about cloud clients that nothing here needs
        from data_pipelines import beam
        from data_pipelines.build.job import code_digest
        from data_pipelines.dialogues.build import build

        logging.disable(logging.NOTSET)
        workers = flags.workers or min(4, os.cpu_count() or 1)
        options = beam.options(beam_flags, workers, [f"--{name}" for name in vars(flags)])
        output = os.fspath(artifacts.output_folder(flags.output))
        texts = _texts(flags, output) if flags.text_share else ()
        records = [name for folder in _folders(flags.records) for name in record_folders(folder, flags.split, TASKS)]
        job = DialogueJob(
            records=tuple(dict.fromkeys(records)),
            texts=tuple(dict.fromkeys(texts)),
            output=output,
            count=flags.count,
            seed=flags.seed,
            text_share=flags.text_share if texts else 0.0,
            self_instruction=flags.self_instruction if endpoint else 0.0,
            passes=flags.passes,
            weights=weights,
            split=flags.split,
            dialogues_per_shard=flags.dialogues_per_shard,
            code=code_digest(),
            replies=os.fspath(storage.absolute(flags.replies or f"{output}-replies")),
            endpoint=endpoint,
        )
        build(job, options)


if __name__ == "__main__":
    main()
