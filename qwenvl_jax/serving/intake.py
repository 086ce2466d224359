"""What is asked, made ready for the engine on the thread of the one who asks: tokenised, checked, pictures decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.generation.pictures import Pictures
from qwenvl_jax.evaluation.generation.requests import Picture, Request
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.answer import Answer, Draft
from qwenvl_jax.serving.dialogue import Turns, build_prompt
from qwenvl_jax.serving.options import AnswerOptions, EngineSettings

DEFAULT_CONTEXT = 2048  # tokens, of training at full size
GUARANTEED = 4  # a prompt leaves one part in so many of the context to the answer, or all that it asks for if less


def context_of(settings: EngineSettings, positions: int) -> int:
    """Tokens of the longest prompt with its answer.

    Args:
      settings: of the engine.
      positions: of the model.

    Raises:
      UserError: if the settings ask for more than the model has.
    """
    asked = settings.context
    if asked > positions:
        raise UserError(
            f"a context of {asked:,} tokens is more than the {positions:,} positions of the model; lower it"
        )
    return asked or min(DEFAULT_CONTEXT, positions)


class Intake:
    """Makes drafts of answers. For use on several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        queries: int,
        image_size: int,
        context: int,
        max_pictures: int,
        clock: Callable[[], float],
    ):
        """Made by the engine.

        Args:
          tokenizer: of the model.
          queries: features per picture.
          image_size: pixels of an image's side.
          context: tokens of the longest prompt with its answer.
          max_pictures: the largest number of pictures of a prompt.
          clock: seconds.
        """
        self._tokenizer = tokenizer
        self._queries = queries
        self._context = context
        self._max_pictures = max_pictures
        self._clock = clock
        self._pictures = Pictures(image_size)

    def draft(self, turns: Turns, images: Sequence[bytes], options: AnswerOptions, answer: Answer) -> Draft:
        """The draft of the answer to a dialogue's last question.

        Args:
          turns: see `serving.dialogue`.
          images: encoded pictures that the turns index; those that no shown turn names are not looked at.
          options: how the answer is written.
          answer: for the one who waits.

        Raises:
          UserError: for turns or pictures that cannot be used, or a question that does not fit.
        """
        reserved = max(1, min(options.max_new_tokens, self._context // GUARANTEED))
        prompt = build_prompt(turns, self._tokenizer, self._queries, self._context - reserved)
        numbers = prompt.tokens.image_indices
        if len(numbers) > self._max_pictures:
            raise UserError(
                f"the dialogue shows {len(numbers)} pictures, but there is room for {self._max_pictures}; show fewer"
            )
        shown = [self._picture(images, number) for number in numbers]
        request = Request(0, prompt.tokens.tokens_L, prompt.tokens.image_query_L, shown, options.seed)
        return Draft(request, options, answer, self._tokenizer, prompt.forgotten, self._clock)

    def _picture(self, images: Sequence[bytes], index: int) -> Picture:
        if not 0 <= index < len(images):
            raise UserError(f"a turn shows picture {index}, but there are {len(images)}; the first one is 0")
        try:
            return self._pictures.picture(images[index], None)
        except UserError as error:
            raise UserError(f"picture {index + 1}: {error}") from None
