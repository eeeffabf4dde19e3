"""API keys: 256 random bits behind a prefix, with a checksum by which a secret scanner knows a real one.

A key is `weir_sk_`, 43 characters of base 62 and 6 more for the CRC-32 of all before them. GitHub's tokens have this
form, for the same reason: https://github.blog/engineering/behind-githubs-new-authentication-token-formats/
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from collections.abc import Callable

PREFIX = "weir_sk_"
#: What a secret scanner looks for.
PATTERN = re.compile(r"weir_sk_[0-9A-Za-z]{49}")

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_BYTES, _RANDOM_DIGITS, _CHECK_DIGITS = 32, 43, 6
_LENGTH = len(PREFIX) + _RANDOM_DIGITS + _CHECK_DIGITS


def new_key(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A new key; `random_bytes(n)` gives n bytes that nobody can guess."""
    number = int.from_bytes(random_bytes(_RANDOM_BYTES), "big")
    begun = PREFIX + _base62(number, _RANDOM_DIGITS)
    return begun + _check(begun)


def is_well_formed(key: str) -> bool:
    """Whether a text has the form of a key, checksum included; says nothing about whether there is such a key."""
    return (
        len(key) == _LENGTH
        and PATTERN.fullmatch(key) is not None
        and key[-_CHECK_DIGITS:] == _check(key[:-_CHECK_DIGITS])
    )


def new_key_id() -> str:
    """A name for a key, which is no secret."""
    return f"key_{secrets.token_hex(6)}"


def _check(begun: str) -> str:
    return _base62(zlib.crc32(begun.encode()), _CHECK_DIGITS)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
