"""Short messages that a chat model is asked to write, of which a verifier sees whether they say and end as asked.

score = 0.8 * share of the wanted words that the message has + 0.2 if it ends by itself, in [0, 1]. It is work for a
benchmark, with prompts of many lengths: it sees neither sense nor style, and a list of the words gets the full score.
"""

from __future__ import annotations

import random
import re

from rewards.contracts import Problem, RewardRequest, RewardResult, Split, TaskError, scored
from rewards.settings import TaskSettings
from rewards.tasks import GeneratedProblems

_ENDED = 0.2
_NUM_WORDS, _MAX_FACTS = 3, 8
_WORD = re.compile(r"[a-z]+")

_KINDS = ("a thank-you note", "an invitation", "a birthday card", "a postcard", "an apology", "a reminder")
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Ida", "Jonas", "Kate", "Leo")
_FACTS = (
    "The garden is full of red and yellow tulips this week.",
    "We met on the train to the sea last summer.",
    "The old bakery at the corner opens at seven.",
    "It has rained for three days without a break.",
    "Her brother plays the violin in the town orchestra.",
    "The library closes early on Fridays.",
    "There will be soup, bread and a large apple pie.",
    "The bus stops right in front of the house.",
    "His dog ran away and came back the same evening.",
    "The lake is still too cold for swimming.",
    "Two of the neighbours are away until Monday.",
    "The new bicycle has a blue frame and a bell.",
)
_WORDS = (
    *("happy", "garden", "music", "weekend", "coffee", "friend", "letter", "window", "summer", "kitchen"),
    *("together", "morning", "picture", "evening", "bridge", "market", "story", "river", "present", "candle"),
)


class ChatTask:
    """Messages with given words; implements `rewards.contracts.Task`."""

    version = "bench_chat@1"

    def __init__(self, settings: TaskSettings, *, seed: int, deadline_s: float, num_workers: int) -> None:
        self._seed = seed
        self._problems = GeneratedProblems(
            self._generate,
            num_problems=settings.num_problems,
            holdout_percent=settings.holdout_percent,
            origin="the chat workload",
        )

    def problem(self, split: Split, index: int) -> Problem:
        return self._problems.problem(split, index)

    def num_distinct(self, split: Split) -> int | None:
        return self._problems.num_distinct(split)

    def target(self, problem: Problem) -> str:
        raise TaskError("the chat workload has no reference answers to imitate; drop [warm_start]")

    def score(self, request: RewardRequest) -> RewardResult:
        said = set(_WORD.findall(request.response.lower()))
        wanted = request.problem.metadata["words"]
        used = sum(word in said for word in wanted) / len(wanted)
        ended = float(request.finish_reason == "stop")
        return scored((1 - _ENDED) * used + _ENDED * ended, {"words": used, "ended": ended})

    def close(self) -> None:
        """Nothing to end."""

    def _generate(self, index: int) -> Problem:
        rng = random.Random(f"{self._seed} {index}")
        words = rng.sample(_WORDS, _NUM_WORDS)
        facts = rng.sample(_FACTS, rng.randint(0, _MAX_FACTS))
        asked = f"Write {rng.choice(_KINDS)} to {rng.choice(_NAMES)} in one or two short sentences."
        ending = f"Use the words {', '.join(words[:-1])} and {words[-1]}."
        return Problem(index, " ".join([asked, *facts, ending]), "", {"words": words})
