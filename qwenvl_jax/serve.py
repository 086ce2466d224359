"""Serves a model over HTTP, as OpenAI's API and as a page for the browser.

    python -m qwenvl_jax.serve --workdir=runs/quickstart/stage3_sft --page

The page is then at http://127.0.0.1:8000, the API below /v1. Other machines reach it with --host=0.0.0.0 and a key,
which is in the file of --key_file or in the variable QWENVL_API_KEY. After SIGTERM it takes no more questions, and ends
after the last answer.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import logging

from qwenvl_jax.checkpoint.starting_point import IMPORT, StartingPoint
from qwenvl_jax.runtime import commandline, distributed, log, retries, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.open_model import open_model
from qwenvl_jax.serving.options import NAMED_OPTIONS, EngineSettings
from qwenvl_jax.sharding.mesh import config_of

if TYPE_CHECKING:
    from qwenvl_jax.serving.api import ApiSettings

KEY_VARIABLE = "QWENVL_API_KEY"
_SHORTEST_KEY = 16  # characters; `openssl rand -hex 32` makes 64
_EXTRA = ("fastapi", "uvicorn", "prometheus_client", "httpcore")
_SPARE_OPEN = 8  # questions that are read while all slots and places in the queue are taken
_SPARE_SECONDS = 60.0  # for reading a question and sending its answer


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and serves."""
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file
    with exit_on_user_error():
        retries.patience()
        args = _parser().parse_args(argv)
        if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
            raise UserError(f"{', '.join(missing)} is not installed; pip install -r requirements-serve.txt")
        distributed.require_alone("serving")
        if not serve(args):
            commandline.leave(0)


def serve(args: argparse.Namespace) -> bool:
    """Serves until a signal ends it; see `Server.run_to_the_end` for what is returned.

    Raises:
      UserError: for values that cannot be used, or a model that cannot be loaded.
    """
    from qwenvl_jax.serving.api import Service
    from qwenvl_jax.serving.server import Server, listen

    engine_settings = _engine_settings(args)
    opened = open_model(args.workdir, args.step, storage.path(args.imported), mesh=args.mesh)
    listener = listen(args.host, args.port)
    settings = _api_settings(args, opened.starting_point, is_local=listener.is_local)
    stage = opened.starting_point.config.train.stage
    greeting = _greeting(settings, listener.url, stage, is_local=listener.is_local)

    def load() -> Engine:
        engine = opened.engine(engine_settings)
        engine.warm_up(log.line, all_widths=args.all_widths)
        engine.start()
        return engine

    return Server(Service(settings), listener, load, args.drain_seconds, greeting).run_to_the_end()


def _greeting(settings: ApiSettings, url: str, stage: str, *, is_local: bool) -> list[str]:
    """The first lines of the log: where it listens, and what may surprise."""
    lines = [f"{settings.description}: {url}{'' if settings.has_page else '/v1'}"]
    if not settings.keys and not is_local:
        lines.append(f"warning: whoever reaches {url} may ask, because there is no key; give --key_file")
    if stage not in ("sft", IMPORT):
        lines.append(f"warning: stage {stage!r} has not learned dialogues; answers will be odd")
    return lines


def _api_settings(args: argparse.Namespace, start: StartingPoint, *, is_local: bool) -> ApiSettings:
    from qwenvl_jax.serving.api import ApiSettings
    from qwenvl_jax.serving.examples import examples_of
    from qwenvl_jax.serving.pictures import PictureSettings
    from qwenvl_jax.serving.web_pictures import FetchSettings

    if args.max_pictures < 1 or args.max_picture_mib < 1 or args.max_body_mib < 1:
        raise UserError("--max_pictures, --max_picture_mib and --max_body_mib must be at least 1")
    if args.images_under and not os.path.isdir(args.images_under):
        raise UserError(f"--images_under={args.images_under} is no folder of this machine; name one")
    keys = _keys(args.key_file)
    max_bytes = args.max_picture_mib << 20
    networks = tuple(_network(text) for text in args.fetch_from)
    fetch = FetchSettings(max_bytes, also=networks, public=args.fetch_images) if args.fetch_images or networks else None
    name = args.name or start.config.model.name
    return ApiSettings(
        name,
        f"{name}, step {start.step}" if start.stage != IMPORT else name,
        PictureSettings(args.max_pictures, max_bytes, args.images_under or None, fetch),
        keys,
        local_names_only=is_local and not keys,
        defaults=NAMED_OPTIONS[args.sampling],
        has_page=args.page,
        examples=examples_of(start.config) if args.page else (),
        max_body_bytes=args.max_body_mib << 20,
        max_open=args.slots + args.waiting + _SPARE_OPEN,
        max_seconds=args.wait_seconds + args.answer_seconds + _SPARE_SECONDS,
    )


