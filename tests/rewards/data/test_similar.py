"""Nearly equal texts are found among many others, and told with how alike they are."""

from __future__ import annotations

import random

from rewards.data import twins

WORDS = [f"word{number}" for number in range(2000)]


def text(rng: random.Random, length: int = 40) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length))


def test_case_and_punctuation_do_not_count_and_numbers_do() -> None:
    found = list(twins(["What is 3 + 4?", "what IS 3, 4", "What is 3 + 5?", "", "!", "yes", "Yes."]))
    assert [(twin.number, twin.of, twin.similarity) for twin in found] == [(1, 0, 1.0), (6, 5, 1.0)]


def test_one_changed_word_in_a_long_text_is_found_among_thousands() -> None:
    rng = random.Random(0)
    texts = [text(rng) for _ in range(1000)]
    changed = {}
    for number in range(0, 1000, 5):
        words = texts[number].split()
        words[-1] = "changed"
        changed[len(texts)] = number
        texts.append(" ".join(words))
    found = {twin.number: twin.of for twin in twins(texts)}
    assert found == changed


def test_what_is_told_was_compared() -> None:
    rng = random.Random(1)
    one = text(rng, 30)
    most = " ".join([*one.split()[:25], *text(rng, 5).split()])
    assert list(twins([one, most])) == []
    (twin,) = twins([one, most], threshold=0.5)
    assert twin.similarity == 23 / 33


def test_many_rows_of_one_template_do_not_take_the_square_of_it() -> None:
    same = "Solve the following problem step by step and then give the answer as one number at the very end: "
    found = list(twins([f"{same} {number}" for number in range(1000)]))
    assert len(found) == 999


def test_each_group_of_earlier_texts_is_told_for_itself() -> None:
    found = twins(["a b c d", "e f g h", "a b c d", "a b c d"], groups=["heldout", "train", "train", "train"])
    assert [(twin.number, twin.of) for twin in found] == [(2, 0), (3, 0), (3, 2)]
