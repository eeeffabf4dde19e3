"""Kinds of instruction, from the descriptions in IFEval's table 1 (arXiv 2311.07911): does a text follow one?

A check gets a text that is not blank and the instruction's arguments, named as in the published data. It raises
`InstructionError` for arguments that it can't use. Words are sought as they stand, never as regular expressions. An
answer tries to look as if it followed: words may be hidden by characters that can't be seen, or be spelled in others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from rewards.instructions import language
from rewards.instructions.arguments import Arguments, InstructionError
from rewards.instructions.texts import composed, ends_in, folded, has_words, is_blank, num_sentences, paragraphs, words

Check = Callable[[str, Arguments], bool]

_FENCE = re.compile(r"\A```[A-Za-z]*\s*\n?(.*?)\n?\s*```\Z", re.S)
_BULLET = re.compile(r"^[ \t]*[*+\-][ \t]+\S", re.M)
_RULE = re.compile(r"^[ \t]*(?:[*\-][ \t]*){3,}$", re.M)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TICK_BOX = re.compile(r"^[ \t]*[*+\-][ \t]+\[[ xX]\](?=\s|$)", re.M)
_TITLE = re.compile(r"<<((?:(?!<<|>>)[^\n])+)>>")
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]*[^*\s]\*\*")
_EMPHASIS = re.compile(r"(?<![*\\])\*(?=[^\s*])[^*\n]*(?<=\S)\*(?!\*)")
_STRONG_EMPHASIS = re.compile(r"(?<![\w*])\*\*\*(?=[^\s*])[^*\n]*(?<=[^\s*])\*\*\*(?![\w*])")
_DIVIDER = re.compile(r"(?<!\*)\*\*\*(?!\*)")
_RESPONSES = re.compile(r"(?<!\*)\*{6}(?!\*)")
_FIXED_ANSWERS = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
#: of Latin, Arabic, Chinese and Japanese texts
_COMMA = re.compile("[,\u060c\u3001\uff0c\uff64\ufe50\ufe51\ufe10\ufe11]")
_QUOTES = {'"': '"', "\u201c": "\u201d"}


def _existence(text: str, given: Arguments) -> bool:
    said = folded(text)
    return all(folded(keyword).strip() in said for keyword in given.texts("keywords"))


def _frequency(text: str, given: Arguments) -> bool:
    return given.holds("relation", folded(text).count(folded(given.text("keyword")).strip()), "frequency")


def _forbidden_words(text: str, given: Arguments) -> bool:
    said = folded(text)
    return not any(has_words(said, folded(word)) for word in given.texts("forbidden_words"))


def _letter_frequency(text: str, given: Arguments) -> bool:
    letter = composed(given.text("letter")).strip()
    if len(letter) != 1:
        raise InstructionError(f"keywords:letter_frequency: letter is {letter!r:.100}, expected one character")
    return given.holds("let_relation", composed(text).lower().count(letter.lower()), "let_frequency")


def _response_language(text: str, given: Arguments) -> bool:
    wanted = given.text("language").strip().lower()
    if not any(known == wanted or known.startswith(f"{wanted}-") for known in language.languages()):
        raise InstructionError(f"language:response_language: language {wanted!r:.100} is not one that is told apart")
    return language.is_in(text, wanted)


def _number_paragraphs(text: str, given: Arguments) -> bool:
    """Paragraphs that the divider *** separates. One between two dividers may not be empty."""
    parts = [part.strip() for part in _DIVIDER.split(_STRONG_EMPHASIS.sub("emphasis", text))]
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == given.count("num_paragraphs")


def _number_words(text: str, given: Arguments) -> bool:
    return given.holds("relation", len(words(text)), "num_words")


def _number_sentences(text: str, given: Arguments) -> bool:
    return given.holds("relation", num_sentences(text), "num_sentences")


def _nth_paragraph_first_word(text: str, given: Arguments) -> bool:
    """So many paragraphs, which blank lines separate, of which the nth begins with a word."""
    parts, nth = paragraphs(text), given.count("nth_paragraph", least=1)
    first_word = given.text("first_word").strip().lower()
    if len(parts) != given.count("num_paragraphs") or nth > len(parts):
        return False
    begin = parts[nth - 1].lstrip("\"'*_#>(\u201c\u2018 \t").lower()
    return begin.startswith(first_word) and not re.match(r"\w", begin[len(first_word) :])


def _postscript(text: str, given: Arguments) -> bool:
    marker = given.text("postscript_marker").strip().lower().rstrip(".")
    letters = [re.escape(letter) for letter in marker.replace(".", "").replace(" ", "")]
    spelled = r"\.\s?".join(letters)
    found = re.search(rf"(?<![^\W_])(?<!\.){spelled}(?![^\W_])", text, re.I)
    return found is not None and any(character.isalnum() for character in text[found.end() :])


def _number_placeholders(text: str, given: Arguments) -> bool:
    """Square brackets with something in them; boxes to tick are none."""
    found = [match for match in _PLACEHOLDER.findall(_TICK_BOX.sub("", text)) if not is_blank(match[1:-1])]
    return len(found) >= given.count("num_placeholders")


def _number_bullet_lists(text: str, given: Arguments) -> bool:
    return len(_BULLET.findall(_RULE.sub("", text))) == given.count("num_bullets")


def _title(text: str, given: Arguments) -> bool:
    return any(not is_blank(match[1]) for match in _TITLE.finditer(text))


def _constrained_response(text: str, given: Arguments) -> bool:
    folded = text.lower()
    return any(answer in folded for answer in _FIXED_ANSWERS)


def _number_highlighted_sections(text: str, given: Arguments) -> bool:
    bold = _BOLD.findall(text)
    return len(bold) + len(_EMPHASIS.findall(_BOLD.sub(" ", text))) >= given.count("num_highlights")


def _multiple_sections(text: str, given: Arguments) -> bool:
    """Beginnings such as "SECTION 1"; one that is mentioned twice counts once."""
    splitter = re.escape(given.text("section_spliter").strip())
    found = set(re.findall(rf"(?<!\w){splitter}\s?(\d{{1,9}})(?!\w)", text))
    return len(found) >= given.count("num_sections")


def _json_format(text: str, given: Arguments) -> bool:
    bare = text.strip()
    if match := _FENCE.match(bare):
        bare = match[1]
    try:
        json.loads(bare, parse_constant=_no_constant, parse_int=str, parse_float=str)  # numbers may have any length
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _repeat_prompt(text: str, given: Arguments) -> bool:
    return folded(text).strip().startswith(folded(given.text("prompt_to_repeat")).strip())


def _two_responses(text: str, given: Arguments) -> bool:
    """Two answers that six asterisks separate, and that differ."""
    parts = [part.strip() for part in _RESPONSES.split(text)]
    if len(parts) > 2 and not parts[0]:
        parts = parts[1:]
    if len(parts) > 2 and not parts[-1]:
        parts = parts[:-1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _english_capital(text: str, given: Arguments) -> bool:
    return text.isupper() and language.may_be_english(text)


def _english_lowercase(text: str, given: Arguments) -> bool:
    return text.islower() and language.may_be_english(text)


def _capital_word_frequency(text: str, given: Arguments) -> bool:
    return given.holds("capital_relation", sum(word.isupper() for word in words(text)), "capital_frequency")


def _end_checker(text: str, given: Arguments) -> bool:
    wanted = folded(given.text("end_phrase")).strip().strip('"').strip()
    return ends_in(folded(text).strip().strip('"\u201c\u201d').rstrip(), wanted)


def _quotation(text: str, given: Arguments) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[-1] == _QUOTES.get(bare[0]) and not is_blank(bare[1:-1])


def _no_comma(text: str, given: Arguments) -> bool:
    return _COMMA.search(text) is None


KINDS: Mapping[str, Check] = {
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
}
