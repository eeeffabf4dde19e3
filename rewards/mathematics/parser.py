"""From the text of a final answer to its value: a parser of its own for the forms in which answers are written.

It evaluates nothing and knows no names but those below; what it doesn't read completely it refuses. Numbers stay exact.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.mathematics.cursor import TokenCursor
from rewards.mathematics.expressions import ExpressionParser
from rewards.mathematics.tokens import MAX_CHARACTERS, Token, tokens_of
from rewards.mathematics.units import unit_of
from rewards.mathematics.values import (
    AbsurdError,
    Apply,
    Based,
    Bracket,
    Choice,
    Expression,
    Listing,
    MathError,
    Matrix,
    Name,
    Number,
    Quantity,
    Ratio,
    Relation,
    Scalar,
    Text,
    Union,
    Value,
    has_sign_choice,
    with_sign,
)

_RELATIONS = ("=", "<", ">", "<=", ">=", "!=")
_CURRENCIES = "$€£¥"
_OUTER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|textnormal|emph)\s*\{([^{}]*)\}\s*\.?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'\-]*(?:[ ,;/&]+[A-Za-z'\-]+)*[.!]?")
_CHOICE = re.compile(r"\(?\s*([A-Z])\s*\)?\s*[.:]?|\(\s*([a-zA-Z])\s*\)")
_BASED = re.compile(r"([0-9A-Za-z]+)\s*_\s*(?:\{\s*(\d{1,2})\s*\}|(\d)(?!\d))")
#: {x | 0 < x < 1}: a variable, perhaps said to be real, and what holds for it
_SET_BUILDER = re.compile(
    r"\\(?:\{|lbrace(?![a-zA-Z]))\s*[a-zA-Z]\s*(?:\\in\s*\\(?:mathbb|mathbf)\s*\{?R\}?)?\s*(?:\\mid(?![a-zA-Z])|\\[lr]?vert(?![a-zA-Z])"
    r"|\\colon(?![a-zA-Z])|[:|])(.+)\\(?:\}|rbrace(?![a-zA-Z]))",
    re.S,
)
_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMERALS = ["zero", *_ONES, *_TEENS, *(f"{ten}{one}" for ten in _TENS for one in ("", *(f"-{one}" for one in _ONES)))]
_POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
#: what names the value that follows, and is no variable
_LABEL = re.compile(
    r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*[A-Za-z]{2}[^{}]*(?:\b(?:is|are)\b|:)\s*\}|"
    r"(?:\\(?:text|textbf|mathrm|mbox)\s*\{[^{}=]*[A-Za-z]{2}[^{}=]*\}|[A-Z][a-z]{3,20}(?: [a-z]{2,20}){0,3})\s*="
)
_ABOUT = re.compile(r"\\approx(?![a-zA-Z])|\u2248")
_REALS = re.compile(r"(?:[a-z]\s*\\in\s*)?(?:\\(?:mathbb|mathbf|Bbb)\s*\{?\s*R\s*\}?|\u211d)|all reals?(?: numbers?)?")
#: words after a number that change it, or say that it is not the answer
_SCALES = "hundred thousand million billion trillion dozen half halves third thirds squared cubed factorial"
_DENIALS = "not no is isn't was wrong incorrect false minus plus times divided over negative less more than but except"
_NO_UNITS = frozenset(f"{_SCALES} {_DENIALS} maybe if unless to".split(" "))
_DENYING = frozenset(_DENIALS.split(" ")) - {"is", "was"}
_MAX_UNIT_WORDS = 5
_EMPTY = Listing((), braces=True)


def parse(text: str) -> Value:
    """The value of a text, without math delimiters around it.

    Raises:
      MathError: it is in no form that is read here.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        raise AbsurdError(f"it has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    if special := _special(text):
        return special
    if (label := _LABEL.match(text)) and text[label.end() :].strip() and not _denies(label[0]):
        return parse(text[label.end() :])
    if about := _ABOUT.search(text):
        return _exact(text[: about.start()], text[about.end() :])
    return _Parser(TokenCursor(tokens_of(text))).whole()


def _denies(label: str) -> bool:
    return not _DENYING.isdisjoint(re.findall(r"[a-z']+", label.lower()))


def _exact(exact: str, rounded: str) -> Value:
    """The exact value before its rounding, or the value of the variable before the sign."""
    value = parse(exact)
    is_named = isinstance(value, Choice) or (isinstance(value, Scalar) and isinstance(value.expression, Name))
    return parse(rounded) if is_named else value


def words_of(text: str) -> str:
    """A text as it is compared: lower case, single spaces, no full stop or quotes around it."""
    return " ".join(text.replace("\\ ", " ").strip(" .!\"'").lower().split())


def _special(text: str) -> Value | None:
    inner = text
    while match := _OUTER.fullmatch(inner):
        inner = match[1].strip()
    inner = re.sub(r"^\((\s*)\\(?:text|textbf|mathrm|mathbf)\s*\{\s*([A-Za-z])\s*\}(\s*)\)$", r"(\2)", inner)
    if match := _SET_BUILDER.fullmatch(re.sub(r"\\(?:left|right)(?![a-zA-Z])\s*", "", inner)):
        held = parse(match[1])
        if not isinstance(held, Relation):
            raise MathError("what holds for the members of the set is no inequality or equation")
        return held
    if _REALS.fullmatch(inner):
        return Bracket("(", (Scalar(Apply("negate", (Name("oo"),))), Scalar(Name("oo"))), ")")
    if (numeral := re.sub(r"(?<=ty) ", "-", words_of(inner))) in _NUMERALS:
        return Scalar(Number(Fraction(_NUMERALS.index(numeral))))
    if match := _CHOICE.fullmatch(inner):
        return Choice((match[1] or match[2]).upper())
    if (match := _BASED.fullmatch(inner)) and (match[1][0].isdigit() or int(match[2] or 0) > 10):
        digits, base = match[1].upper(), int(match[2] or match[3])
        if 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits):
            return Based(digits.lstrip("0") or "0", base)
        raise MathError(f"{digits} is no numeral of base {base}")
    if inner != text and re.search(r"\d", inner):
        return parse(inner)
    if inner != text and re.search(r"[A-Za-z]{2}", inner):
        return Text(words_of(inner))
    if _WORDS.fullmatch(inner) and re.search(r"[A-Za-z]{2}", inner) and inner not in ("pi", "oo", "infinity"):
        return Text(words_of(inner))
    return None


