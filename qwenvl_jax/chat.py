"""A chat with a checkpoint in the terminal.

    python -m qwenvl_jax.chat --workdir=runs/quickstart/stage3_sft [--step=400] [--image=photo.jpg]
    python -m qwenvl_jax.chat --workdir=Qwen-VL-Chat --sampling=released

--workdir is a run, or a release, which is imported once below --imported. `--sampling=released` draws tokens
as the published Qwen-VL-Chat does; --temperature, --top_k, --top_p and --max_new_tokens change one setting each.

Commands: `/image PATH` shows a picture with the next question, `/reset` starts anew, `/quit` ends. Answers appear as
they are written, and Ctrl-C stops one. Boxes in an answer are drawn on the picture that they mean and saved as a PNG
under --boxes. Lines can also come from a pipe.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
import sys
from collections.abc import Iterable, Iterator

from absl import flags, logging
from etils import epath

from qwenvl_jax.checkpoint.starting_point import IMPORT
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.evaluation.generation.pictures import read_picture
from qwenvl_jax.html.figures import draw_boxes
from qwenvl_jax.runtime import commandline, distributed, log, storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.serving.conversation import AnswerFailed, Box, Conversation
from qwenvl_jax.serving.open_model import open_model
from qwenvl_jax.serving.options import NAMED_OPTIONS, AnswerOptions, EngineSettings
from qwenvl_jax.sharding.mesh import config_of

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the training run, preferably of stage 3, or of a release.")
_IMPORTED = flags.DEFINE_string("imported", "imported", "Folder for the imports of releases.")
_STEP = flags.DEFINE_integer("step", -1, "Step of the checkpoint; -1 is the newest.", lower_bound=-1)
_IMAGE = flags.DEFINE_multi_string("image", [], "A picture for the first question; can be repeated.")
_BOXES = flags.DEFINE_string("boxes", "chat_boxes", "Folder for PNGs with the boxes of answers.")
_MESH = flags.DEFINE_string("mesh", "", "Devices of this machine, such as fsdp=4,tensor=2; by default the first one.")
_SAMPLING = flags.DEFINE_enum("sampling", "greedy", list(NAMED_OPTIONS), "How tokens are chosen.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the most likely token, more draws one.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", None, "Draw from the tokens that make up this probability.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw from this many tokens; 0 from all.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of draws; the same seed and the same questions give the same answers.")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", None, "The largest number of tokens of an answer.", lower_bound=1)

_MAX_NEW_IF_GREEDY = 128

_TAGS = re.compile(r"</?(?:ref|box|quad)>|<\|[a-z_]+\|>")


def show(conversation: Conversation, written: str) -> None:
    """Adds the picture that a line names. If that fails, says why and goes on."""
    try:
        conversation.add_image(read_picture(written))
    except (UserError, StorageError) as error:
        _say(f"{written} is not used: {error}")
    else:
        _say(f"{written} goes with your next question")


@dataclasses.dataclass
class _Notices:
    """The notices that the user has seen.

    Attributes:
      drawn: the number of pictures that were drawn with boxes.
      forgotten: the number of forgotten questions that the last notice named.
      warned: whether the notice of a long prompt was printed.
    """

    drawn: int = 0
    forgotten: int = 0
    warned: bool = False


class _Written:
    """Prints an answer while it is written, without its tags, and without white space at its beginning and end."""

    def __init__(self) -> None:
        self._begun = False
        self._space = ""

    def add(self, text: str) -> None:
        """Prints a piece that ends within no tag."""
        text = self._space + _TAGS.sub("", text)
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if self._begun:
            print(log.printable(shown), end="", flush=True)
        elif shown:
            print(f"model: {log.printable(shown.lstrip())}", end="", flush=True)
            self._begun = True

    def end_line(self, begin: bool = False) -> None:
        """Ends the line of the answer; `begin` prints the line of an empty answer, too."""
        if self._begun or begin:
            print("" if self._begun else "model: ", flush=True)


def talk(conversation: Conversation, lines: Iterable[str | None], folder: epath.Path, train_length: int) -> None:
    """Answers every line until there are no more lines or the user quits.

    Args:
      conversation: answers the questions.
      lines: what the user types; None is a line that is not UTF-8.
      folder: where pictures with boxes are saved.
      train_length: the longest prompt of the training, in tokens; the user is warned once of a longer one.
    """
    notices = _Notices()
    for line in lines:
        if line is None:
            _say("this line is not UTF-8 and is not used")
            continue
        text = line.strip()
        command, _, rest = text.partition(" ")
        if not text:
            continue
        if command == "/quit":
            return
        if command == "/reset":
            conversation.reset()
            notices.forgotten = 0
            _say("a new conversation")
        elif command == "/image":
            if rest.strip():
                show(conversation, rest.strip())
            else:
                _say("name a file: /image PATH")
        elif command.startswith("/"):
            _say(f"{command} is not a command; the commands are /image PATH, /reset and /quit")
        else:
            _answer_question(conversation, text, folder, train_length, notices)


def _answer_question(
    conversation: Conversation, text: str, folder: epath.Path, train_length: int, notices: _Notices
) -> None:
    """Prints the answer to a question, draws its boxes, and prints what the user should know of the prompt's length."""
    written = _Written()
    try:
        answer = conversation.ask(text, written.add)
    except (UserError, AnswerFailed) as error:
        written.end_line()
        _say(f"this is not answered: {error}")
        return
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        _say("\n(stopped before the answer began; the question is forgotten)")
        return
    written.end_line(begin=True)
    if answer.stopped:
        if not sys.stdin.isatty():
            raise KeyboardInterrupt
        _say("       (stopped; the chat goes on from here)")
    for picture, boxes in answer.boxes:
        notices.drawn += 1
        _say(f"       boxes drawn in {_draw(picture, boxes, folder / f'answer_{notices.drawn:03d}.png')}")
    if answer.forgotten > notices.forgotten:
        _say(f"       (the chat is long: the first {answer.forgotten} questions are forgotten)")
        notices.forgotten = answer.forgotten
    if answer.tokens > train_length and not notices.warned:
        notices.warned = True
        _say(f"       (longer than the {train_length} tokens of its training; /reset starts anew)")


