"""Keys, tokens and passwords: formats of vendors, those of detect-secrets, and what a telling name holds."""

from __future__ import annotations

import base64
import importlib
import json
import math
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise

import re2

from serving_bridge.safety.decisions import SECRET, Kind
from serving_bridge.safety.found import Found
from serving_bridge.safety.linear import Match, PatternSet, compiled

_VALUE = r"[A-Za-z0-9_\-./+=~!@#$%^&*]"
_LINK = r"""["'\]]{0,2}\s{0,3}(?:=>|:=|=|:|\bis\b|\bwas\b)\s{0,3}(?:Bearer |Basic |Token )?["'`(<]{0,2}"""

#: Formats that name themselves; the first group, where there is one, is the secret.
_FORMATS: Mapping[str, str] = {
    "aws id": r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|AGPA|AIDA|AROA|AIPA|ANPA|ANVA|ABIA|ACCA)[A-Z0-9]{16}\b",
    "github": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255})\b",
    "gitlab": r"\b(?:gl(?:pat|dt|ft|soat|rt|cbt|ptt|agent|oas|imt|ffct)-[A-Za-z0-9_\-]{20,300}|"
    r"GR1348941[A-Za-z0-9_\-]{20,50})",
    "openai": r"\bsk-(?:proj-|svcacct-|admin-|ant-|or-v1-|None-)?[A-Za-z0-9_\-]{20,250}",
    "google": r"\bAIza[A-Za-z0-9_\-]{35}",
    "google oauth": r"\b(?:ya29\.[A-Za-z0-9_\-]{20,500}|GOCSPX-[A-Za-z0-9_\-]{20,40}|1//0[A-Za-z0-9_\-]{30,200})",
    "google client": r"\b\d{8,20}-[a-z0-9]{20,40}\.apps\.googleusercontent\.com\b",
    "slack": r"\bxox[abposre](?:\.[a-z]{3,6})?-[A-Za-z0-9-]{10,250}|\bxapp-\d-[A-Za-z0-9-]{10,250}",
    "slack hook": r"https?://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9_/+-]{20,250}",
    "discord hook": r"https?://(?:ptb\.|canary\.)?discord(?:app)?\.com/api/webhooks/\d{10,25}/[A-Za-z0-9_\-]{30,120}",
    "stripe": r"\b(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,250}\b",
    "twilio": r"\b(?:AC|SK)[0-9a-f]{32}\b",
    "sendgrid": r"\bSG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{16,64}",
    "mailgun": r"\b(?:key-[0-9a-f]{32}|[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8})\b",
    "mailchimp": r"\b[0-9a-f]{32}-us\d{1,2}\b",
    "telegram": r"\b\d{8,10}:AA[A-Za-z0-9_\-]{32,35}",
    "npm": r"\bnpm_[A-Za-z0-9]{30,60}\b",
    "pypi": r"\bpypi-[A-Za-z0-9_\-]{40,}",
    "hugging face": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,60}\b",
    "vendor prefix": r"\b(?:gsk_|xai-|pplx-|r8_|nvapi-|fw_|tgp_v1_|shpat_|shpca_|shppa_|shpss_|dop_v1_|doo_v1_|"
    r"lin_api_|"
    r"figd_|sntrys_|sntryu_|glsa_|glc_|NRAK-|NRJS-|dapi|dckr_pat_|rubygems_|PMAK-|EAAC|EAAG|sq0atp-|sq0csp-|EAAA|"
    r"hvs\.|hvb\.|s\.|atlasv1\.|pul-|phc_|phx_|tk-us-|ATATT3x|ATCTT3x|AGE-SECRET-KEY-1|rdme_|secret_|ntn_|pat-na1-|"
    r"weir_|eyJrIjoi|patp_|sbp_|vercel_|CFPAT-|flyv1_|fo1_|ops_eyJ)[A-Za-z0-9_\-./+=]{24,}",
    # gitleaks and the vendors' pages have these forms
    "vendor form": r"\b(?:tskey-[a-z]{2,12}-[A-Za-z0-9]{8,}(?:-[A-Za-z0-9]{8,})?|pat[A-Za-z0-9]{14}\.[0-9a-f]{40,64}|"
    r"pscale_[a-z]{2,8}_[A-Za-z0-9_\-.=]{24,}|dp\.[a-z]{2,6}\.[A-Za-z0-9_\-.]{32,}|dt0[a-z]\d\d\.[A-Z0-9]{20,}\.[A-Z0-9]{40,}|"
    r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_\-=]{40,}|shippo_[a-z]{4}_[0-9a-f]{40}|sk-[a-z]{2,10}-[A-Za-z0-9_\-]{24,}|"
    r"oy2[a-z0-9]{43}|AKCp[A-Za-z0-9]{10,80}|EZ[AT]K[A-Za-z0-9]{54}|FLW(?:SECK|PUBK)_TEST-[A-Za-z0-9]{12,40}|"
    r"dG9rO[A-Za-z0-9_\-=]{40,80}|LTAI[A-Za-z0-9]{17,21}|p8e-[A-Za-z0-9]{32}|sgp_[A-Za-z0-9_]{32,80})",
    "azure": r"(?:AccountKey|SharedAccessKey|sig)=([A-Za-z0-9+/%=]{40,120})",
    "jwt": r"\beyJ[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]*)?",
    "pem": r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)"
    r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----",
    "pem cut off": r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\]*",
    "putty": r"PuTTY-User-Key-File-\d(?s:.*?)Private-MAC: ?[0-9a-f]{40,64}",
    "url password": r"\b[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s/:@\"'<>]{0,100}:([^\s/@\"'<>]{1,200})@",
    "bearer": r"(?:[Bb]earer|BEARER)\s{1,3}([A-Za-z0-9._~+/\-]{16,}={0,2})",
    "basic": r"[Aa]uthorization[\"']?\s{0,2}:\s{0,2}[\"']?[Bb]asic\s{1,3}([A-Za-z0-9+/]{8,400}={0,2})",
    "ssh public": r"\bssh-(?:rsa|ed25519|dss) (AAAA[A-Za-z0-9+/]{60,}={0,3})",
}
_NAMED: Mapping[str, str] = {
    "password": rf"\b(?:[a-z0-9]{{1,20}}[_-])?(?:password|passwd|pwd|passphrase|passcode|pass ?word|db_pass|"
    rf"pass|contrasena|mot de passe|passwort)"
    rf"(?:[_-][a-z0-9]{{1,20}})?(?: for [a-z0-9 ]{{1,30}})?{_LINK}({_VALUE}{{4,128}})",
    "key": r"\b(?:[a-z0-9]{1,20}[_\- .]){0,3}(?:api[_\- ]?key|apikey|secret(?:[_\- ](?:access[_\- ]?)?key)?|"
    r"access[_\- ]?key(?:[_\- ]id)?|"
    r"private[_\- ]?key|auth[_\- ]?token|access[_\- ]?token|refresh[_\- ]?token|client[_\- ]?secret|token|"
    r"credential|signing[_\- ]?key|"
    rf"encryption[_\- ]?key|session[_\- ]?(?:id|key|token)|webhook[_\- ]?secret|"
    rf"bot[_\- ]?token){_LINK}([A-Za-z0-9_\-./+=~]{{16,}})",
    "pin": r"\b(?:pin|pin code|otp|one[- ]time (?:code|password)|verification code|2fa code|passcode)(?: number|"
    r" code)?"
    r"\s{0,2}(?:is|was|:|=)\s{0,2}[\"'#]?(\d{4,8})\b",
}
_MIN_BITS = 3.0
#: Random letters of both cases with digits, behind a word and a sign, as vendors write tokens whose form nobody knows.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9/+_.-])(?!sha\d)([A-Za-z][A-Za-z0-9]{0,15}(?:[_-][a-z0-9]{1,10}){0,2}[_.-])([A-Za-z0-9]{32,200})(?![A-Za-z0-9])"
)
_MIN_TOKEN_BITS, _MIN_CASE_CHANGES = 3.9, 3


