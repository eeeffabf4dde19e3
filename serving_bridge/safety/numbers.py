"""Personal data that is made of digits: cards, telephone and social security numbers, in what spacing ever."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import phonenumbers

from serving_bridge.safety.checksums import card, card_prefix, luhn, social_security_number
from serving_bridge.safety.cues import cue
from serving_bridge.safety.decisions import Kind
from serving_bridge.safety.found import Found
from serving_bridge.safety.linear import compiled

#: Digits with at most three characters of spacing between two; longer ones are cut.
_RUN = r"\d(?:[ ._/()\t-]{0,3}\d){6,300}"
_GROUP = re.compile(r"\d+")
_EXTENSION = re.compile(r"[ ,]{0,2}(?:x|ext\.?|extension|#)[ :.]{0,2}(\d{1,6})(?!\d)", re.IGNORECASE)
_MAX_CARD_DIGITS = 19
_DATE = re.compile(
    r"(?:(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:(?:19|20)\d\d|\d\d))(?!\d)"
)
#: Groups of different sizes on cards: American Express and Diners Club.
_CARD_GROUPS = ([4, 6, 5], [4, 6, 4])
#: So many groups of digits beside a card's are a table or a list of numbers.
_MIN_TABLE = 5
_SSN = re.compile(r"\d{3}([-. ]{1,3})\d{2}\1\d{4}")
_AMERICAN = re.compile(r"(?:(?:00|011)?[-. ]?\d{1,3}[-. /])?\(?\d{3}\)?[-. /]{1,3}\d{3}[-. /]\d{4}")
#: Parentheses, if there are any, hold an area code.
_PARENTHESES = re.compile(r"[^()]?(?:\(?\d{1,5}\)|[^()])[^()]*(?:\(\d{1,5}\)[^()]*)?")
#: A trunk prefix, an area code and one group: "030 1234567", "0151-12345678", "05482/882712"; "00420 721 413 426".
_TRUNK = re.compile(r"0[1-9]\d{0,4}[ /-]{1,3}\d{5,8}|0[1-9]\d{8,9}|00[1-9]\d{0,2}(?:[ .-]?\d{2,5}){2,5}")
_MIN_PHONE, _MAX_PHONE = 7, 15
#: Signs of a calculation around a run of digits, such as "= <<150-50".
_SUM_BEFORE = re.compile(r"(?:<<|>>|\*|\^|\d ?=) ?$")
_SUM_AFTER = re.compile(r" ?(?:=|\*|\+|\^|<<|>>|%)")


#: Groups of digits that are looked at in one text; what comes after is taken for personal data.
_MAX_GROUPS = 4_000


@dataclass(frozen=True)
class _Run:
    """Groups of digits in a row, and what the text has between them.

    Attributes:
      compact: the digits alone.
      offsets: where each group begins in `compact`, and its length at the end.
    """

    text: str
    lower: str
    groups: Sequence[tuple[int, int]]
    compact: str
    offsets: Sequence[int]

    def digits(self, first: int, last: int) -> str:
        return self.compact[self.offsets[first] : self.offsets[last + 1]]

    def sizes(self, first: int, last: int) -> list[int]:
        return [end - start for start, end in self.groups[first : last + 1]]

    def span(self, first: int, last: int) -> tuple[int, int]:
        return self.groups[first][0], self.groups[last][1]

    def windows(self, first: int, fewest: int, most: int) -> range:
        """The last groups of the windows that begin at `first` and have that many digits, longest first."""
        begin = self.offsets[first]
        low = bisect_left(self.offsets, begin + fewest, first + 1)
        high = bisect_right(self.offsets, begin + most, first + 1)
        return range(high - 2, low - 2, -1)


def numbers(text: str, regions: Sequence[str]) -> Iterator[Found]:
    """Cards, social security numbers, devices and telephone numbers in a folded text, first come first taken.

    Args:
      regions: countries ("US") whose telephone numbers are known without a word beside them.
    """
    lower, left = text.lower(), _MAX_GROUPS
    for match in compiled(_RUN).finditer(text.encode("ascii")):
        groups = [found.span() for found in _GROUP.finditer(text, *match.span())]
        if len(groups) > left:
            yield Found(match.start(), match.end(), Kind.PAYLOAD)
            continue
        left -= len(groups) if len(groups) > 8 else 0
        compact = "".join(text[start:end] for start, end in groups)
        run = _Run(text, lower, groups, compact, [0, *accumulate(end - start for start, end in groups)])
        taken = list(_checked(run))
        yield from taken
        yield from _phones(run, taken, regions)


def _checked(run: _Run) -> Iterator[Found]:
    """Cards, devices and social security numbers: windows of groups that pass their check, leftmost and longest."""
    first = 0
    while first < len(run.groups):
        for last in run.windows(first, 9, _MAX_CARD_DIGITS):
            if kind := _kind(run, first, last, run.offsets[last + 1] - run.offsets[first]):
                yield Found(*run.span(first, last), kind)
                first = last
                break
        first += 1


def _kind(run: _Run, first: int, last: int, length: int) -> Kind | None:
    digits, (start, end) = run.digits(first, last), run.span(first, last)
    if _is_fraction(run.text, start, end):
        return None
    if length >= 12 and card(digits) and (_is_written_as_card(run, first, last) or cue("card", run.lower, start, end)):
        return Kind.CARD
    if length >= 13 and card_prefix(digits) and cue("card", run.lower, start, end, after=False):
        return Kind.CARD
    if length in (15, 16, 17) and cue("device", run.lower, start, end, before=30):
        return Kind.DEVICE
    if length == 15 and run.sizes(first, last) == [2, 6, 6, 1] and luhn(digits):
        return Kind.DEVICE
    if length == 9:
        written = _SSN.fullmatch(run.text, start, end) is not None
        if (written and social_security_number(digits)) or cue("social", run.lower, start, end, before=40):
            return Kind.SSN
    return None


def _is_written_as_card(run: _Run, first: int, last: int) -> bool:
    """Whether the groups are those of a card: 13 digits or a table of numbers pass Luhn's check by chance too often."""
    sizes = run.sizes(first, last)
    if len(sizes) == 1:
        return sizes[0] > 13 and len(run.groups) < _MIN_TABLE
    alike = len(set(sizes[:-1])) == 1 and 1 <= sizes[-1] <= sizes[0] <= 5
    is_alone = len(run.groups) - len(sizes) < _MIN_TABLE
    return (alike or sizes in _CARD_GROUPS) and (is_alone or _are_all_cards(run, len(sizes)))