def _say(text: str) -> None:
    print(log.printable(text), flush=True)


def _draw(picture: bytes, boxes: list[Box], path: epath.Path) -> epath.Path:
    buffer = io.BytesIO()
    draw_boxes(decode_image(picture), boxes).save(buffer, format="PNG")
    storage.write_bytes(path, buffer.getvalue())
    return path


def _typed() -> Iterator[str | None]:
    """Lines from the terminal, with a prompt, or from a pipe, without one. A line that is not UTF-8 is None."""
    if not sys.stdin.isatty():
        for line in sys.stdin.buffer:
            try:
                yield line.decode()
            except UnicodeDecodeError:
                yield None
        return
    while True:
        try:
            yield input("you: ")
        except UnicodeDecodeError:
            yield None
        except (EOFError, KeyboardInterrupt):
            print()
            return


def main() -> None:
    """Loads the checkpoint and answers questions until the user leaves."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows ? for other characters
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; name the folder of a run, such as runs/quickstart/stage3_sft")
    distributed.require_alone("a chat")
    options = _options()
    mesh = config_of(_MESH.value) if _MESH.value else None
    opened = open_model(_WORKDIR.value, _STEP.value, storage.path(_IMPORTED.value), mesh=mesh)
    config = opened.starting_point.config
    patient = EngineSettings(
        slots=1, context=config.model.decoder.max_positions, wait_seconds=math.inf, answer_seconds=math.inf
    )  # fmt: skip
    with opened.engine(patient) as engine:
        conversation = Conversation(engine, options)
        _say(f"{config.model.name}, step {opened.starting_point.step} of {_WORKDIR.value}; /image PATH, /reset, /quit")
        if config.train.stage not in ("sft", IMPORT):
            _say(f"(stage {config.train.stage!r} has not learned dialogues; answers will be odd)")
        for path in _IMAGE.value:
            show(conversation, path)
        talk(conversation, _typed(), storage.path(_BOXES.value), config.data.sequence_length)


def _options() -> AnswerOptions:
    """The named options with the settings of the command line.

    Raises:
      UserError: for values out of range, or draws without a temperature.
    """
    named = NAMED_OPTIONS[_SAMPLING.value]
    most = _MAX_NEW_IF_GREEDY if _SAMPLING.value == "greedy" else named.max_new_tokens
    options = dataclasses.replace(
        named,
        max_new_tokens=most if _MAX_NEW.value is None else _MAX_NEW.value,
        temperature=named.temperature if _TEMPERATURE.value is None else _TEMPERATURE.value,
        top_k=named.top_k if _TOP_K.value is None else _TOP_K.value,
        top_p=named.top_p if _TOP_P.value is None else _TOP_P.value,
        seed=_SEED.value,
    )
    if not options.temperature and (options.top_k or options.top_p != 1):
        raise UserError("--top_k and --top_p draw tokens and need a --temperature, such as 1")
    return options


if __name__ == "__main__":
    commandline.run(main, verbosity=logging.ERROR)  # Orbax reports every file
