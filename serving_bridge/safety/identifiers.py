"""Personal data that is made of letters and digits: mail, networks, banks, wallets, labelled ids."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from serving_bridge.safety import checksums
from serving_bridge.safety.cues import cue
from serving_bridge.safety.decisions import Kind
from serving_bridge.safety.found import Found
from serving_bridge.safety.linear import PatternSet
from serving_bridge.safety.numbers import is_sum

_LOCAL = r"[A-Za-z0-9_\x01](?:[A-Za-z0-9._%+'\x01-]{0,62}[A-Za-z0-9_+\x01-])?"
_LABEL = r"[A-Za-z0-9\x01](?:[A-Za-z0-9\x01-]{0,61}[A-Za-z0-9\x01])?"
_TOP = r"(?:com|org|net|edu|gov|mil|info|biz|io|ai|co|me|dev|app|uk|us|de|fr|es|it|nl|be|ch|at|eu|ca|au|nz|in|"
r"jp|cn|br|"
_TOP += r"ru|pl|se|no|dk|fi|pt|gr|cz|ie|mx|za|kr|sg|hk|tw|il|tr|online|site|xyz|tech|email|name|pro)"
_AT = r"(?:[\[({<] ?(?:at|@) ?[\])}>])"
_DOT = r"(?:[\[({<] ?(?:dot|\.) ?[\])}>]|\.)"
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP_DOT = r"(?: ?[\[({<] ?(?:dot|\.) ?[\])}>] ?|\.| dot )"
_DATE = r"(?:\d{1,4}[-/. ]\d{1,2}[-/. ]\d{1,4}|\d{1,2}(?:st|nd|rd|th)?[ ,.]{1,2}[A-Za-z]{3,9}[ ,.]{1,3}\d{2,4}"
_DATE += r"|[A-Za-z]{3,9}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{2,4})"
_LINK = r"(?: ?(?:number|no\.?|num\.?|#|id|code))?\s{0,3}(?:is|was|are|:|=|#|-)?[\s:#\"'(]{0,4}"

_PATTERNS: Mapping[str, str] = {
    "email": rf"{_LOCAL}@(?:{_LABEL}\.){{1,8}}[A-Za-z\x01]{{2,24}}",
    "email of a host": rf"{_LOCAL}@\[?{_OCTET}(?:\.{_OCTET}){{3}}\]?",
    "email in brackets": rf"{_LOCAL}\s{{0,2}}{_AT}\s{{0,2}}{_LABEL}(?:\s?{_DOT}\s?{_LABEL}){{0,4}}"
    rf"(?:\s?{_DOT}\s?| dot )[A-Za-z]{{2,12}}\b",
    "email in words": rf"{_LOCAL}(?: (?:dot|underscore|dash) [A-Za-z0-9]{{1,30}}){{0,3}} (?:at|@) {_LABEL}"
    rf"(?: (?:dot|dash) {_LABEL}){{0,4}} dot {_TOP}\b",
    "email with spaces": rf"{_LOCAL}\s{{1,2}}@\s{{0,2}}{_LABEL}(?:\.{_LABEL}){{0,4}}\.{_TOP}\b",
    "email with gaps": rf"{_LOCAL}\s{{0,2}}@\s{{0,2}}{_LABEL}(?:\s?\.\s?{_LABEL}){{0,4}}\s\.\s?{_TOP}\b",
    "email with gaps after": rf"{_LOCAL}\s{{0,2}}@\s{{1,2}}{_LABEL}(?:\.{_LABEL}){{0,4}}\.{_TOP}\b",
    "email spaced out": r"\b(?:[a-z0-9._+-] ){2,40}@(?: [a-z0-9-]){1,40}(?: \.(?: [a-z0-9-]){1,30}){0,3} \."
    r"(?: [a-z]){2,8}\b",
    "ip": rf"{_OCTET}(?:{_IP_DOT}{_OCTET}){{3}}",
    "ip6": r"[0-9a-f]{0,4}:[0-9a-f:]{1,37}(?:\d{1,3}(?:\.\d{1,3}){3})?",
    "mac": r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}",
    "mac in dots": r"\b[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}\b",
    "iban": r"\b[a-z]{2}[ -]?\d[ -]?\d(?:[ -]{0,2}[a-z0-9]){11,30}",
    "base58": r"\b[13LMDXAt][1-9A-HJ-NP-Za-km-z]{25,34}\b",
    "bech32": r"\b(?:bc|tb|ltc|bcrt)1[02-9ac-hj-np-z]{11,71}\b",
    "ether": r"\b0x[0-9a-f]{40}\b",
    "monero": r"\b4[0-9AB][1-9A-HJ-NP-Za-km-z]{93}\b",
    "vehicle": r"\b[A-HJ-NPR-Z0-9]{17}\b",
    "coordinates": r"[(\[]?-?\d{1,2}\.\d{4,16}\s?,\s?-?\d{1,3}\.\d{4,16}[)\]]?",
    "birth": rf"\b(?:d\.?o\.?b\.?|date of birth|birth ?date|birthday|born(?: on)?)(?: is|"
    rf" was)?[\s:=(]{{1,4}}({_DATE})",
    "account": r"\b(?:account|acct|a/c|routing|sort code|aba|swift|bic|customer|member(?:ship)?|policy|patient|"
    rf"medical record|mrn|insurance|employee|iban)(?:'s)?\b{_LINK}([A-Z0-9][A-Z0-9-]{{4,33}})",
    "national": r"\b(?:passport|driver'?s?'? licen[sc]e|driving licen[sc]e|licen[sc]e|tax(?:payer)?|national|identity"
    r"(?: card)?|identification|voter|nhs|national insurance|aadhaar|aadhar|pan card|pesel|curp|cpf|nric|"
    r"medicare|social insurance"
    rf"|id card)(?: number| no\.?| id| card)?\b{_LINK}([A-Z0-9][A-Z0-9 -]{{4,22}}[A-Z0-9])",
    "national in short": rf"\b(?:ITIN|TIN|EIN|NIN|FIN|DNI|NIE|NIF|SIN|ABN|TFN|ACN|CNPJ|RUT|BSN|UEN)\b{_LINK}"
    r"([A-Z0-9][A-Z0-9 .-]{4,22}[A-Z0-9])",
    "security code": r"\b(?:cvv2?|cvc2?|card verification|security code)(?: number| code)?\s{0,2}(?:is|:|=|"
    r"-)?\s{0,2}(\d{3,4})\b",
    "national by form": r"\b(?:9\d{2}-[5-9]\d-\d{4}|[A-CEGHJ-PR-TW-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]|"
    r"\d{3}\.\d{3}\.\d{3}-\d{2}"
    r"|[A-Z]{5}\d{4}[A-Z]|[STFG]\d{7}[A-Z])\b",
    "bank by form": r"\b[A-Z]{4}(?:AD|AE|AT|AU|BE|BG|BR|CA|CH|CN|CY|CZ|DE|DK|EE|ES|FI|FR|GB|GR|HK|HR|HU|IE|IL|"
    r"IN|IT|JP|KR|LT|"
    r"LU|LV|MT|MX|NL|NO|NZ|PL|PT|RO|RU|SE|SG|SI|SK|TR|UA|US|ZA)[A-Z0-9]{2}(?:[A-Z0-9]{3})?\b",
}
#: In capitals and without gaps, or in fours.
_WHOLE_IBAN = re.compile(r"[A-Z]{2}\d\d(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![A-Za-z0-9])")
#: Patterns whose capitals say something.
_CASE_MATTERS = frozenset({"base58", "vehicle", "monero", "national by form", "national in short", "bank by form"})


def identifiers(text: str) -> Iterator[Found]:
    """Findings in a folded text; what a checksum or a word nearby does not confirm is left out."""
    lower = text.lower()
    for patterns in _sets():
        for match in patterns.matches(text):
            yield from _CHECKS.get(match.name, _plain)(text, lower, match.start, match.end)


def _plain(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del text, lower
    yield Found(start, end, Kind.EMAIL)


def _email(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del lower
    if text[start : start + 1] == "'":
        start += 1
    yield Found(start, end, Kind.EMAIL)


def _spaced_email(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    """In "thanks @bob.com" the word before is the sentence's, and what follows a handle."""
    del lower
    local = text[start:end].partition("@")[0].strip()
    if not (local.isalpha() and text[start:end].partition("@")[2][:1] != " "):
        yield Found(start, end, Kind.EMAIL)


