"""Who may read the page: its own machine, or those with the token; and what every reply tells a browser.

A page on loopback needs no token. On any other address each request carries the token, or the cookie that the login
form gives for it. A request must name the page's own host: a foreign name that was made to point at this machine (DNS
rebinding) is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.dashboard.attempts import Attempts
from tools.dashboard.errors import DashboardError

#: Shorter ones could be guessed.
MIN_TOKEN = 16
_MAX_TOKEN = 1024
#: A login ends after it.
SESSION_S = 12 * 3600
_ADVICE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer browsers hide where a form came from
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class TooManyAttemptsError(DashboardError):
    """An address gave too many wrong tokens; `wait_s` says when it may give one again."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(f"too many wrong tokens: try again in {wait_s} s")
        self.wait_s = wait_s


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
      token: None lets in everybody who reaches the address.
      hosts: names that a request may give as its host, in lower case; addresses are always taken, since no name
        that a stranger owns is in them.
      port: of the page, for the name of its cookie: cookies don't tell ports apart.
    """

    token: str | None
    hosts: frozenset[str]
    port: int
    clock: Callable[[], float] = time.time
    _attempts: Attempts = field(default_factory=Attempts, repr=False)
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def cookie(self) -> str:
        """The cookie's name."""
        return f"weir_view_{self.port}"

    def knows_host(self, host: str) -> bool:
        """Whether a request's host is this page's."""
        name = _host_name(host)
        return name is not None and (name in self.hosts or _is_address(name))

    def is_token(self, given: str) -> bool:
        """Whether it is the token; takes the same time for every one that is not."""
        return self.token is not None and hmac.compare_digest(_digest(given), _digest(self.token))

    def lets_in(self, authorization: str, cookie: str, address: str = "") -> bool:
        """Whether a request may read.

        Args:
          authorization, cookie: these headers' values, "" where it has none.
          address: where it comes from.

        Raises:
          TooManyAttemptsError: its token was not looked at.
        """
        if self.token is None or self._is_session(cookie):
            return True
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and self.admits(given.strip(), address)

    def admits(self, given: str, address: str) -> bool:
        """As `is_token`; wrong ones of an address are counted.

        Raises:
          TooManyAttemptsError: there were too many of that address; this one was not looked at.
        """
        if wait_s := self._attempts.wait_s(address):
            raise TooManyAttemptsError(wait_s)
        if self.is_token(given):
            return True
        self._attempts.was_wrong(address)
        return False

    def new_session(self) -> str:
        """A cookie's value that lets in for `SESSION_S`, as long as this process lives."""
        told = f"{int(self.clock()) + SESSION_S}.{secrets.token_hex(8)}"
        return f"{told}.{self._seal(told)}"

    def _is_session(self, value: str) -> bool:
        told, _, seal = value.rpartition(".")
        if not hmac.compare_digest(_digest(seal), _digest(self._seal(told))):
            return False
        return int(told.partition(".")[0]) > self.clock()

    def _seal(self, told: str) -> str:
        return hmac.new(self._key, told.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def access_to(host: str, port: int, token: str | None, more_hosts: Iterable[str] = ()) -> Access:
    """Who is let in to a page at this address.

    Args:
      more_hosts: further names that people reach it by, as through a proxy.

    Raises:
      DashboardError: others could reach it, and there is no token.
    """
    more = [_checked_name(name) for name in more_hosts]
    if token is None and not is_loopback(host):
        raise DashboardError(
            f"--host {host} can be reached from other machines: expected a token with it (--token-env NAME or "
            f"--token-file FILE), or a loopback address such as 127.0.0.1"
        )
    if token is None and more:
        raise DashboardError(f"--allow-host {more[0]}: whoever comes by that name needs a token: give --token-env NAME")
    own = {"localhost", host.lower()}
    if not is_loopback(host):
        own |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Access(token, frozenset({*own, *more}), port)


def read_token(variable: str | None, file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token from an environment variable or a file; None where neither is named.

    Raises:
      DashboardError: it is not there, others may read the file, or it is too short or of odd characters.
    """
    if variable is not None:
        found = environment.get(variable)
        if not found:
            raise DashboardError(f"--token-env {variable}: that variable is not set, or empty: {_ADVICE}")
        return _checked_token(found, f"the token in {variable}")
    if file is not None:
        return _checked_token(_read_private(file), f"the token in {file}")
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read_private(file: Path) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold us up
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DashboardError(f"{file} is no file, expected one that holds the token")
        if found.st_mode & 0o077:
            raise DashboardError(f"{file} has mode {stat.S_IMODE(found.st_mode):o}: others may read it; chmod 600 it")
        return os.read(descriptor, _MAX_TOKEN + 2).decode("utf-8", "replace").strip()
    finally:
        os.close(descriptor)


def _checked_token(token: str, what: str) -> str:
    if not MIN_TOKEN <= len(token) <= _MAX_TOKEN or not re.fullmatch(r"[!-~]+", token):
        raise DashboardError(
            f"{what} has {len(token)} characters, expected {MIN_TOKEN} to {_MAX_TOKEN} of ASCII without spaces: "
            f"{_ADVICE}"
        )
    return token


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"(?!-)[A-Za-z0-9.-]{1,253}", name):
        raise DashboardError(f"--allow-host {name!a}: expected the name of a host, such as runs.example.org")
    return name.lower()


def _host_name(host: str) -> str | None:
    """A Host header without its port; None where it is none."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?", host)
    return None if found is None else found[1].strip("[]").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(text: str) -> bytes:
    """Of equal length for all texts, so that comparing them tells no length."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
