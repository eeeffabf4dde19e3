"""Arithmetic as answers are written: sums, products side by side, powers, roots, fractions, functions.

Recursive descent over tokens. Each method reads what its name says and moves on.
"""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.cursor import TokenCursor
from rewards.mathematics.tokens import Token
from rewards.mathematics.units import is_unit
from rewards.mathematics.values import Apply, Expression, MathError, Name, Number

_TRIGONOMETRIC = ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"]
_OTHER = "log ln exp lg sqrt abs floor ceil max min gcd lcm"
_FUNCTIONS = frozenset([*_TRIGONOMETRIC, *_OTHER.split(" ")])
_INVERSE = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_LOWER_GREEK = "alpha beta gamma delta epsilon varepsilon zeta eta theta lambda mu nu rho sigma tau phi varphi psi"
_UPPER_GREEK = "omega chi kappa ell Delta Omega Gamma Lambda Sigma Phi Psi"
_GREEK = frozenset(f"{_LOWER_GREEK} {_UPPER_GREEK}".split(" "))
_DEGREE = Apply("divide", (Name("pi"), Number(Fraction(180))))
_MINUS_ONE = Apply("negate", (Number(Fraction(1)),))


class ExpressionParser:
    """Reads expressions from tokens; `rewards.mathematics.parser` reads the forms around them."""

    def __init__(self, tokens: TokenCursor) -> None:
        self._tokens = tokens
        self._in_bars = 0
        self._in_angle = False

    def sum(self) -> Expression:
        value = self._term()
        while True:
            if sign := self._tokens.take_sign("+", "-"):
                following = self._term()
                value = Apply("add", (value, following if sign == "+" else Apply("negate", (following,))))
            elif command := self._tokens.take_command("pm", "mp"):
                value = Apply("plusminus" if command == "pm" else "minusplus", (value, self._term()))
            else:
                return value

    def _term(self) -> Expression:
        value = self._signed()
        while True:
            if self._tokens.take_sign("*"):
                value = Apply("multiply", (value, self._signed()))
            elif self._tokens.take_sign("/"):
                value = Apply("divide", (value, self._signed()))
            elif _begins_factor(self._tokens, in_bars=bool(self._in_bars)):
                value = self._joined(value)
            else:
                return value

    def _joined(self, value: Expression) -> Expression:
        """Factors side by side; a whole number before a fraction of numbers is a mixed number."""
        token, before = self._tokens.peek(), self._tokens.behind()
        assert token is not None
        assert before is not None
        is_whole = before.kind == "number" and isinstance(value, Number | Apply) and "." not in before.text
        if token.kind == "number" and before.text == "!":
            return Apply("multiply", (value, self._power()))
        if token.kind == "number":
            fraction = _plain_fraction(self._tokens)
            if not (is_whole and token.spaced and fraction is not None and _is_whole(value)):
                raise MathError("two numbers stand side by side")
            return _mixed(value, fraction)
        following = self._power()
        match following:
            case Apply("divide", parts) if is_whole and token.text == "frac" and all(map(_is_whole, (value, *parts))):
                return _mixed(value, following)
        return Apply("multiply", (value, following))

    def _signed(self) -> Expression:
        if self._tokens.take_sign("-"):
            return Apply("negate", (self._signed(),))
        if self._tokens.take_sign("+"):
            return self._signed()
        if command := self._tokens.take_command("pm", "mp"):
            return Apply("plusminus" if command == "pm" else "minusplus", (self._signed(),))
        return self._power()

    def _power(self) -> Expression:
        value = self._postfixed(self._primary())
        if not self._tokens.is_sign("^"):
            return value
        if (after := self._tokens.peek(1)) and after.text in ("circ", "degree"):
            self._tokens.skip(2)
            return self._degrees(value)
        if after and after.text == "{" and (inner := self._tokens.peek(2)) and inner.text in ("circ", "degree"):
            self._tokens.skip(3)
            self._tokens.expect("}")
            return self._degrees(value)
        self._tokens.skip()
        exponent = self._signed() if self._tokens.is_sign("-") else self._argument()
        if self._tokens.is_sign("^"):
            exponent = Apply("power", (exponent, self._after_power()))
        return self._postfixed(Apply("power", (value, exponent)))

    def _after_power(self) -> Expression:
        self._tokens.expect("^")
        exponent = self._argument()
        return Apply("power", (exponent, self._after_power())) if self._tokens.is_sign("^") else exponent

    def _degrees(self, value: Expression) -> Expression:
        if self._in_angle:
            return Apply("multiply", (value, _DEGREE))
        # The unit is read after the number that it measures.
        self._tokens.insert(Token("command", "degree"))
        return value

    def _postfixed(self, value: Expression) -> Expression:
        while self._tokens.take_sign("!"):
            value = Apply("factorial", (value,))
        if self._in_angle and self._tokens.take_command("degree"):
            return Apply("multiply", (value, _DEGREE))
        return value

    def _argument(self) -> Expression:
        """What follows ^, \\frac or \\sqrt: a group in braces, or one digit, letter or command."""
        if self._tokens.is_sign("{"):
            return self._group("{", "}")
        token = self._tokens.peek()
        if token is not None and token.kind == "number":
            # In LaTeX `\\frac12` and `x^23` take a digit each; in plain text `2^10` takes the number.
            is_plain = (before := self._tokens.behind()) is not None and before.text == "^"
            if not is_plain and len(token.text) > 1 and token.text.isdigit():
                self._tokens.replace(Token("number", token.text[1:], Fraction(token.text[1:])))
                return Number(Fraction(token.text[0]))
        return self._primary()

    def _group(self, left: str, right: str) -> Expression:
        self._tokens.expect(left)
        bars, self._in_bars = self._in_bars, 0
        value = self.sum()
        self._in_bars = bars
        self._tokens.expect(right)
        return value

    def _primary(self) -> Expression:
        token = self._tokens.next()
        match token.kind:
            case "number":
                assert token.value is not None
                return self._repeating(token) if self._tokens.take_command("overline") else Number(token.value)
            case "word":
                return self._word(token)
            case "command":
                return self._command(token)
            case "sign" if token.text == "(":
                self._tokens.back()
                return self._group("(", ")")
            case "sign" if token.text == "{":
                self._tokens.back()
                return self._group("{", "}")
            case "sign" if token.text == "|":
                self._in_bars += 1
                value = self.sum()
                self._in_bars -= 1
                self._tokens.expect("|")
                return Apply("abs", (value,))
            case "text" if token.text.strip() in ("i", "e"):
                return Name(token.text.strip())
        raise MathError(f"{token.text!r} is not understood where it stands")

    def _repeating(self, token: Token) -> Expression:
        self._tokens.expect("{")
        digits = self._tokens.next().text
        self._tokens.expect("}")
        if not digits.isdigit() or "." not in token.text:
            raise MathError("digits under a line repeat only after a decimal point")
        places = len(token.text.partition(".")[2])
        assert token.value is not None
        return Number(token.value + Fraction(int(digits), (10 ** len(digits) - 1) * 10**places))

    def _word(self, token: Token) -> Expression:
        text = token.text
        if text in _FUNCTIONS or text in _INVERSE:
            return self._function(_INVERSE.get(text, text))
        if text == "pi":
            return Name("pi")
        if text in ("oo", "inf", "infinity", "Infinity"):
            return Name("oo")
        if len(text) > 3 or (len(text) > 1 and self._stands_by_words()):
            raise MathError(f"the word {text!r} is not understood where it stands")
        if len(text) > 1:
            # Letters side by side are a product; only the first is this factor.
            self._tokens.split([Token("word", letter, spaced=False) for letter in text])
            return self._subscripted(text[0])
        return self._subscripted(text)

    def _stands_by_words(self) -> bool:
        """Whether the word just read has other words beside it, as in a sentence."""
        around = [self._tokens.behind(2), self._tokens.peek()]
        return any(token is not None and token.kind == "word" and token.text not in ("and", "or") for token in around)

    def _subscripted(self, name: str) -> Expression:
        if self._tokens.take_sign("_"):
            name += "_" + (self._tokens.braced_name() if self._tokens.is_sign("{") else self._tokens.next().text)
        if self._tokens.take_sign("'"):
            name += "'"
        follows = [token.text if (token := self._tokens.peek(ahead)) else "" for ahead in range(3)]
        if name in ("f", "g", "h", "p", "P") and follows[0] == "(" and follows[2] == ")" and follows[1].isalnum():
            self._tokens.skip(3)
            name += f"({follows[1]})"
        return Name(name)

    def _command(self, token: Token) -> Expression:
        match token.text:
            case "frac" | "binom" as name:
                top = self._argument()
                return Apply("divide" if name == "frac" else "binomial", (top, self._argument()))
            case "sqrt":
                return self._root()
            case "pi":
                return Name("pi")
            case "infty":
                return Name("oo")
            case "angle" if (named := self._tokens.peek()) and named.kind == "word" and len(named.text) <= 3:
                self._tokens.skip()
                return Name(f"angle {named.text}")
            case "lfloor" | "lceil" as name:
                value = self.sum()
                if not self._tokens.take_command("r" + name[1:]):
                    raise MathError(f"\\{name} is not closed")
                return Apply("floor" if name == "lfloor" else "ceil", (value,))
            case name if name in _FUNCTIONS:
                return self._function(name)
            case name if name in _GREEK:
                return self._subscripted(name)
            case "ldots" | "dots" | "cdots" | "vdots":
                raise MathError("it leaves something out (\\ldots)")
        raise MathError(f"\\{token.text} is not read here")

    def _root(self) -> Expression:
        if self._tokens.take_sign("["):
            degree = self.sum()
            self._tokens.expect("]")
            return Apply("root", (self._argument(), degree))
        if self._tokens.is_sign("("):
            return Apply("sqrt", (self._group("(", ")"),))
        return Apply("sqrt", (self._argument(),))

    def _function(self, name: str) -> Expression:
        if name == "sqrt":
            return self._root()
        base: Expression | None = None
        power: Expression | None = None
        if name == "log" and self._tokens.take_sign("_"):
            base = self._argument()
        if self._tokens.take_sign("^"):
            power = self._argument()
            if power == _MINUS_ONE and f"arc{name}" in _FUNCTIONS:
                name, power = f"arc{name}", None
            if isinstance(power, Apply):
                raise MathError(f"a power of {name} is read with parentheses only")
        if name in ("max", "min", "gcd", "lcm"):
            raise MathError(f"{name} is not carried out")
        outer, self._in_angle = self._in_angle, name in _TRIGONOMETRIC
        argument = self._group("(", ")") if self._tokens.is_sign("(") else self._bare_argument()
        self._in_angle = outer
        value = Apply(name, (argument,) if base is None else (argument, base))
        return value if power is None else Apply("power", (value, power))

    def _bare_argument(self) -> Expression:
        """`sin 2x`: the factors that follow without a sign between them, up to the next function."""
        value = self._power()
        while _begins_factor(self._tokens, in_bars=bool(self._in_bars)) and not _begins_function(self._tokens):
            value = self._joined(value)
        return value