class _Parser:
    """Forms around expressions; every method reads what its name says and moves on."""

    def __init__(self, tokens: TokenCursor) -> None:
        self._tokens = tokens
        self._expressions = ExpressionParser(tokens)

    def whole(self) -> Value:
        if self._tokens.peek() is None:
            raise MathError("it is empty")
        value = self._listing()
        if token := self._tokens.peek():
            raise MathError(f"{token.text!r} is not understood where it stands")
        return value

    # Forms that hold values

    def _listing(self) -> Value:
        items = [self._union()]
        while self._separator():
            items.append(self._union())
        flat = [part for item in items for part in _flat(item)]
        return flat[0] if len(flat) == 1 else Listing(tuple(flat))

    def _separator(self) -> bool:
        if self._tokens.take_sign(",", ";"):
            self._tokens.take_word("and", "or")
            return True
        return self._tokens.take_word("and", "or")

    def _union(self) -> Value:
        parts = [self._relation()]
        while self._tokens.take_command("cup") or (
            isinstance(parts[-1], Bracket) and self._tokens.take_word("U", "union")
        ):
            parts.append(self._relation())
        return parts[0] if len(parts) == 1 else Union(tuple(parts))

    def _relation(self) -> Value:
        first = self._ratio()
        if self._tokens.take_command("in"):
            return self._union()
        sides, signs = [first], list[str]()
        while sign := self._tokens.take_sign(*_RELATIONS):
            signs.append(sign)
            sides.append(self._ratio())
        if not signs:
            return first
        return Relation(tuple(sides), tuple(signs))

    def _ratio(self) -> Value:
        parts = [self._item()]
        while self._tokens.take_sign(":") or (isinstance(parts[-1], Scalar) and self._tokens.take_word("to")):
            parts.append(self._item())
        return parts[0] if len(parts) == 1 else Ratio(tuple(parts))

    def _item(self) -> Value:
        if (currency := self._tokens.peek()) and currency.text in _CURRENCIES and currency.kind in ("sign", "command"):
            self._tokens.skip()
            return self._with_unit(self._scaled(self._expressions.sum()), currency.text)
        if self._tokens.is_sign("-") and (after := self._tokens.peek(1)) and after.text in _CURRENCIES:
            self._tokens.skip(2)
            return self._with_unit(Apply("negate", (self._expressions.sum(),)), after.text)
        return self._structure() or self._measured(self._expressions.sum())

    def _measured(self, expression: Expression) -> Value:
        """A number and what is said after it."""
        expression = self._scaled(expression)
        if self._tokens.take_sign("%"):
            return Quantity(expression, "%")
        words: list[str] = []
        while (token := self._tokens.peek()) and self._goes_on_unit(token, bool(words)):
            words.append(token.text)
            self._tokens.skip()
        if words:
            return self._with_unit(expression, " ".join(words).replace(" ^ ", "^"))
        if has_sign_choice(expression):
            return Listing(tuple(Scalar(with_sign(expression, sign)) for sign in (1, -1)))
        return Scalar(expression)

    def _scaled(self, expression: Expression) -> Expression:
        """A number times the millions that are said after it."""
        token = self._tokens.peek()
        if token is None or token.kind not in ("word", "text") or token.text.strip() not in _POWERS_OF_TEN:
            return expression
        self._tokens.skip()
        scale = Number(Fraction(10) ** _POWERS_OF_TEN[token.text.strip()])
        return Apply("multiply", (expression, scale))

    def _goes_on_unit(self, token: Token, has_begun: bool) -> bool:
        if token.kind == "text":
            return bool(token.text.strip()) and token.text.strip() not in ("and", "or", "to")
        if token.kind == "command":
            return token.text == "degree"
        if token.kind == "word":
            return token.text not in ("and", "or", "U", "union", "to")
        after = self._tokens.peek(1)
        if has_begun and token.text == "/":
            return after is not None and after.kind in ("word", "text")
        if has_begun and token.text == "^":
            return after is not None and (after.kind == "number" or after.text == "{")
        previous, before = (self._text_behind(back) for back in (1, 2))
        return has_begun and (
            (token.kind == "number" and previous in ("^", "{"))
            or (token.text == "{" and previous == "^")
            or (token.text == "}" and before == "{")
        )

    def _text_behind(self, back: int) -> str:
        token = self._tokens.behind(back)
        return token.text if token is not None else ""

    def _with_unit(self, expression: Expression, unit: str) -> Quantity:
        words = unit.lower().split()
        if len(words) > _MAX_UNIT_WORDS or not _NO_UNITS.isdisjoint(words):
            raise MathError(f"{unit!r} is no unit")
        return Quantity(expression, unit_of(unit))

    def _structure(self) -> Value | None:
        """A bracket with several items, a set, a matrix, the empty set; None if an expression begins here."""
        if self._tokens.take_command("emptyset"):
            return _EMPTY
        is_plain = self._tokens.is_sign("{") and self._holds_several()  # braces that group hold no comma
        if self._tokens.take_sign("{" if is_plain else r"\{"):
            if self._tokens.take_sign(r"\}"):
                return _EMPTY
            inner = self._listing()
            self._tokens.expect("}" if is_plain else r"\}")
            return Listing(inner.items if isinstance(inner, Listing) and not inner.braces else (inner,), braces=True)
        if self._tokens.take_command("begin"):
            return self._matrix()
        if bracketed := self._bracketed_matrix():
            return bracketed
        if self._tokens.is_sign("(") and not self._holds_several():
            return None
        left = "<" if self._tokens.take_command("langle") else self._tokens.take_sign("(", "[")
        if not left:
            return None
        items = [self._union()]
        while self._tokens.take_sign(",", ";"):
            items.append(self._union())
        right = ">" if left == "<" and self._tokens.take_command("rangle") else self._tokens.take_sign(")", "]")
        if not right or (left == "<") != (right == ">"):
            raise MathError(f"{left!r} is not closed")
        return Bracket(left, tuple(items), right)

    def _bracketed_matrix(self) -> Value | None:
        """A matrix whose brackets are written beside it."""
        after = self._tokens.peek(1)
        if after is None or (after.kind, after.text) != ("command", "begin"):
            return None
        left = self._tokens.take_sign("(", "[")
        if not left:
            return None
        self._tokens.skip()
        matrix = self._matrix()
        self._tokens.expect(")" if left == "(" else "]")
        return matrix

    def _holds_several(self) -> bool:
        """Whether a comma stands directly inside the bracket that begins here."""
        depth = 0
        for token in self._tokens.rest():
            if token.kind == "sign" and token.text in ("(", "[", "{", r"\{"):
                depth += 1
            elif token.kind == "sign" and token.text in (")", "]", "}", r"\}"):
                depth -= 1
                if not depth:
                    return False
            elif depth == 1 and token.kind == "sign" and token.text in (",", ";"):
                return True
        return False

    def _matrix(self) -> Value:
        name = self._tokens.braced_name()
        if name not in ("pmatrix", "bmatrix", "matrix", "array"):
            raise MathError(f"\\begin{{{name}}} is not read here")
        if name == "array":
            self._tokens.braced_name()
        rows: list[list[Value]] = [[]]
        while True:
            rows[-1].append(self._relation())
            if self._tokens.take_sign("&"):
                continue
            if self._tokens.take_command("\\") and not self._tokens.is_command("end"):
                rows.append([])
                continue
            if not self._tokens.take_command("end") or self._tokens.braced_name() != name:
                raise MathError(f"\\begin{{{name}}} is not closed")
            break
        if len({len(row) for row in rows}) != 1:
            raise MathError("rows of a matrix differ in length")
        return Matrix(tuple(tuple(row) for row in rows))


def _flat(value: Value) -> tuple[Value, ...]:
    """The two values of a plus-minus sign, as items of the list that they stand in."""
    return value.items if isinstance(value, Listing) and not value.braces else (value,)
