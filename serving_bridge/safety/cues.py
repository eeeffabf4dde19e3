"""Words near a number that say what it is: a run of digits after "call me on" is a telephone number."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Characters before and after a number in which a word may stand.
_BEFORE, _AFTER = 60, 20

_WORDS: Mapping[str, str] = {
    "phone": r"phones?|tel|telephone|mobile|cell|cellphone|fax|call(?:ed|ing|s)?|dial(?:ed|ling)?|text(?:ed)?|sms|"
    r"whatsapp|contact|reach|ring|hotline|landline|voicemail|ph|mob|number to (?:call|reach)",
    "card": r"cards?|visa|mastercard|amex|american express|discover|maestro|credit|debit|cc|pan|payment|charged?",
    "social": r"ssn|ssns|social|social security|sin",
    "crypto": r"bitcoin|btc|ethereum|eth|litecoin|ltc|dogecoin|wallet|crypto|coins?|tron|solana|monero|ripple|donate",
    "device": r"imei|imeisv|device|handset",
    "vehicle": r"vin|vehicle|chassis|car",
    "account": r"iban|account|bank|acct|transfer",
    "version": r"v|ver|version|versions|release|section|chapter|build|clause|paragraph",
    "not a phone": r"isbn|issn|order|invoice|tracking|sku|part|model|serial|doi|case|ticket|version|ref|article|"
    r"population|year|years|id",
}
_CUES = {name: re.compile(rf"(?<![a-z])(?:{words})(?![a-z])") for name, words in _WORDS.items()}


def cue(name: str, text: str, start: int, end: int, *, after: bool = True, before: int = _BEFORE) -> bool:
    """Whether a word of that name stands before or shortly after `text[start:end]`, in the same line before it.

    Args:
      text: folded and in lower case.
      after: look behind the number too.
      before: characters to look at before it.
    """
    begin = max(0, start - before)
    begin = max(begin, text.rfind("\n", begin, start) + 1)
    if _CUES[name].search(text, begin, start):
        return True
    return after and _CUES[name].search(text, end, end + _AFTER) is not None