def secrets(text: str) -> Iterator[Found]:
    """Findings in a folded text."""
    formats, named, borrowed = _sets()
    for match in formats.matches(text):
        if match.name != "jwt" or _is_jwt(text[match.start : match.end]):
            yield _found(match, Kind.PASSWORD if match.name == "url password" else Kind.KEY, rank=0)
    for match in named.matches(text):
        if (found := _named(match, text)) is not None:
            yield found
    yield from _tokens(text)
    for match in borrowed.matches(text):
        if any(character.isdigit() for character in text[match.start : match.end]):
            yield Found(match.start, match.end, Kind.KEY, SECRET, "detect_secrets", rank=2)


def _tokens(text: str) -> Iterator[Found]:
    for match in _TOKEN.finditer(text):
        has_digits = sum(character.isdigit() for character in match[2]) >= 2
        if has_digits and _is_mixed(match[2]) and _bits(match[2]) >= _MIN_TOKEN_BITS:
            yield Found(match.start(), match.end(), Kind.KEY, SECRET, "secrets", rank=2)


def _is_mixed(content: str) -> bool:
    """Whether capitals and small letters change places as no word's or name's do."""
    letters = [character.isupper() for character in content if character.isalpha()]
    return sum(one != other for one, other in pairwise(letters)) >= 2 * _MIN_CASE_CHANGES


