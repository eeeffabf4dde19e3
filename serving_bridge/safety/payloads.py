"""Text that hides in a text: base64, base32, hexadecimal, binary, percent, entities, escapes."""

from __future__ import annotations

import base64
import binascii
import html
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from serving_bridge.safety.linear import PatternSet

#: Encodings in encodings that are opened, and characters that all payloads of one text may have.
MAX_DEPTH = 2
MAX_DECODED = 256 << 10
_MAX_PAYLOADS = 200
_MIN_PRINTABLE = 0.97

_PATTERNS: Mapping[str, str] = {
    "base64": r"[A-Za-z0-9+/_-]{16,}={0,2}",
    "base64 in lines": r"(?:[A-Za-z0-9+/]{40,76}\r?\n)+[A-Za-z0-9+/]{1,76}={0,2}",
    "base32": r"\b[A-Z2-7]{24,}={0,6}",
    "hexadecimal": r"\b(?:0x)?(?:[0-9A-Fa-f]{2}[ :,-]?){7,}[0-9A-Fa-f]{2}",
    "binary": r"\b(?:[01]{8}[ ,]?){5,}[01]{8}",
    "escapes": r"[!-~]{0,100}(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4})[!-~]*",
    "percent": r"[A-Za-z0-9._~+=&?:/@-]{0,100}%[0-9A-Fa-f]{2}[A-Za-z0-9._~+%=&?:/@-]*",
    "entities": r"[A-Za-z0-9._+@-]{0,100}&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|"
    r"[a-z]{2,8});(?:[A-Za-z0-9._+@-]{0,30}(?:&#?[A-Za-z0-9]{1,8};)?){0,30}",
}


@dataclass(frozen=True)
class Payload:
    """A stretch of a folded text and what it decodes to.

    Attributes:
      encoding: its name in words.
      start, end: characters of the folded text.
      text: what was hidden.
    """

    encoding: str
    start: int
    end: int
    text: str


def payloads(text: str) -> Iterator[Payload]:
    """The stretches of a folded text that decode to readable text; at most `MAX_DECODED` characters together."""
    left = MAX_DECODED
    for count, match in enumerate(_set().matches(text)):
        if count == _MAX_PAYLOADS or left <= 0:
            return
        content = text[match.start : match.end][: 4 * left]
        decoded = _DECODERS[match.name](content)
        if decoded is not None and decoded != content and _is_readable(decoded):
            left -= len(decoded)
            yield Payload(match.name, match.start, match.end, decoded)


def rotated(text: str) -> str:
    """The text in rot13, which is its own inverse."""
    return text.translate(_ROT13)


_LOW, _HIGH = "abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm"
_ROT13 = str.maketrans(_LOW + _LOW.upper(), _HIGH + _HIGH.upper())


@cache
def _set() -> PatternSet:
    return PatternSet(_PATTERNS)


def _is_readable(text: str) -> bool:
    good = sum(character.isprintable() or character in "\t\r\n" for character in text)
    return len(text) >= 3 and good >= _MIN_PRINTABLE * len(text)


def _utf8(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _base64(content: str) -> str | None:
    bare = re.sub(r"\s", "", content).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    if bare.isalpha() and (bare.islower() or len(bare) < 20):  # a long word
        return None
    for cut in (bare, bare[: len(bare) // 4 * 4]):
        try:
            return _utf8(base64.b64decode(cut + "=" * (-len(cut) % 4), validate=True))
        except binascii.Error:
            continue
    return None


def _base32(content: str) -> str | None:
    bare = content.rstrip("=")
    try:
        return _utf8(base64.b32decode(bare + "=" * (-len(bare) % 8)))
    except binascii.Error:
        return None


def _hexadecimal(content: str) -> str | None:
    return _utf8(bytes.fromhex(re.sub(r"[^0-9A-Fa-f]", "", content.removeprefix("0x"))))


def _binary(content: str) -> str | None:
    bits = re.sub(r"[^01]", "", content)
    return _utf8(bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)))


def _escapes(content: str) -> str | None:
    found = re.sub(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})", lambda m: chr(int(m[1] or m[2], 16)), content)
    return None if any("\ud800" <= character <= "\udfff" for character in found) else found


def _percent(content: str) -> str | None:
    try:
        return urllib.parse.unquote(content, errors="strict")
    except UnicodeDecodeError:
        return None


_DECODERS: Mapping[str, Callable[[str], str | None]] = {
    "base64": _base64,
    "base64 in lines": _base64,
    "base32": _base32,
    "hexadecimal": _hexadecimal,
    "binary": _binary,
    "escapes": _escapes,
    "percent": _percent,
    "entities": html.unescape,
}
