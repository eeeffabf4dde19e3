"""Where a response gives its final answer: after a mark, in a box, after "the answer is", else at its end.

One place is looked at, never several, so that a response which names many values isn't right because one of them is.
"""

from __future__ import annotations

import re

from rewards.mathematics.parser import parse
from rewards.mathematics.values import MathError, Text

#: GSM8K's mark before the final answer (Cobbe et al., arXiv 2110.14168).
MARK = "####"

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*")
#: "the answer is" in the languages in which models answer most; \uff1a is a wide colon
_FOREIGN = (
    r"(?:答案|答え|정답)(?:应该)?[是为は은는]?\s*[:\uff1a]?"
    r"|\b(?:respuesta|réponse|resposta|antwort|risposta|ответ)\b\**\s*(?:(?:es|est|é|ist|è)\b|[:=—])"
)
_PHRASE = re.compile(
    r"(?:\b(?:answer|correct (?:option|choice))\b\**\s*"
    r"(?:is|are|=|:)(?:\s*(?:given by|equal to|thus|therefore|now))?|^[^\S\n]*A:"
    rf"|{_FOREIGN})\s*:?\s*\**",
    re.I | re.M,
)
_SENTENCE_END = re.compile(r"[\u3002\uff01\uff1f]|(?:(?:(?<!\.)[.?]|(?<![\d!)}])!)\**(?=\s|$))|\n")
_MATH = re.compile(
    r"\$\$(.{1,1000}?)\$\$|\\\[(.{1,1000}?)\\\]|\\\((.{1,1000}?)\\\)|(?<![\\\w])\$((?:\\\$|[^$\n]){1,1000}?)(?<!\\)\$",
    re.S,
)
_UNIT = re.compile(r"\s*([A-Za-z%°²³]+(?:[ /][A-Za-z]+){0,3})\s*\**[.!]?\s*$")
#: a number in running text, with the currency or percent sign that belongs to it
_LETTERS = r"\d_A-Za-z\u00c0-\u1fff"
_NUMBER = rf"(?:(?<![{_LETTERS}.])-)?[$€£]?\s?-?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)?(?:\.\d+|(?<=\d))(?:/\d+)?(?:\s?%)?"
_JOINER = r"\s*(?:,|;|/|\bor\b|\band\b|,\s*(?:or|and)\b|\s)\s*"
_RUN = re.compile(rf"(?<![{_LETTERS}.^_\\]){_NUMBER}(?:{_JOINER}{_NUMBER})*")
_SCALE = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|squared|cubed|factorial)s?\b", re.I)
_MINUS = re.compile(r"\b(?:minus|negative)\s+$", re.I)
#: brackets around several numbers: a point or an interval
_OPENS, _CLOSES = re.compile(r"[(\[]\s*$"), re.compile(r"\s*[)\]]")
_BRACE = re.compile(r"\\.|[{}]", re.S)
#: what is looked at: of the response, and of its last line or of the sentence that states the answer
_MAX_CHARACTERS = 200_000
_MAX_LINE = 4000
_MAX_WORDS = 6


def final_answer(response: str) -> str:
    """The text of the final answer, without math delimiters; empty if the response gives none."""
    response = response[-_MAX_CHARACTERS:]
    if MARK in response:
        after = response.rsplit(MARK, 1)[1].strip().split("\n", 1)[0][:_MAX_LINE]
        return _unboxed(after)
    boxes = _boxes(response)
    if cut := _cut_box(response, boxes):
        return cut
    if boxes:
        return _last_boxes(response, boxes)
    phrases = list(_PHRASE.finditer(response))
    if phrases and (said := _stated(response[phrases[-1].end() :])):
        return said
    return _at_the_end(response)


def _stated(text: str) -> str:
    """What follows "the answer is": the math or the words, up to the end of the sentence."""
    text = text[:_MAX_LINE].strip()
    if match := _MATH.match(text):
        return bare(_joined_math(text, match)[0])
    end = _SENTENCE_END.search(text)
    return bare(text[: end.start()] if end else text)


def _joined_math(text: str, first: re.Match[str]) -> tuple[str, int]:
    """`$1$ and $2$` is one answer with two values; the text of it, and where it ends."""
    parts, position = [_inside(first)], first.end()
    while (joiner := re.compile(r"\s*(?:,|\band\b|\bor\b|,\s*and\b)\s*").match(text, position)) and (
        following := _MATH.match(text, joiner.end())
    ):
        parts.append(_inside(following))
        position = following.end()
    unit = _UNIT.match(text, position) if len(parts) == 1 else None
    if unit is None or unit[1] == "%":
        return ", ".join(parts), unit.end() if unit else position
    return f"{parts[0]} \\text{{{unit[1]}}}", unit.end()