def _are_all_cards(run: _Run, num_groups: int) -> bool:
    starts = range(0, len(run.groups), num_groups)
    return len(run.groups) % num_groups == 0 and all(card(run.digits(at, at + num_groups - 1)) for at in starts)


def _is_fraction(text: str, start: int, end: int) -> bool:
    """Whether the digits are, or have among them, those behind a decimal point."""
    point = text.find(".", start, end)
    if point >= 0 and text[point + 1 : point + 8].isdigit():
        return True
    return (
        text[start - 1 : start] == "." and text[start - 2 : start - 1].isdigit() and text[start : start + 6].isdigit()
    )


def _phones(run: _Run, taken: Sequence[Found], regions: Sequence[str]) -> Iterator[Found]:
    first = 0
    while first < len(run.groups):
        for last in run.windows(first, _MIN_PHONE, _MAX_PHONE):
            start, end = run.span(first, last)
            if any(start < found.end and found.start < end for found in taken):
                continue
            if (found := _phone(run, first, last, regions)) is not None:
                yield found
                first = last
                break
        first += 1
        if first > 40:  # a table of numbers, not somebody's
            return


def _phone(run: _Run, first: int, last: int, regions: Sequence[str]) -> Found | None:
    start, end = run.span(first, last)
    text = run.text
    dated = any(_DATE.match(text, begin, end) for begin, _ in run.groups[first : last + 1])
    if dated or (start and text[start - 1].isalnum()) or text[start - 1 : start] == "$":
        return None
    if is_sum(text, start, end):
        return None
    extension = _EXTENSION.match(text, end) if last == len(run.groups) - 1 else None
    if extension is None and text[end : end + 1].isalpha():
        return None
    begin, plus = _beginning(text, start)
    if not (_is_phone(run, first, last, plus=plus, extension=extension is not None, regions=regions)):
        return None
    return Found(begin, extension.end() if extension else end, Kind.PHONE)


def is_sum(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]` stands in a calculation."""
    return _SUM_AFTER.match(text, end) is not None or _SUM_BEFORE.search(text, max(0, start - 4), start) is not None


def _beginning(text: str, start: int) -> tuple[int, bool]:
    """Where the number begins with its plus and parenthesis, and whether it has a plus that is no sum's."""
    begin = start - 1 if text[start - 1 : start] == "(" else start
    sign = begin - 1 if text[begin - 1 : begin] == "+" else begin
    before = text[max(0, sign - 2) : sign].rpartition("\n")[2].strip()[-1:]
    plus = sign < begin and not before.isdigit() and before != ")"
    return (sign if plus else begin), plus


def _is_phone(run: _Run, first: int, last: int, *, plus: bool, extension: bool, regions: Sequence[str]) -> bool:
    text, (start, end) = run.text, run.span(first, last)
    digits, sizes = run.digits(first, last), run.sizes(first, last)
    if plus and len(digits) >= 8:
        return True
    named = cue("phone", run.lower, start, end)
    is_in_table = len(run.groups) - len(sizes) >= _MIN_TABLE and not re.search(r"[^\d ]", text[start:end])
    if is_in_table and not named:
        return False
    if max(sizes) > 11 or (not named and cue("not a phone", run.lower, start, end, after=False, before=16)):
        return False
    area = (
        text[start - 1 : start] == "("
        and text[run.groups[first][1] : run.groups[first][1] + 1] == ")"
        and len(sizes) > 1
    )
    if not _PARENTHESES.fullmatch(text, max(0, start - 1), end):
        return False
    if extension or (area and (start < 2 or not text[start - 2].isalnum())):
        return True
    if _AMERICAN.fullmatch(text, start, end):
        return True
    if _TRUNK.fullmatch(text, start, end) and len(digits) >= 8 and not text[end : end + 2].lstrip("-.")[:1].isdigit():
        return True
    if named:
        return " - " not in text[start:end] and (len(digits) >= 8 or sizes == [3, 4])
    if len(sizes) < 3 or min(sizes) < 2 or not 2 < max(sizes) <= 4 or "/" in text[start:end]:
        return digits.startswith("0") and sizes == [2] * 5
    return (digits.startswith("0") and 9 <= len(digits) <= 13) or _is_valid(text[start:end], regions)


def _is_valid(text: str, regions: Sequence[str]) -> bool:
    for region in regions:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(text, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
