"""Each kind of instruction with answers that follow it and answers that don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.instructions import KINDS, InstructionError, follows, follows_loosely, read_instructions

ENGLISH = "The weather in the mountains was cold this morning, and nobody wanted to leave the warm house."
GERMAN = "Das Wetter in den Bergen war heute Morgen kalt, und niemand wollte das warme Haus verlassen."
FRENCH = "il faisait froid ce matin dans les montagnes et personne ne voulait quitter la maison"

#: kind, arguments, answers that follow, answers that don't
TABLE: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["mom", "c++"]}, ["Mom likes C++.", "MOMENT c++"], ["mom", "C++", "m om c++"]),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": "at least", "frequency": 2},
        ["War and war.", "war war war"],
        ["war", "peace"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "relation": "less than", "frequency": 2.0},
        ["War.", "peace"],
        ["war, war", "War wAr war"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "e.g."]},
        ["A rocket.", "Rocky and eggs"],
        ["Rock!", "a rock", "rock-solid", "use e.g. this"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "o", "let_relation": "at least", "let_frequency": 3},
        ["Ooo", "good dog"],
        ["good", "no"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_relation": "less than", "let_frequency": 2},
        ["a #", "a"],
        ["##"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, FRENCH, "123", "?!"]),
    (
        "language:response_language",
        {"language": "hi"},
        ["आज सुबह पहाड़ों में मौसम बहुत ठंडा था और कोई बाहर नहीं जाना चाहता था।"],
        [ENGLISH],
    ),
    ("language:response_language", {"language": "ko"}, ["오늘 아침 산의 날씨는 추웠습니다."], [ENGLISH, GERMAN]),
    ("language:response_language", {"language": "zh"}, ["今天早上山里的天气很冷, 没有人想离开温暖的房子。"], [ENGLISH]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***", "one *** two"],
        ["one\n\ntwo", "one\n***\ntwo\n***\nthree", "one\n***\n***\ntwo", "one **bold** two", "one\n******\ntwo"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 4},
        ["I don't like it.", "well-known people are here", "1 2 3 4"],
        ["I don't like.", "... --- !!! ???", "one two three"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 3},
        ["one two", "it's fine."],
        ["a b c"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 3},
        ["One. Two! Three?", "It is 3.5 km. Yes. No.", 'He said "no." Then he left. Done', "a. b c. d e. f g."],
        [
            "Dr. Smith lives at 5.5 Main St. in the U.S. today.",
            "One. Two",
            "e.g. this, i.e. that...",
            "Mr. J. R. Smith ran. Yes.",
        ],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        ["Only one, with Mr. Smith.", "No mark at all", "It rose by 2.5 percent."],
        ["One. Two.", "Is it? Yes."],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "summary"},
        ["a\n\nSummary: b", 'a\n\n"Summary" b', "a\n\n\n\n**Summary** b"],
        ["a\n\nIn summary b", "Summary\n\na", "a\n\nSummarybook", "a\n\nSummary\n\nc", "a\nSummary"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\n\nP.S. Call me.", "Bye. p. s. call", "P.S: x"],
        ["Bye.", "P.P.S. Call", "maps. it", "PS5 is out"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S. y", "P.P.S y"], ["P.S. y", "PPS y"]),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [address]", "[a][b][c]"],
        ["[name]", "[] []", "(name) (address)", "[name\naddress]"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Intro:\n- a\n  - b\nend", "* **a**\n* b\n\n---"],
        ["* a", "* a\n* b\n* c", "*a* and\n*b*", "1. a\n2. b", "a - b\nc - d"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. I think."],
        ["yes", "My answer is perhaps.", "My answer is no"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** and *b*", "**a** **b**", "* x *a* y\n* z *b*"],
        ["*a*", "* a\n* b\n* c", "** ** * *", "2 * 3 * 4 * 5", "*a\nb* *c*", "**a**"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "# SECTION 1: a\n# SECTION 2: b\n# SECTION 3"],
        [
            "SECTION 1\na",
            "Section 1\nSection 2",
            "SECTION one SECTION two",
            "SECTION 1 as in SECTION 1",
            "INTERSECTION 1 INTERSECTION 2",
        ],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "[1, 2]", '```\n{"a": 1}\n```'],
        ['Here: {"a": 1}', "{'a': 1}", '{"a": NaN}', '{"a": 1,}', "json", '{"a": 1} {"b": 2}'],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\nx", "x <<a b>>"], ["<Joy>", "<<>>", "<< >>", "<<a\nb>>", "# Joy"]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["Write a poem.\n\nRoses", " write a poem. Yes"],
        ["Roses. Write a poem.", "Sure! Write a poem.", "Write a po"],
    ),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "one****** two", "******\none\n******\ntwo"],
        ["one", "one\n***\ntwo", "one\n******\none", "one\n******\n", "a\n******\nb\n******\nc"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper(), "HELLO WORLD!", "YES."],
        [ENGLISH, GERMAN.upper(), "123", "HELLo"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH.lower(), "hello there.", "yes"],
        [ENGLISH, FRENCH, "123", "hello There"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["NASA and ESA", "I SAW"],
        ["NASA and Esa", "none", "NaSA ESa"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 2},
        ["NASA and Esa", "none"],
        ["NASA ESA", "A B C"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Peace!"},
        ["I leave. Peace!", 'so "peace!"', "PEACE!\n"],
        ["Peace! Bye.", "Peace", "Peace!!?"],
    ),
    (
        "startend:quotation",
        {},
        ['"Hello."', ' "a" and "b" ', "\u201cHello\u201d"],
        ["Hello", '"Hello', 'Hello"', '"', "'Hello'"],
    ),
    ("punctuation:no_comma", {}, ["No comma here; none."], ["Yes, one.", ","]),
]


def _cases(which: int) -> list[tuple[str, dict[str, Any], str]]:
    return [(row[0], row[1], answer) for row in TABLE for answer in row[which]]


def test_the_table_has_every_kind_both_ways() -> None:
    assert {kind for kind, *_ in _cases(2)} == {kind for kind, *_ in _cases(3)} == set(KINDS)
    assert len(KINDS) == 25


@pytest.mark.parametrize(("kind", "arguments", "answer"), _cases(2))
def test_answers_that_follow(kind: str, arguments: dict[str, Any], answer: str) -> None:
    (instruction,) = read_instructions([kind], [arguments])
    assert follows(instruction, answer)
    assert follows_loosely(instruction, answer)


@pytest.mark.parametrize(("kind", "arguments", "answer"), _cases(3))
def test_answers_that_do_not(kind: str, arguments: dict[str, Any], answer: str) -> None:
    (instruction,) = read_instructions([kind], [arguments])
    assert not follows(instruction, answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_blank_answer_follows_nothing(kind: str) -> None:
    arguments = next(given for name, given, *_ in TABLE if name == kind)
    (instruction,) = read_instructions([kind], [arguments])
    assert not any(follows(instruction, blank) or follows_loosely(instruction, blank) for blank in ("", " \n\t"))


def test_loose_leaves_out_first_and_last_line_and_asterisks() -> None:
    (quoted,) = read_instructions(["startend:quotation"], [{}])
    (ending,) = read_instructions(["startend:end_checker"], [{"end_phrase": "Bye."}])
    for instruction, answer in [
        (quoted, 'Sure, here it is:\n"Hello."'),
        (quoted, '"Hello."\nIs that fine?'),
        (quoted, 'Sure:\n"Hello."\nFine?'),
        (quoted, '**"Hello."**'),
        (ending, "So **Bye**."),
    ]:
        assert not follows(instruction, answer)
        assert follows_loosely(instruction, answer)
    assert not follows_loosely(quoted, "Sure:\nHello\nFine?")


@pytest.mark.parametrize(
    ("kinds", "arguments", "why"),
    [
        (["punctuation:no_coma"], [{}], "did you mean punctuation:no_comma"),
        ([], [], "expected a list of names"),
        ("punctuation:no_comma", [{}], "expected a list of names"),
        (["punctuation:no_comma"], [{}, {}], "expected a list of 1 objects"),
        (["punctuation:no_comma"], [7], "expected an object"),
        (["length_constraints:number_words"], [{"num_words": 3}], "no argument 'relation'"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "expected 'at least' or"),
        (["length_constraints:number_words"], [{"num_words": "x", "relation": "at least"}], "a whole number"),
        (["length_constraints:number_words"], [{"num_words": float("nan"), "relation": "at least"}], "a whole number"),
        (["keywords:existence"], [{"keywords": "a"}], "a list of texts"),
        (["keywords:letter_frequency"], [{"letter": "ab", "let_relation": "at least", "let_frequency": 1}], "one char"),
        (["language:response_language"], [{"language": "xx"}], "told apart"),
    ],
)
def test_instructions_that_cannot_be_checked_are_told(kinds: Any, arguments: Any, why: str) -> None:
    with pytest.raises(InstructionError, match=why):
        assert [follows(instruction, "some text") for instruction in read_instructions(kinds, arguments)]


def test_arguments_may_be_null_where_they_are_not_needed() -> None:
    (instruction,) = read_instructions(["punctuation:no_comma"], [{"relation": None, "num_words": None}])
    assert follows(instruction, "text")
    assert follows(read_instructions(["punctuation:no_comma"], None)[0], "text")


def test_every_prompt_of_the_published_data_can_be_checked(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "ifeval" / "input_data.jsonl").read_text().splitlines()]
    checked = 0
    for row in rows:
        for instruction in read_instructions(row["instruction_id_list"], row["kwargs"]):
            if instruction.kind != "language:response_language":
                assert follows(instruction, "some text, with a comma") in (True, False)
            checked += 1
    assert checked > 800
