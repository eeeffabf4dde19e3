"""A small policy that acts by text: it searches for a word, answers with a number that it was shown, or abstains.

At every turn it chooses among the acts that what it has seen allows. It knows words only by what can be seen of them:
whether one is a name, whether a sentence has words of the question. So what it learns holds for names it never saw.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_KINDS = ("search", "answer", "guess", "abstain")
_SEEN = ("has searched", "is a name", "of the river asked", "of the fact asked", "cites")
NUM_FEATURES = len(_KINDS) + len(_SEEN)
HIDDEN = 32
_RESULT = re.compile(r"^\[(?P<id>[^\]]+)\] (?P<title>\w+): (?P<text>.*)$", re.M)
#: letters of a word that may be searched for
_SHORTEST = 4
#: a number that a policy may say that has seen none
_GUESS = "500"

Params = dict[str, np.ndarray]


@dataclass(frozen=True)
class Act:
    """One thing that the policy may say.

    Attributes:
      features: what the policy knows of it, float32 [NUM_FEATURES].
    """

    kind: str
    text: str
    features: np.ndarray


@dataclass(frozen=True)
class _Sentence:
    """One sentence of a document that was shown."""

    document: str
    title: str
    text: str


@lru_cache(maxsize=10_000)
def acts(question: str, shown: tuple[str, ...]) -> tuple[Act, ...]:
    """All acts of a turn.

    Args:
      shown: results of the searches so far.
    """
    words = re.findall(r"\w+", question)
    names = {word for word in words[1:] if word[0].isupper()}
    facts = {word for word in words if word not in names}
    sentences = list(_sentences(shown))
    searched = bool(shown)
    found = [
        _act("search", call(word), searched, word in names) for word in dict.fromkeys(words) if len(word) >= _SHORTEST
    ]
    for sentence in sentences:
        of_river, of_fact = sentence.title in names, bool(facts & set(re.findall(r"[a-z]+", sentence.text)))
        for number in re.findall(r"\d+", sentence.text):
            found.append(_act("answer", number, searched, False, of_river, of_fact))
            found.append(_act("answer", f"{number} [{sentence.document}]", searched, False, of_river, of_fact, True))
    at_hand = [s for s in sentences if s.title in names and re.search(r"\d", s.text)]
    has_fact = any(facts & set(re.findall(r"[a-z]+", s.text)) for s in at_hand)
    found.append(_act("guess", _GUESS, searched))
    found.append(_act("abstain", "I don't know.", searched, False, bool(at_hand), has_fact))
    return tuple(found)


def call(query: str) -> str:
    """A search as the tool's calls are written."""
    return f"<tool_call>{json.dumps({'name': 'search', 'arguments': {'query': query}})}</tool_call>"


def _act(kind: str, text: str, *seen: bool) -> Act:
    one_hot = [float(kind == each) for each in _KINDS]
    told = [float(value) for value in seen] + [0.0] * (len(_SEEN) - len(seen))
    return Act(kind, text, np.array(one_hot + told, np.float32))


def _sentences(shown: Sequence[str]) -> Iterator[_Sentence]:
    for result in shown:
        for match in _RESULT.finditer(result):
            for text in match["text"].split(". "):
                yield _Sentence(match["id"], match["title"], text)


def start(seed: int) -> Params:
    """Weights of a policy that prefers nothing yet."""
    rng = np.random.default_rng(seed)
    return {
        "in": (rng.standard_normal((NUM_FEATURES, HIDDEN)) / np.sqrt(3)).astype(np.float32),
        "out": (rng.standard_normal(HIDDEN) * 0.01).astype(np.float32),
    }


def choose(params: Params, possible: Sequence[Act], rng: np.random.Generator) -> int:
    """The index of an act, drawn by the policy's probabilities."""
    logits = np.tanh(np.stack([act.features for act in possible]) @ params["in"]) @ params["out"]
    weights = np.exp(logits - logits.max())
    return int(rng.choice(len(possible), p=weights / weights.sum()))
