"""A writing reward that can be verified: finish a story, use the given words in it, keep it readable.

score = readable * ((1 - ended_weight) * share of the words used + ended_weight * story ended), in [0, 1].

Made for story models as small as stories260K (512-token vocabulary). The openings are those of its training text, told
up to the point where the trouble is over, so that little is left to tell: within 160 tokens it ends 5 percent of these
stories, but only 1 percent of those of which it gets the first sentence; with the default words it scores 0.2.
`readable` is a guard, not a measure of
quality: it sees repetition, odd characters, crammed keywords and answers too short to be a story; it doesn't see
grammar, sense, or made-up words.
"""

from __future__ import annotations

import itertools
import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, failed, scored
from rewards.settings import TaskSettings
from rewards.tasks.problems import ListedProblems

_VERSION = "keyword_story@1"

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
#: What a story's whitespace-separated pieces may be made of: letters, apostrophes and a story's punctuation, which
#: includes the curly quotes and the dash of the training text.
_PLAIN = re.compile(r"[A-Za-z'\".,!?;:()\u2018\u2019\u201c\u201d\u2013-]+")

_GIRLS = ("Lily", "Mia", "Sara", "Anna", "Lucy", "Amy")
_BOYS = ("Tim", "Max", "Ben", "Tom", "Sam", "Jack")
_KINDS = ("girl", "boy")
_ADJECTIVES = ("little", "big", "kind", "young")
_TOYS = ("ball", "doll", "toy", "car", "hat", "book")
_HELPERS = ("mom", "dad", "friend")
_PLACES = ("under a tree", "in the garden", "in the house", "near the park", "in a big box", "under the bed")
_OPENING = (
    "Once upon a time, there was a {adjective} {kind} named {name}. One day, {name} lost {his} {toy} and was sad. "
    "{His} {helper} helped {him} look, and they found the {toy} {place}."
)


class KeywordStoryOptions(BaseModel):
    """`task.options` of a keyword_story."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...] = Field(("happy", "help", "friends", "together"), min_length=1)
    ended_weight: float = Field(0.2, ge=0, le=1, description="share of the score for ending within the token budget")
    min_words: int = Field(25, gt=0, description="answers shorter than this lose readability in proportion")
    max_uses: int = Field(3, gt=0, description="uses of one keyword beyond which it counts as spam")


class KeywordStoryTask:
    """Stories with given words; implements `rewards.contracts.task.Task`."""

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float = 5.0, num_workers: int = 0) -> None:
        try:
            self._options = KeywordStoryOptions.model_validate(settings.options)
        except ValidationError as error:
            raise TaskError(f"task.options of keyword_story: {error}") from error
        if wrong := [word for word in self._options.words if not _WORD.fullmatch(word)]:
            raise TaskError(f"task.options.words of keyword_story: {wrong} are not single words of letters")
        self._words = tuple(dict.fromkeys(word.lower() for word in self._options.words))
        self._problems = ListedProblems(
            [Problem(index, question, "", {}) for index, question in enumerate(openings())],
            seed=seed,
            holdout_percent=settings.holdout_percent,
            origin="keyword_story",
        )

    @property
    def version(self) -> str:
        return _VERSION

    def problem(self, split: Split, index: int) -> Problem:
        return self._problems.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._problems.num_distinct(split)

    def target(self, problem: Problem) -> str:
        raise TaskError(
            "keyword_story has no reference answers to imitate; drop [warm_start] and name a trained "
            "model in model.path, or choose another task"
        )

    def score(self, request: RewardRequest) -> RewardResult:
        try:
            return self._score(request.response, request.finish_reason)
        except Exception as error:  # noqa: BLE001  (isolation: a bug met on one answer must not end the rollouts)
            return failed(f"{_VERSION}: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Nothing to end."""

    def _score(self, response: str, finish_reason: str) -> RewardResult:
        options = self._options
        found = [match.lower() for match in _WORD.findall(response)]
        missing = tuple(word for word in self._words if word not in found)
        used = 1 - len(missing) / len(self._words)
        readable = readability(response, self._words, min_words=options.min_words, max_uses=options.max_uses)
        ended = float(finish_reason == "stop")
        score = readable * ((1 - options.ended_weight) * used + options.ended_weight * ended)
        reasons = tuple(f"word {word!r} is missing" for word in missing)
        reasons += () if ended else ("the story doesn't end within the token budget",)
        reasons += () if readable == 1 else (f"readability {readable:.2f}",)
        return scored(score, {"words": used, "ended": ended, "readable": readable}, reasons=reasons)


def openings() -> list[str]:
    """Every story opening, in a fixed order."""
    texts = []
    for kind, adjective, toy, helper, place in itertools.product(_KINDS, _ADJECTIVES, _TOYS, _HELPERS, _PLACES):
        girl = kind == "girl"
        his, him, names = ("her", "her", _GIRLS) if girl else ("his", "him", _BOYS)
        fields = {"kind": kind, "adjective": adjective, "toy": toy, "helper": helper, "place": place}
        texts += [_OPENING.format(name=name, his=his, His=his.capitalize(), him=him, **fields) for name in names]
    return texts


def readability(text: str, keywords: tuple[str, ...], *, min_words: int, max_uses: int) -> float:
    """Product of guards, each in [0, 1] and 1 for ordinary story text; `keywords` are lower case.

    The bounds are such that about 1 in 200 answers that stories260K samples at temperature 1 loses anything; its
    share of repeated trigrams, for one, is below 0.09 in 99.9 percent of them.
    """
    words = [match.lower() for match in _WORD.findall(text)]
    pieces = text.split()
    if not words:
        return 0.0
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
    odd = sum(_PLAIN.fullmatch(piece) is None for piece in pieces) / len(pieces)
    is_keyword = [word in keywords for word in words]
    density = sum(is_keyword) / len(words)
    adjacent = sum(a and b for a, b in itertools.pairwise(is_keyword))
    spam = sum(max(0, words.count(keyword) - max_uses) for keyword in keywords)
    return (
        min(1.0, len(words) / min_words)
        * _falling(repeated, start=0.10, end=0.30)
        * _falling(odd, start=0.05, end=0.25)
        * _falling(density, start=0.20, end=0.40)
        * _falling(adjacent, start=1, end=4)
        * _falling(spam, start=0, end=4)
    )


def _falling(value: float, *, start: float, end: float) -> float:
    """1 up to `start`, falling in a straight line to 0 at `end`."""
    return min(1.0, max(0.0, (end - value) / (end - start)))
