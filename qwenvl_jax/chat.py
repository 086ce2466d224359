"""Talks to a checkpoint in the terminal.

    python -m qwenvl_jax.chat --workdir=runs/quickstart/stage3_sft [--image=photo.jpg]

Commands: `/image PATH` shows a picture with the next question, `/reset` starts anew, `/quit` ends. Boxes in an answer
are drawn on the picture shown last, into a PNG under --boxes. Lines can also come from a pipe.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from absl import flags, logging
from etils import epath

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.data.image import decode_image
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.evaluation.conversation import Answer, Conversation
from qwenvl_jax.evaluation.report.pictures import draw_boxes
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the training run, best of stage 3.")
_IMAGE = flags.DEFINE_multi_string("image", [], "A picture for the first question; may be repeated.")
_BOXES = flags.DEFINE_string("boxes", "chat_boxes", "Folder for PNGs with the boxes of answers.")
_MAX_NEW = flags.DEFINE_integer("max_new", 128, "Tokens of an answer at most.", lower_bound=1)

_TAGS = re.compile(r"</?(?:ref|box|quad)>|<\|[a-z_]+\|>")


def show(conversation: Conversation, path: str) -> None:
    """Adds the picture at `path`; says what is wrong with one that is not, and goes on."""
    try:
        conversation.add_image(epath.Path(path).expanduser().read_bytes())
    except (OSError, UserError) as error:
        print(f"{path} is not used: {getattr(error, 'strerror', None) or error}", flush=True)
    else:
        print(f"{path} goes with your next question", flush=True)


def talk(conversation: Conversation, lines: Iterable[str], folder: epath.Path, train_length: int) -> None:
    """Answers every line until the lines or the user end it."""
    drawn, warned = 0, False
    for line in lines:
        text = line.strip()
        command, _, rest = text.partition(" ")
        if not text:
            continue
        if command == "/quit":
            return
        if command == "/reset":
            conversation.reset()
            print("a new conversation", flush=True)
        elif command == "/image":
            show(conversation, rest.strip()) if rest.strip() else print("say which: /image PATH", flush=True)
        elif command.startswith("/"):
            print(f"{command} is no command; there are /image PATH, /reset and /quit", flush=True)
        else:
            answer = conversation.ask(text)
            print(f"model: {_TAGS.sub('', answer.text).strip()}", flush=True)
            if answer.boxes and answer.image is not None:
                drawn += 1
                print(f"       boxes drawn in {_draw(answer, folder / f'answer_{drawn:03d}.png')}", flush=True)
            if answer.tokens > train_length and not warned:
                warned = True
                print(
                    f"       (longer than the {train_length} tokens it was trained on; /reset starts anew)", flush=True
                )


def _draw(answer: Answer, path: epath.Path) -> epath.Path:
    assert answer.image is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        draw_boxes(decode_image(answer.image), answer.boxes).save(file, format="PNG")
    return path


def _typed() -> Iterator[str]:
    """Lines of the terminal with a prompt, or of a pipe without."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    try:
        while True:
            yield input("you: ")
    except (EOFError, KeyboardInterrupt):
        print()


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    logging.set_verbosity(logging.ERROR)  # the checkpoint library reports every file
    with exit_on_user_error():
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
        if not _WORKDIR.value:
            raise UserError("--workdir is missing; name the folder of a run, such as runs/quickstart/stage3_sft")
        params, config, step = restore.load_params(_WORKDIR.value)
        conversation = Conversation(params, config, load_tokenizer(config.tokenizer), max_new=_MAX_NEW.value)
        print(f"{config.model.name}, step {step} of {_WORKDIR.value}; /image PATH, /reset, /quit", flush=True)
        if config.train.stage not in ("sft", restore.IMPORT):
            print(f"(stage {config.train.stage!r} has not learned dialogues; answers will be odd)", flush=True)
        for path in _IMAGE.value:
            show(conversation, path)
        talk(conversation, _typed(), epath.Path(_BOXES.value), config.data.sequence_length)


if __name__ == "__main__":
    commandline.run(main)
