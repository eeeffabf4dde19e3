"""Check digits and checksums that tell a real number from one that only looks like it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_SUMS = (1, 0x2BC830A3)  # BIP 173, BIP 350
_BECH32_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_VIN_VALUES = dict(
    zip("0123456789ABCDEFGHJKLMNPRSTUVWXYZ", [*range(10), *range(1, 9), *range(1, 6), 7, 9, *range(2, 10)], strict=True)
)
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)

#: Country -> characters of its IBAN (SWIFT's registry).
IBAN_LENGTHS: Mapping[str, int] = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE", "18": "DK FI FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR", "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV", "29": "BR EG PS QA UA", "30": "JO KW MU YE", "31": "MT SC",
        "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def luhn(digits: str) -> bool:
    """Whether the last of the decimal digits checks the others (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def card(digits: str) -> bool:
    """Whether the digits are a payment card's: its network's prefix, its length and Luhn's check digit."""
    return card_prefix(digits) and luhn(digits) and len(set(digits)) > 1


def card_prefix(digits: str) -> bool:
    """Whether a network numbers its cards so: Visa, Mastercard, American Express, Discover, Diners, JCB, Maestro..."""
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    return (
        (digits[0] == "4" and length in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)
        or (two in (34, 37) and length == 15)
        or ((300 <= int(digits[:3]) <= 305 or two in (36, 38, 39)) and 14 <= length <= 19)
        or (3528 <= four <= 3589 and 16 <= length <= 19)
        or (four in (1800, 2131) and length == 15)
        or (two in (50, 56, 57, 58, 63, 67) and 12 <= length <= 19)
        or (two in (60, 62, 64, 65, 81) and 16 <= length <= 19)
    )


def iban(text: str) -> bool:
    """Whether letters and digits without spaces are an IBAN: its country's length, and 1 modulo 97 (ISO 13616)."""
    return IBAN_LENGTHS.get(text[:2].upper()) == len(text) and mod_97(text)


def mod_97(text: str) -> bool:
    """Whether the third and fourth of letters and digits check the others (ISO/IEC 7064, MOD 97-10)."""
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def social_security_number(digits: str) -> bool:
    """Whether nine digits can be an SSN: the areas 000, 666 and 900 to 999 and the zero groups were never given out."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def base58check(text: str) -> bool:
    """Whether the last four bytes are the double SHA-256 of those before (addresses of Bitcoin and its kin)."""
    value = 0
    for character in text:
        place = _BASE58.find(character)
        if place < 0:
            return False
        value = value * 58 + place
    content = value.to_bytes(len(text), "big").lstrip(b"\0")
    content = b"\0" * (len(text) - len(text.lstrip("1"))) + content
    if len(content) != 25:
        return False
    return hashlib.sha256(hashlib.sha256(content[:-4]).digest()).digest()[:4] == content[-4:]


def bech32(text: str) -> bool:
    """Whether a SegWit address has a right checksum (BIP 173 and BIP 350)."""
    prefix, _, data = text.lower().rpartition("1")
    values = [_BECH32.find(character) for character in data]
    if not prefix or len(data) < 6 or -1 in values:
        return False
    total = 1
    for value in [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *values]:
        top, total = total >> 25, (total & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATORS):
            total ^= generator if top >> bit & 1 else 0
    return total in _BECH32_SUMS


def vehicle(text: str) -> bool:
    """Whether 17 characters are a VIN with a right check digit (ISO 3779, as North America uses it)."""
    values = [_VIN_VALUES.get(character, -1) for character in text.upper()]
    if len(values) != 17 or -1 in values:
        return False
    left = sum(value * weight for value, weight in zip(values, _VIN_WEIGHTS, strict=True)) % 11
    return text[8].upper() == ("X" if left == 10 else str(left))
