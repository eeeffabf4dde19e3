"""From the text of a final answer, LaTeX or plain, to tokens; sizes are bounded before anything else looks at it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.mathematics.values import AbsurdError, MathError

MAX_CHARACTERS = 1000
MAX_TOKENS = 400
_MAX_DIGITS = 60
_MAX_DEPTH = 40

_UNICODE = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "*",
        "\u00b7": "*",
        "\u22c5": "*",
        "\u2217": "*",
        "\u00f7": "/",
        "\u221e": r"\infty ",
        "\u03c0": r"\pi ",
        "\u221a": r"\sqrt ",
        "\u2264": "<=",
        "\u2265": ">=",
        "\u2260": "!=",
        "\u00b1": r"\pm ",
        "\u2213": r"\mp ",
        "\u00b0": r"\degree ",
        "\u222a": r"\cup ",
        "\u2208": r"\in ",
        "\u2205": r"\emptyset ",
        "\u00bd": r"\frac{1}{2}",
        "\u00bc": r"\frac{1}{4}",
        "\u00be": r"\frac{3}{4}",
        "\u03b8": r"\theta ",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "\u27e8": r"\langle ",
        "\u27e9": r"\rangle ",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\uff0c": ",",
        "\uff05": "%",
    }
)
_WIDE = {0xFF01 + place: chr(0x21 + place) for place in range(94)}
#: spacing and layout that means nothing
_NOTHING = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr)(?![a-zA-Z])(?:\.(?!\d))?"
    r"|(?<!\\)\\[,;:!> ]|\\q?quad(?![a-zA-Z])|~|\\(?:par|noindent|hfill)(?![a-zA-Z])"
)
#: blanks and braced commas between groups of three digits are no separators of values; `1 234/567` is a mixed number
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:\\[,!;]|\{,\}|,\\! ?|\\ | )\d{3})+)(?!\d)(?!\s*/)")
#: exponents as single characters, which Unicode has for each digit
_RAISED = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_DIGITS = str.maketrans("\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "+-0123456789")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(?:[eE]([+-]?\d{1,4})(?![\w.]))?")
#: dots over the first and the last of the digits that repeat, as British books write them
_DOTS = re.compile(r"(?<=[.\d])\\dot\s*(?:\{(\d)\}|(\d))(?:(\d*)\\dot\s*(?:\{(\d)\}|(\d)))?", re.ASCII)
#: decimals that go on as they have begun: three equal digits, or a group twice
_GOES_ON = re.compile(
    r"(\d{1,40}\.\d{0,40}?)(?:(\d)\2{2,40}|(\d{2,20}?)\3{1,20})\s*(?:\.\.\.|\u2026|\\(?:l|c)?dots(?![a-zA-Z]))",
    re.ASCII,
)
_SIGN_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*(\\?[$%])\s*\}")
_REPEATING = re.compile(r"(\d{1,40})\.(?=\s*\\overline)", re.ASCII)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d])(\.\d+)?")
_TEXT = re.compile(r"\\(text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|textnormal|mathsf|emph)\s*\{")
_COMMAND = re.compile(r"\\([a-zA-Z]+|[{}$%|\\#&_])")
_WORD = re.compile(r"[A-Za-z]+")
_SIGNS = ("<=", ">=", "!=", "==", "**", "=<")
_MEANING = {"==": "=", "**": "^", "=<": "<="}
_COMMANDS = {
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "leq": "<=",
    "le": "<=",
    "leqslant": "<=",
    "geq": ">=",
    "ge": ">=",
    "geqslant": ">=",
    "lt": "<",
    "gt": ">",
    "neq": "!=",
    "ne": "!=",
    "{": r"\{",
    "}": r"\}",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "%": "%",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "colon": ":",
    "lbrack": "[",
    "rbrack": "]",
    "degree": "degree",
    "circ": "circ",
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "varnothing": "emptyset",
    "sup": "sup",
}


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
      kind: "number", "word" (letters), "text" (what a text command holds), "command" (LaTeX), "sign".
      spaced: blanks stand before it.
    """

    kind: str
    text: str
    value: Fraction | None = None
    spaced: bool = False


