"""Prompts that begin alike, such as those of an examination, whose questions follow the same exemplars.

Their first tokens are computed once, and every prompt then computes only its own. Scores change by rounding alone,
because the keys and values of a token depend on no later token.

Shape suffix: L prompt tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qwenvl_jax.evaluation.generation.requests import Request

LEAST_SHARED = 64  # tokens; fewer are not worth a pass of their own


class Choice(NamedTuple):
    """A prompt, and the token ids of each option."""

    request: Request
    options: Sequence[Sequence[int]]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest option."""
        return len(self.request.tokens_L) + max(map(len, self.options))


class Group(NamedTuple):
    """Neighbouring choices that are scored together.

    Attributes:
      choices: in their order.
      shared: tokens with which all prompts begin; the last token of a prompt is never among them.
      longest: tokens of the longest prompt with an option.
    """

    choices: tuple[Choice, ...]
    shared: int
    longest: int


@dataclasses.dataclass(frozen=True)
class PrefixSharing:
    """How prompts share their first tokens.

    Attributes:
      rows: prompts of a pass. A pass of fewer prompts costs the same.
      limit: tokens of the longest prompt with an option that shares its first tokens.
      queries: features of a picture.
    """

    rows: int
    limit: int
    queries: int

    def groups(self, choices: Iterable[Choice]) -> Iterator[Group]:
        """Neighbouring choices in groups of at most `rows`; one with fewer ends where its prefix ends, if that pays.

        The prefix of a group of one is the one that it shares with the next choice. Groups whose prefix is not worth a
        pass share 0 tokens.
        """
        group: Group | None = None
        for choice in choices:
            if group is None:
                group = _alone(choice)
                continue
            together = self._joined(group, choice)
            if len(group.choices) < self.rows and (not self._pays(group) or self._pays(together)):
                group = together
                continue
            yield self._checked(group._replace(shared=together.shared) if len(group.choices) == 1 else group)
            group = _alone(choice)
        if group is not None:
            yield self._checked(group if len(group.choices) > 1 else group._replace(shared=0))

    def common(self, one: Request, other: Request) -> int:
        """With how many equal tokens two prompts begin, pictures included; without the last token of either."""
        length = max(min(len(one.tokens_L), len(other.tokens_L)) - 1, 0)
        differ_L = one.tokens_L[:length] != other.tokens_L[:length]
        differ_L |= one.image_query_L[:length] != other.image_query_L[:length]
        keys = [(picture.key, another.key) for picture, another in zip(one.pictures, other.pictures, strict=False)]
        for number, (key, another) in enumerate(keys):
            if key != another:
                differ_L |= one.image_query_L[:length] >= number * self.queries
                break
        return int(np.argmax(differ_L)) if differ_L.any() else length

    def part(self, request: Request, start: int, end: int | None = None) -> Request:
        """Some tokens of a prompt, with the pictures that they show."""
        query_L = request.image_query_L[start:end]
        pictures = request.pictures
        if (query_L >= 0).any():
            first = int(query_L[query_L >= 0].min()) // self.queries
            pictures = pictures[first : int(query_L.max()) // self.queries + 1]
            query_L = np.where(query_L >= 0, query_L - first * self.queries, -1)
        else:
            pictures = ()
        return request._replace(tokens_L=request.tokens_L[start:end], image_query_L=query_L, pictures=pictures)

    def _joined(self, group: Group, choice: Choice) -> Group:
        shared = min(group.shared, self.common(group.choices[0].request, choice.request))
        return Group((*group.choices, choice), shared, max(group.longest, choice.longest))

    def _pays(self, group: Group) -> bool:
        """Whether a pass for these prompts alone computes fewer tokens than they have together."""
        computed = group.shared + self.rows * (group.longest - group.shared)
        return self._worth(group) and computed <= len(group.choices) * group.longest

    def _worth(self, group: Group) -> bool:
        return group.shared >= LEAST_SHARED and group.longest <= self.limit

    def _checked(self, group: Group) -> Group:
        return group if self._worth(group) else group._replace(shared=0)


def _alone(choice: Choice) -> Group:
    return Group((choice,), max(len(choice.request.tokens_L) - 1, 0), choice.longest)