def _ip(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    inside = before[-1:].isdigit() or (before[-1:] == "." and before[:1].isdigit())
    if inside or after[:1].isdigit() or (after[:1] == "." and after[1:].isdigit()):
        return
    small = all(len(part) == 1 for part in re.findall(r"\d+", text[start:end]))
    if not (cue("version", lower, start, end, after=False, before=12) and small):
        yield Found(start, end, Kind.IP)


def _ip6(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del lower
    while end > start and text[end - 1] == ":" and text[end - 2 : end] != "::":
        end -= 1
    around = text[max(0, start - 1) : start], text[end : end + 1]
    if end - start < 6 or any(near.isalnum() or near == "_" for near in around if near) or around[0] == ".":
        return
    try:
        ipaddress.IPv6Address(text[start:end])
    except ValueError:
        return
    if any(character.isdigit() for character in text[start:end]):
        yield Found(start, end, Kind.IP)


def _mac(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del lower
    if (
        not (text[start - 1 : start] or " ").isalnum()
        and text[end : end + 1] not in (*":-",)
        and not text[end : end + 1].isalnum()
    ):
        yield Found(start, end, Kind.MAC)


def _mac_in_dots(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del lower
    if any(character.isalpha() for character in text[start:end]):
        yield Found(start, end, Kind.MAC)


def _iban(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    """An IBAN at the candidate's start: as many characters as its country has, however they are spaced.

    Of another length it is one if its check digits are right and it stands alone: a typing error is personal data too.
    """
    if is_alone := _WHOLE_IBAN.match(text, start, end):
        bare = re.sub(r"[ -]", "", is_alone[0])
        if checksums.mod_97(bare) and bare[:2] in checksums.IBAN_LENGTHS and not text[is_alone.end() :][:1].isalnum():
            yield Found(start, is_alone.end(), Kind.IBAN)
            return
    length = checksums.IBAN_LENGTHS.get(text[start : start + 2].upper(), 0)
    places = [place for place in range(start, end) if text[place].isalnum()][:length]
    bare = "".join(text[place] for place in places)
    if len(places) < length or not length:
        return
    whole = not text[places[-1] + 1 : places[-1] + 2].isalnum()
    if whole and (checksums.iban(bare) or cue("account", lower, start, end, after=False)):
        yield Found(start, places[-1] + 1, Kind.IBAN)


def _crypto(check: Callable[[str], bool]) -> Callable[[str, str, int, int], Iterator[Found]]:
    def confirmed(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
        mixed = len({character.isdigit() for character in text[start:end]}) == 2
        if check(text[start:end]) or (mixed and cue("crypto", lower, start, end)):
            yield Found(start, end, Kind.CRYPTO)

    return confirmed


def _vehicle(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    content = text[start:end]
    mixed = any(c.isdigit() for c in content) and any(c.isalpha() for c in content)
    if mixed and (checksums.vehicle(content) or cue("vehicle", lower, start, end, after=False)):
        yield Found(start, end, Kind.VEHICLE)


def _coordinates(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del lower
    latitude, _, longitude = text[start:end].strip("()[]").partition(",")
    if abs(float(latitude)) <= 90 and abs(float(longitude)) <= 180:
        yield Found(start, end, Kind.COORDINATES)


def _labelled(kind: Kind, digits: int) -> Callable[[str, str, int, int], Iterator[Found]]:
    def confirmed(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
        del lower
        content = _first_words_with_digits(text[start:end])
        count = sum(character.isdigit() for character in content)
        if count >= max(digits, 0.4 * len(content)) and not is_sum(text, start, start + len(content)):
            yield Found(start, start + len(content), kind, rank=1)

    return confirmed


def _first_words_with_digits(content: str) -> str:
    """Without the words that follow an id: "A1234567 and" is "A1234567"."""
    words = content.split(" ")
    kept = 0
    while kept < len(words) and (not words[kept] or any(c.isdigit() for c in words[kept])):
        kept += 1
    return " ".join(words[:kept]).rstrip(" -")


def _always(kind: Kind) -> Callable[[str, str, int, int], Iterator[Found]]:
    def found(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
        del text, lower
        yield Found(start, end, kind, rank=1)

    return found


def _bank(text: str, lower: str, start: int, end: int) -> Iterator[Found]:
    del text
    if re.search(r"\b(?:bic|swift|bank)\b", lower[max(0, start - 40) : start]):
        yield Found(start, end, Kind.ACCOUNT, rank=1)


_CHECKS: Mapping[str, Callable[[str, str, int, int], Iterator[Found]]] = {
    "email": _email,
    "email with spaces": _spaced_email,
    "ip": _ip,
    "ip6": _ip6,
    "mac": _mac,
    "mac in dots": _mac_in_dots,
    "iban": _iban,
    "base58": _crypto(checksums.base58check),
    "bech32": _crypto(checksums.bech32),
    "ether": _always(Kind.CRYPTO),
    "monero": _always(Kind.CRYPTO),
    "vehicle": _vehicle,
    "coordinates": _coordinates,
    "birth": _always(Kind.DATE_OF_BIRTH),
    "account": _labelled(Kind.ACCOUNT, 4),
    "national": _labelled(Kind.NATIONAL_ID, 4),
    "national in short": _labelled(Kind.NATIONAL_ID, 4),
    "security code": _always(Kind.ACCOUNT),
    "national by form": _always(Kind.NATIONAL_ID),
    "bank by form": _bank,
}


@cache
def _sets() -> tuple[PatternSet, PatternSet]:
    exact = {name: pattern for name, pattern in _PATTERNS.items() if name in _CASE_MATTERS}
    others = {name: pattern for name, pattern in _PATTERNS.items() if name not in _CASE_MATTERS}
    return PatternSet(others, any_case=True), PatternSet(exact)