def tokens_of(text: str) -> list[Token]:
    """The tokens of a text without its math delimiters.

    Raises:
      MathError: a character that is not read here.
      AbsurdError: it is too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise AbsurdError(f"it has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    text = _RAISED.sub(_exponent, text).translate(_WIDE | _UNICODE)
    text = _SIGN_IN_TEXT.sub(r"\1", text)
    text = _GOES_ON.sub(lambda match: f"{match[1]}\\overline{{{match[2] or match[3]}}}", text)
    text = _GROUPED.sub(lambda match: match[1] + re.sub(r"\D", "", match[2]), text)
    text = _DOTS.sub(lambda match: f"\\overline{{{''.join(part or '' for part in match.groups())}}}", text)
    text = _NOTHING.sub(" ", text)
    found: list[Token] = []
    position, depth, spaced = 0, 0, False
    while position < len(text):
        if text[position].isspace():
            position, spaced = position + 1, True
            continue
        token, position = _next(text, position, depth, spaced)
        depth += (token.text in ("(", "[", "{", r"\{")) - (token.text in (")", "]", "}", r"\}"))
        if depth > _MAX_DEPTH:
            raise AbsurdError(f"its brackets are nested more than {_MAX_DEPTH} deep")
        if len(found) == MAX_TOKENS:
            raise AbsurdError(f"it has more than {MAX_TOKENS} parts")
        found.append(token)
        spaced = False
    return found


def _exponent(match: re.Match[str]) -> str:
    digits = match[0].translate(_DIGITS).removeprefix("+")
    return f"^{digits}" if len(digits) == 1 else f"^{{{digits}}}"


def _next(text: str, position: int, depth: int, spaced: bool) -> tuple[Token, int]:
    if match := _TEXT.match(text, position):
        end = text.find("}", match.end())
        if end < 0 or "{" in text[match.end() : end]:
            raise MathError(f"\\{match[1]}{{ is not closed, or holds braces")
        return Token("text", text[match.end() : end], spaced=spaced), end + 1
    if match := _COMMAND.match(text, position):
        name = _COMMANDS.get(match[1], match[1])
        kind = (
            "sign"
            if name in ("*", "/", "<=", ">=", "<", ">", "!=", r"\{", r"\}", "%", "|", ":", "[", "]")
            else "command"
        )
        return Token(kind, name, spaced=spaced), match.end()
    if match := _REPEATING.match(text, position):
        return Token("number", match[1] + ".", Fraction(match[1]), spaced), match.end()
    if text[position].isdigit() or (text[position] == "." and text[position + 1 : position + 2].isdigit()):
        return _number(text, position, depth, spaced)
    if match := _WORD.match(text, position):
        return Token("word", match[0], spaced=spaced), match.end()
    if text.startswith("...", position):
        raise MathError("it leaves something out (...)")
    for sign in _SIGNS:
        if text.startswith(sign, position):
            return Token("sign", _MEANING.get(sign, sign), spaced=spaced), position + len(sign)
    if text[position] in "+-*/^_=<>()[]{},;:|!%&$€£¥'":
        return Token("sign", text[position], spaced=spaced), position + 1
    raise MathError(f"{text[position]!r} is not read here")


def _number(text: str, position: int, depth: int, spaced: bool) -> tuple[Token, int]:
    # Between brackets a comma separates: (1,234) is a pair.
    match = _THOUSANDS.match(text, position) if depth == 0 else None
    digits, exponent = (match[0].replace(",", ""), None) if match else ("", None)
    if match is None:
        match = _NUMBER.match(text, position)
        if match is None:
            raise MathError(f"{text[position]!r} is not read here")
        digits, exponent = match[1], match[2]
    if len(digits) > _MAX_DIGITS or abs(int(exponent or 0)) > _MAX_DIGITS:
        raise AbsurdError(f"a number has more than {_MAX_DIGITS} digits")
    if not digits.isascii():
        raise MathError("its digits are not 0 to 9")
    value = Fraction(digits) * Fraction(10) ** int(exponent or 0)
    return Token("number", digits, value, spaced), match.end()