def _named(match: Match, text: str) -> Found | None:
    content = text[match.start : match.end].rstrip(".,;:)'\"")
    end = match.start + len(content)
    if match.name == "pin":
        return Found(match.start, end, Kind.PASSWORD, SECRET, "secrets", rank=1)
    if match.name == "password":
        return Found(match.start, end, Kind.PASSWORD, SECRET, "secrets", rank=1) if _is_password(content) else None
    is_random = _bits(content) >= _MIN_BITS and (any(c.isdigit() for c in content) or _is_mixed(content))
    is_random = is_random and not _is_code(content)
    return Found(match.start, end, Kind.KEY, SECRET, "secrets", rank=1) if is_random else None


def _found(match: Match, kind: Kind, *, rank: int) -> Found:
    return Found(match.start, match.end, kind, SECRET, "secrets", rank)


def _is_password(content: str) -> bool:
    """A word of a dictionary after "password is" is a sentence's next word far more often than a password."""
    if len(content) < 4 or _is_code(content):
        return False
    kinds = (str.isdigit, str.isupper, str.islower, lambda c: not c.isalnum())
    present = [any(kind(character) for character in content) for kind in kinds]
    return (
        present[0]
        or _is_mixed(content)
        or (present[3] and not content.isidentifier() and bool(re.search(r"[!@#$%^&*]", content)))
    )


def _is_code(content: str) -> bool:
    """`os.environ["KEY"]`, `${KEY}`, `getpass.getpass()`, `****`: where a secret would be, and is not."""
    return content.startswith(("$", "{", "<", "%(", "os.", "process.", "self.", "config.", "env.")) or not any(
        character.isalnum() for character in content
    )


def _is_jwt(content: str) -> bool:
    header = content.partition(".")[0]
    try:
        read = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and ("alg" in read or "typ" in read)


def _bits(content: str) -> float:
    """Shannon entropy in bits a character."""
    counts = Counter(content)
    return -sum(n / len(content) * math.log2(n / len(content)) for n in counts.values())


@cache
def _sets() -> tuple[PatternSet, PatternSet, PatternSet]:
    return PatternSet(_FORMATS), PatternSet(_NAMED, any_case=True), PatternSet(_borrowed())


def _borrowed() -> dict[str, str]:
    """The patterns of detect-secrets that RE2 takes once their look-aheads are word boundaries."""
    import detect_secrets.plugins as plugins
    from detect_secrets.plugins.base import RegexBasedDetector

    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(plugins.__path__):
        members = vars(importlib.import_module(f"{plugins.__name__}.{module.name}")).values()
        for detector in (m for m in members if isinstance(m, type) and issubclass(m, RegexBasedDetector)):
            patterns = vars(detector).get("denylist", ())
            for number, pattern in enumerate(patterns if isinstance(patterns, tuple | list) else ()):
                text = ("(?i)" if pattern.flags & re.IGNORECASE else "") + pattern.pattern.replace(r"(?!\w)", r"\b")
                if module.name not in _UNSUITABLE and _is_linear(text):
                    found[f"{detector.__name__} {number}"] = text
    return found


#: Ours do better: public addresses, "BEGIN PRIVATE KEY" without the key, and words in capitals that begin with AP.
_UNSUITABLE = frozenset({"ip_public", "private_key", "artifactory", "basic_auth", "jwt", "npm"})


def _is_linear(pattern: str) -> bool:
    try:
        compiled(pattern)
    except (re2.error, UnicodeEncodeError):
        return False
    return True
