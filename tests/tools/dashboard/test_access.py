"""Who may read the page: hosts, tokens, sessions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.dashboard.access import SESSION_S, Access, TooManyAttemptsError, access_to, is_loopback, read_token
from tools.dashboard.attempts import FREE, WINDOW_S, Attempts
from tools.dashboard.errors import DashboardError

TOKEN = "a-token-that-nobody-guesses"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "10.0.0.1", "example.org", ""])
def test_what_others_reach_needs_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(DashboardError, match=r"expected a token with it \(--token-env NAME or --token-file FILE\)"):
        access_to(host, 8790, None)
    assert access_to(host, 8790, TOKEN).token == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_none(host: str) -> None:
    assert access_to(host, 8790, None).lets_in("", "")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8790", "localhost", "LocalHost:1", "[::1]:8790", "127.0.0.1", "10.1.2.3:9"]
)
def test_own_names_and_addresses_are_known(host: str) -> None:
    assert access_to("127.0.0.1", 8790, None).knows_host(host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8790", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil",
     "localhost:8790:1", "local host", "localhost\n", "[::1", "runs.example.org", "localhost/", "\u0131localhost"],
)  # fmt: skip
def test_foreign_names_that_point_here_are_refused(host: str) -> None:
    assert not access_to("127.0.0.1", 8790, None).knows_host(host)


def test_a_proxys_name_is_known_once_it_was_given_with_a_token() -> None:
    assert access_to("127.0.0.1", 1, TOKEN, ["Runs.example.org"]).knows_host("runs.example.org:443")
    with pytest.raises(DashboardError, match="whoever comes by that name needs a token"):
        access_to("127.0.0.1", 1, None, ["runs.example.org"])
    for name in ("", "a b", "http://x", "-x", "x" * 300, "x\n"):
        with pytest.raises(DashboardError, match="expected the name of a host"):
            access_to("127.0.0.1", 1, TOKEN, [name])


@pytest.mark.parametrize(
    ("authorization", "is_let_in"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (TOKEN, False),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer", False),
        ("Bearer \udcff", False),
        ("", False),
    ],
)
def test_a_request_carries_the_token(authorization: str, is_let_in: bool) -> None:
    assert Access(TOKEN, frozenset(), 1).lets_in(authorization, "") == is_let_in


def test_a_session_lets_in_until_it_ends_and_only_in_its_process() -> None:
    now = [1000.0]
    access = Access(TOKEN, frozenset(), 1, clock=lambda: now[0])
    session = access.new_session()
    assert TOKEN not in session
    assert access.lets_in("", session)
    assert session != access.new_session()
    assert not Access(TOKEN, frozenset(), 1, clock=lambda: now[0]).lets_in("", session)
    later = str(int(session.split(".")[0]) + 1)
    for forged in (
        "",
        ".",
        "..",
        session + "0",
        session[:-1],
        f"{later}.{session.partition('.')[2]}",
        "\u00e9.\ud800.x",
    ):
        assert not access.lets_in("", forged)
    now[0] += SESSION_S
    assert not access.lets_in("", session)


def test_the_token_comes_from_a_variable_or_a_private_file(tmp_path: Path) -> None:
    assert read_token(None, None) is None
    assert read_token("T", None, {"T": TOKEN}) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    assert read_token(None, file) == TOKEN
    file.chmod(0o640)
    with pytest.raises(DashboardError, match="mode 640: others may read it; chmod 600"):
        read_token(None, file)
    with pytest.raises(DashboardError, match="is no file"):
        read_token(None, tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(DashboardError, match="is no file"):
        read_token(None, pipe)
    with pytest.raises(FileNotFoundError):
        read_token(None, tmp_path / "missing")


@pytest.mark.parametrize(
    "token", ["short", "x" * 2000, "with blanks in it, long", "\u00e9" * 20, "line\nline-line-line-line"]
)
def test_tokens_that_can_be_guessed_or_sent_wrongly_are_refused_without_being_told(token: str) -> None:
    with pytest.raises(
        DashboardError, match=r"the token in T has \d+ characters, expected 16 to 1024 of ASCII"
    ) as told:
        read_token("T", None, {"T": token})
    assert token not in str(told.value)


@pytest.mark.parametrize("environment", [{}, {"T": ""}])
def test_a_missing_variable_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(DashboardError, match="--token-env T: that variable is not set, or empty"):
        read_token("T", None, environment)


def test_an_address_that_guesses_waits_and_others_do_not() -> None:
    now = [0.0]
    access = Access(TOKEN, frozenset({"localhost"}), 8790, _attempts=Attempts(clock=lambda: now[0]))
    session = access.new_session()
    for guess in range(FREE):
        now[0] = float(guess)
        assert not access.lets_in(f"Bearer guess-{guess}", "", "10.0.0.1")
    with pytest.raises(TooManyAttemptsError, match=r"too many wrong tokens: try again in 51 s"):
        access.lets_in(f"Bearer {TOKEN}", "", "10.0.0.1")  # else it would still tell whether a guess is right
    assert access.lets_in("", session, "10.0.0.1")
    assert access.lets_in(f"Bearer {TOKEN}", "", "10.0.0.2")
    assert not access.lets_in("", "", "10.0.0.1")
    now[0] = WINDOW_S
    assert access.admits(TOKEN, "10.0.0.1")
    assert not access.admits("one-more-guess", "10.0.0.1")
    with pytest.raises(TooManyAttemptsError):
        access.admits(TOKEN, "10.0.0.1")


def test_only_so_many_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.dashboard.attempts._MAX_ADDRESSES", 2)
    attempts = Attempts(clock=lambda: 0.0)
    for address in ("a", "b", "c"):
        for _ in range(FREE):
            attempts.was_wrong(address)
    assert [attempts.wait_s(address) for address in ("a", "b", "c")] == [0, 60, 60]
