"""Short requests with one or two instructions that a verifier can check, named as in IFEval (arXiv 2311.07911).

Requests and instructions are drawn apart, so that a held-out prompt has parts that were seen in training, put together
in a way that was not. Beside what is asked for, each row has conditions that any useful answer meets: it has some
words, has to do with the request, and doesn't talk about its instructions. Without them an answer is paid for that
keeps an instruction and says nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Ida", "Jonas", "Kate", "Leo", "Mia")
_OCCASIONS = (
    "a birthday",
    "a new job",
    "a new house",
    "a good exam",
    "a first marathon",
    "a long journey",
    "a wedding",
)
_SUBJECTS = (
    *(
        "the moon",
        "bread",
        "bees",
        "bicycles",
        "rain",
        "the sea",
        "trees",
        "chess",
        "coffee",
        "music",
        "winter",
        "dogs",
    ),
    *("volcanoes", "bridges", "libraries", "tea", "football", "horses", "rivers", "the sun", "trains", "gardens"),
    *("snow", "apples", "clocks", "maps", "the piano", "honey", "deserts", "penguins", "painting", "mountains"),
)
_AIMS = (
    *(
        "sleep better",
        "learn a language",
        "save water",
        "read more books",
        "keep a garden",
        "cook at home",
        "stay calm",
    ),
    *(
        "make new friends",
        "wake up early",
        "train a puppy",
        "plan a trip",
        "save money",
        "learn the guitar",
        "run faster",
    ),
    *("write a letter", "keep a room tidy", "grow tomatoes", "take better photos", "eat healthy food"),
)
#: the word of an aim that an answer to the point has; for others the last one
_POINTS = {"sleep better": "sleep", "cook at home": "cook", "wake up early": "wake", "keep a room tidy": "room"}
_POINTS |= {"run faster": "run", "take better photos": "photo", "make new friends": "friend", "read more books": "book"}
_POINTS |= {"grow tomatoes": "tomato"}
#: words of the instructions, which no answer needs
_ABOUT_INSTRUCTIONS = (
    *("words", "comma", "commas", "sentence", "sentences", "letters", "quotation", "title", "bracket", "brackets"),
    *("bullet", "bullets", "postscript", "asterisk", "asterisks", "phrase", "highlight", "subject"),
)
_LEAST_WORDS = 10
_ENDINGS = ("That is all.", "Have a nice day.", "I hope this helps.", "Let me know.", "Thank you for reading.")
_WORDS = (
    *("happy", "morning", "friend", "water", "light", "small", "quiet", "green", "warm", "family", "night", "simple"),
    *("strong", "summer", "together", "always", "beautiful", "music", "home", "gentle", "bright", "world", "story"),
)

Drawn = tuple[str, Mapping[str, Any]]


def _no_comma(rng: random.Random, subject: str) -> Drawn:
    return "Do not use any commas.", {}


def _lowercase(rng: random.Random, subject: str) -> Drawn:
    return "Use lowercase letters only, no capital letters.", {}


def _capital(rng: random.Random, subject: str) -> Drawn:
    return "Write everything in CAPITAL LETTERS.", {}


def _words_to_use(rng: random.Random, subject: str) -> Drawn:
    words = rng.sample(_WORDS, 2)
    return f"Use the words {words[0]} and {words[1]}.", {"keywords": words}


def _few_words(rng: random.Random, subject: str) -> Drawn:
    most = rng.choice((20, 25, 30, 35))
    return f"Use fewer than {most} words.", {"relation": "less than", "num_words": most}


def _few_sentences(rng: random.Random, subject: str) -> Drawn:
    return "Answer in one sentence.", {"relation": "less than", "num_sentences": 2}


def _quotation(rng: random.Random, subject: str) -> Drawn:
    return "Put your whole answer in double quotation marks.", {}


def _ending(rng: random.Random, subject: str) -> Drawn:
    phrase = rng.choice(_ENDINGS)
    return f"End with exactly these words and nothing after them: {phrase}", {"end_phrase": phrase}


def _title(rng: random.Random, subject: str) -> Drawn:
    return f"Begin with a title in double angular brackets, such as <<{subject.title()}>>.", {}


def _bullets(rng: random.Random, subject: str) -> Drawn:
    number = rng.choice((2, 3, 4))
    return f"Answer with exactly {number} bullet points that begin with *.", {"num_bullets": number}


def _postscript(rng: random.Random, subject: str) -> Drawn:
    return "Add a postscript at the end that begins with P.S.", {"postscript_marker": "P.S."}


def _highlight(rng: random.Random, subject: str) -> Drawn:
    return f"Highlight one important phrase with asterisks, such as *{subject}*.", {"num_highlights": 1}


#: kind -> how it is asked for, and its arguments
_KINDS: Mapping[str, Callable[[random.Random, str], Drawn]] = {
    "punctuation:no_comma": _no_comma,
    "change_case:english_lowercase": _lowercase,
    "change_case:english_capital": _capital,
    "keywords:existence": _words_to_use,
    "length_constraints:number_words": _few_words,
    "length_constraints:number_sentences": _few_sentences,
    "startend:quotation": _quotation,
    "startend:end_checker": _ending,
    "detectable_format:title": _title,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_highlighted_sections": _highlight,
}

#: of every row; see above
_CONDITIONS = ("length_constraints:number_words", "keywords:existence", "keywords:forbidden_words")
#: kinds that contradict none of the others
_GO_WITH_ALL = ("punctuation:no_comma", "keywords:existence")


def _request(rng: random.Random) -> tuple[str, str, str]:
    """A request, what it is about, and a word of it that an answer to the point has."""
    name, occasion, subject, aim = (rng.choice(choices) for choices in (_NAMES, _OCCASIONS, _SUBJECTS, _AIMS))
    thing = subject.removeprefix("the ")
    return rng.choice(
        (
            (f"Write a short message to {name} for {occasion}.", name, name),
            (f"Tell me something interesting about {subject}.", subject, _stem(thing)),
            (f"Why do people like {subject}?", subject, _stem(thing)),
            (f"Give me advice on how to {aim}.", aim, _POINTS.get(aim, aim.split()[-1])),
        )
    )


def _stem(thing: str) -> str:
    """What its singular and its plural have in common."""
    return thing.removesuffix("es").removesuffix("s") if len(thing) > 4 else thing


def instructions(
    size: int, kinds: Sequence[str] = tuple(_KINDS), pairs: float = 0.0, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows with question, instruction_id_list and kwargs, as the verifier `instructions` reads them.

    Args:
      size: number of rows.
      kinds: the instructions that are drawn from, by IFEval's names.
      pairs: share of the rows that have a second instruction, from 0 to 1.
      seed: of requests and instructions; the same rows for the same arguments.

    Raises:
      ValueError: a kind is unknown, or a share is none.
    """
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise ValueError(f"unknown kinds: {', '.join(map(repr, unknown))}; known: {', '.join(_KINDS)}")
    if not kinds or not 0 <= pairs <= 1:
        raise ValueError(f"expected one kind at least and pairs from 0 to 1, got {list(kinds)!r} and {pairs!r}")
    for index in range(size):
        yield _row(random.Random(f"instructions {seed} {index}"), kinds, pairs)


def _row(rng: random.Random, kinds: Sequence[str], pairs: float) -> dict[str, Any]:
    (request, subject, point), first = _request(rng), rng.choice(kinds)
    second = [kind for kind in kinds if kind in _GO_WITH_ALL and kind != first]
    asked = [first, rng.choice(second)] if second and rng.random() < pairs else [first]
    drawn = [_KINDS[kind](rng, subject) for kind in asked]
    return {
        "question": " ".join([request, *(sentence for sentence, _ in drawn)]),
        "instruction_id_list": [*asked, *_CONDITIONS],
        "kwargs": [
            *(dict(arguments) for _, arguments in drawn),
            {"relation": "at least", "num_words": _LEAST_WORDS},
            {"keywords": [point]},
            {"forbidden_words": list(_ABOUT_INSTRUCTIONS)},
        ],
    }