def _engine_settings(args: argparse.Namespace) -> EngineSettings:
    if not args.drain_seconds >= 0:
        raise UserError(f"--drain_seconds={args.drain_seconds:g} must be 0 or more")
    stored = max(EngineSettings().stored_pictures, args.max_pictures)
    return EngineSettings(
        args.slots, args.context, args.waiting, args.wait_seconds, args.answer_seconds, stored_pictures=stored
    )


def _keys(key_file: str) -> tuple[bytes, ...]:
    """The keys of the file, one per line, or the one of the environment.

    Raises:
      UserError: if the file has none, or one is short or not of visible ASCII. The message contains no key.
    """
    if key_file:
        try:
            content = storage.read_bytes(storage.path(key_file))
        except FileNotFoundError:
            raise UserError(f"{key_file} does not exist; correct --key_file") from None
        name = key_file
    elif KEY_VARIABLE in os.environ:
        content = os.fsencode(os.environ[KEY_VARIABLE])
        name = KEY_VARIABLE
    else:
        return ()
    keys = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not keys:
        raise UserError(f"{name} has no key; write one, such as that of `openssl rand -hex 32`")
    if any(len(key) < _SHORTEST_KEY or not all(33 <= sign <= 126 for sign in key) for key in keys):
        raise UserError(f"a key of {name} is too short, or not of visible ASCII; use that of `openssl rand -hex 32`")
    return keys


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise UserError(f"--fetch_from={text} is no network; write one such as 10.1.0.0/16") from None


def _parser() -> Parser:
    engine = EngineSettings()
    parser = Parser("python -m qwenvl_jax.serve", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the training run, or of a release")
    parser.add_argument("--step", type=int, default=-1, help="of the checkpoint; -1 is the newest")
    parser.add_argument("--imported", default="imported", help="folder for the imports of releases")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all networks")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--page", action="store_true", help="serve the chat page as well")
    parser.add_argument("--name", default="", help="of the model in the API; default: that of its config")
    parser.add_argument("--key_file", default="", help="file with a key per line, one of which a request must bring")
    parser.add_argument("--images_under", default="", help="folder whose pictures a request may name by path")
    parser.add_argument("--fetch_images", action="store_true", help="fetch pictures from the public web")
    parser.add_argument(
        "--fetch_from", action="append", default=[], help="network that may be fetched from although it is not public"
    )
    parser.add_argument("--max_pictures", type=int, default=16, help="pictures of a request")
    parser.add_argument("--max_picture_mib", type=int, default=20, help="MiB of an encoded picture")
    parser.add_argument("--max_body_mib", type=int, default=32, help="MiB of a request")
    parser.add_argument(
        "--sampling",
        choices=list(NAMED_OPTIONS),
        default="greedy",
        help="how tokens are chosen by default",
    )
    parser.add_argument("--all_widths", action="store_true", help="compile for prompts of all lengths first")
    parser.add_argument("--slots", type=int, default=engine.slots, help="answers that are written at once")
    parser.add_argument("--context", type=int, default=engine.context, help="tokens of a prompt and its answer")
    parser.add_argument("--waiting", type=int, default=engine.waiting, help="questions that wait for a slot")
    parser.add_argument("--wait_seconds", type=float, default=engine.wait_seconds, help="for a slot, at most")
    parser.add_argument("--answer_seconds", type=float, default=engine.answer_seconds, help="of an answer, at most")
    parser.add_argument("--drain_seconds", type=float, default=30.0, help="for answers in progress after SIGTERM")
    parser.add_argument("--mesh", type=config_of, default=None, help="such as fsdp=4,tensor=2; default: one device")
    return parser


if __name__ == "__main__":
    main()