def _plain_fraction(tokens: TokenCursor) -> Expression | None:
    top, slash, bottom = tokens.peek(), tokens.peek(1), tokens.peek(2)
    if not (top and slash and bottom and slash.text == "/" and bottom.kind == "number"):
        return None
    tokens.skip(3)
    assert top.value is not None
    assert bottom.value is not None
    return Apply("divide", (Number(top.value), Number(bottom.value)))


def _begins_factor(tokens: TokenCursor, *, in_bars: bool) -> bool:
    """Whether a factor without a sign before it comes next; a bar begins none where it would end one."""
    token = tokens.peek()
    if token is None:
        return False
    match token.kind:
        case "number":
            return True
        case "word":
            return _is_name_run(token, tokens.behind())
        case "command":
            return token.text in ("frac", "sqrt", "binom", "pi", "overline", "mathrm") or (
                token.text in _FUNCTIONS or token.text in _GREEK or token.text in ("lfloor", "lceil", "infty")
            )
        case "sign":
            return token.text in ("(", "{") or (token.text == "|" and not in_bars)
    return False


def _is_name_run(token: Token, previous: Token | None) -> bool:
    """Whether letters are variables side by side, and not a word or a unit."""
    text = token.text
    if text in ("and", "or", "U", "union", "in"):
        return False
    if text in _FUNCTIONS or text in _INVERSE or text in ("pi", "sqrt"):
        return True
    if len(text) == 1:
        return True
    follows_number = previous is not None and previous.kind == "number"
    return len(text) <= 3 and not (follows_number and is_unit(text)) and not (token.spaced and follows_number)


def _begins_function(tokens: TokenCursor) -> bool:
    token = tokens.peek()
    return token is not None and (token.text in _FUNCTIONS or token.text in _INVERSE)


def _is_whole(expression: Expression) -> bool:
    if isinstance(expression, Apply) and expression.function == "negate":
        expression = expression.parts[0]
    return isinstance(expression, Number) and expression.value.denominator == 1


def _mixed(whole: Expression, fraction: Expression) -> Expression:
    is_negative = isinstance(whole, Apply)
    return Apply("add", (whole, Apply("negate", (fraction,)) if is_negative else fraction))