def _inside(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the boxes, of which the outer ones only."""
    found: list[tuple[int, int, str]] = []
    matches = list(_BOX.finditer(text))
    ends = _closing_braces(text, matches[0].start()) if matches else {}
    for match in matches:
        if (found and match.start() < found[-1][1]) or (end := ends.get(match.end())) is None:
            continue
        found.append((match.start(), end + 1, text[match.end() + 1 : end]))
    return found


def _cut_box(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The beginning of a last box that is not closed: of a longer number only the first digits may be there."""
    after = boxes[-1][1] if boxes else 0
    unclosed = [match for match in _BOX.finditer(text, after) if text[match.end() : match.end() + 1] == "{"]
    return text[unclosed[-1].start() :][:_MAX_LINE].strip() if unclosed else ""


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """Where each brace is closed that is; escaped ones don't count."""
    ends: dict[int, int] = {}
    is_open: list[int] = []
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            is_open.append(match.start())
        elif match[0] == "}" and is_open:
            ends[is_open.pop()] = match.start()
    return ends


def _last_boxes(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The last box, with those before it from which only "and", "or" or a comma separates it."""
    together = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(reversed(boxes[:-1]), reversed(boxes), strict=False):
        if not re.fullmatch(r"[\s$,;&]*(?:and|or|\\text\{\s*(?:and|or)\s*\})?[\s$,;&]*", text[end:start]):
            break
        together.insert(0, content)
    if len(together) > 1 and all(part == together[0] for part in together):
        return bare(together[0])
    return ", ".join(map(bare, together))


def last_line(response: str) -> str:
    """The last line that is not blank, without delimiters around it."""
    return bare(response.strip().rsplit("\n", 1)[-1][-_MAX_LINE:])


def _at_the_end(response: str) -> str:
    line = response.strip().rsplit("\n", 1)[-1][-_MAX_LINE:].strip()
    whole = bare(line)
    if _is_form(whole):
        return whole
    spans = list(_MATH.finditer(line))
    runs = [match for match in _RUN.finditer(line) if re.search(r"\d", match[0])]
    if spans and (not runs or spans[-1].end() >= runs[-1].end()):
        first = next(
            (m for i, m in enumerate(spans) if _joined_math(line, m)[0].count(",") + 1 >= len(spans) - i > 1), spans[-1]
        )
        said = _joined_math(line, first)[0] if first is not spans[-1] else _inside(first)
        return bare(said.rsplit("=", 1)[-1] if "=" in said and "," not in said else said)
    # "7 thousand" is another number than its digits.
    return bare(_with_what_is_around(line, runs[-1])) if runs and not _SCALE.match(line, runs[-1].end()) else whole


def _with_what_is_around(line: str, run: re.Match[str]) -> str:
    """A run of numbers with the brackets around several of them, or the sign that stands before in words."""
    opens, closes = _OPENS.search(line[: run.start()]), _CLOSES.match(line, run.end())
    if opens and closes and "," in run[0]:
        return line[opens.start() : closes.end()]
    return f"-{run[0].lstrip()}" if _MINUS.search(line[: run.start()]) else run[0]


def _is_form(text: str) -> bool:
    """Whether a whole line is an answer; a sentence is not, though its words could be."""
    try:
        value = parse(text)
    except (MathError, RecursionError):
        return False
    return not isinstance(value, Text) or len(value.words.split()) <= _MAX_WORDS


def _unboxed(text: str) -> str:
    boxes = _boxes(text)
    return _last_boxes(text, boxes) if boxes else bare(text)


def bare(text: str) -> str:
    """Without the delimiters, emphasis and full stop around it."""
    text = text.strip()
    for _ in range(4):
        before = text
        text = re.sub(r"(?<=[^\s.])[.\u3002]$|(?<=[A-Za-z]{3})!$|(?<=\S)[,;:]$", "", text.strip()).strip("*` ").strip()
        if (match := _MATH.fullmatch(text)) and "$" not in _inside(match).replace("\\$", ""):
            text = _inside(match)
        elif (match := _MATH.match(text)) and (joined := _joined_math(text, match))[1] == len(text):
            text = joined[0]
        if (boxes := _boxes(text)) and len(boxes) == 1 and boxes[0][:2] == (0, len(text)):
            text = boxes[0][2]
        if text == before:
            break
    return text
