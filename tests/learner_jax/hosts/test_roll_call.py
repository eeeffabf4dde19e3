"""The roll of hosts, in virtual time: who may come, who is missed when, and what all are told."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest

from learner_jax.hosts import roll_call
from learner_jax.hosts.roll_call import Roll, differences, disagreement, parse_address, shown_address
from learner_jax.hosts.wire import Facts, Hello, HostError, Refused, Welcome, proof
from tests.support.rollout_world import virtually

FACTS: Facts = {"settings": {"learner.steps": "3"}}


class Line:
    """A connection that keeps what is sent."""

    def __init__(self, address: str) -> None:
        self.remote_address = address
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def hello(index: int, count: int = 3, facts: Facts = FACTS, secret: str = "") -> Hello:
    said = Hello(index, count, 5000 + index, facts, b"nonce", b"")
    return msgspec.structs.replace(said, proof=proof(secret, said)) if secret else said


def roll(count: int = 3, **options: Any) -> Roll:
    return Roll(hello(0, count), **options)


async def come(to: Roll, *guests: Hello) -> list[Line]:
    lines = [Line(f"10.0.0.{number}") for number, _ in enumerate(guests, 1)]
    for guest, line in zip(guests, lines, strict=True):
        await to.admit(guest, line)  # type: ignore[arg-type]
    return lines


def ended(to: Roll, *arrivals: tuple[float, Any], timeout_s: float = 60.0) -> tuple[str, float, list[Line]]:
    """What `complete` says, after how many seconds, and the lines of those who came; empty text if all is well.

    Each arrival is a host's hello, or the index of one that hangs up, after so many seconds.
    """
    lines: list[Line] = []

    async def story() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def arrive(after_s: float, who: Any) -> None:
            await asyncio.sleep(after_s)
            if isinstance(who, Hello):
                lines.extend(await come(to, who))
            else:
                to.left(hello(who))

        tasks = [asyncio.create_task(arrive(*arrival)) for arrival in arrivals]
        try:
            await to.complete(timeout_s, "10.0.0.1:1")
            text = ""
        except HostError as error:
            text = str(error)
        seconds = loop.time() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return text, seconds

    text, seconds = virtually(story())
    return text, seconds, lines


def test_the_roll_is_complete_once_all_have_come() -> None:
    to = roll()
    assert to.missing == [1, 2]
    text, seconds, lines = ended(to, (1, hello(2)), (5, hello(1)))
    assert (text, seconds, to.missing) == ("", 5, [])
    to.welcome(b"token")
    addresses = {2: ("10.0.0.1", 5002), 1: ("10.0.0.1", 5001)}
    assert [line.sent for line in lines] == [[Welcome(addresses, b"token")]] * 2


def test_a_lone_host_waits_for_nobody() -> None:
    assert ended(roll(1))[:2] == ("", 0)


def test_hosts_that_do_not_come_are_named_at_the_bound() -> None:
    text, seconds, lines = ended(roll(4), (1, hello(2, 4)))
    assert seconds == 60
    assert text.startswith(
        "not all 4 hosts joined at 10.0.0.1:1 within 60 s (learner.hosts.connect_timeout_s): hosts 1, 3"
    )
    assert "with indices 0 to 3" in text
    assert [line.sent for line in lines] == [[Refused(text)]]
    assert "host 1 did not come" in ended(roll(2))[0]


def test_a_host_that_ends_is_told_of_at_once() -> None:
    text, seconds, lines = ended(roll(), (1, hello(1)), (2, 1))
    assert (text, seconds) == ("host 1 ended while the hosts were joining; look at its log", 2)
    assert [line.sent for line in lines] == [[Refused(text)]]


@pytest.mark.parametrize(("last_s", "seconds"), [(4, 4), (30, 11)])
def test_those_who_disagree_wait_for_the_rest_a_while_and_no_longer(last_s: float, seconds: float) -> None:
    """Ten seconds from when the first was seen to disagree."""
    other: Facts = {"settings": {"learner.steps": "4"}}
    text, took_s, _ = ended(roll(), (1, hello(1, facts=other)), (last_s, hello(2)))
    assert text == ("hosts disagree on settings: learner.steps is 3 on host 0 and 4 on host 1; give all the same")
    assert took_s == seconds


def test_those_who_disagree_wait_no_longer_than_the_bound() -> None:
    other: Facts = {"settings": {"learner.steps": "4"}}
    assert ended(roll(), (1, hello(1, facts=other)), timeout_s=5.0)[1] == 5


def test_two_of_one_index_are_told_where_they_are() -> None:
    to = roll()
    virtually(come(to, hello(1), hello(1)))
    assert to.problem() == (
        "2 processes have index 1 (at 10.0.0.1, at 10.0.0.2): give each its own learner.hosts.index, 0 to 2"
    )
    to = roll()
    virtually(come(to, hello(0)))
    assert to.problem().startswith("2 processes have index 0 (where host 0 is, at 10.0.0.1)")


def test_hosts_agree_on_how_many_they_are() -> None:
    to = roll()
    virtually(come(to, hello(1), hello(2, count=4)))
    assert to.problem() == ("hosts disagree on how many they are: learner.hosts.count is 3 on host 0 and 4 on host 2")


def test_who_does_not_know_the_secret_is_turned_away_and_named() -> None:
    to = roll(secret="known")
    (right,) = virtually(come(to, hello(1, secret="known")))
    (wrong,) = virtually(come(to, hello(2, secret="guessed")))
    assert right.sent == []
    assert isinstance(wrong.sent[0], Refused)
    assert to.missing == [2]
    assert "turned away for another WEIR_HOSTS_SECRET: 10.0.0.1" in ended(to)[0]


def test_who_comes_too_late_is_told_why_and_changes_nothing() -> None:
    to = roll(2)
    assert ended(to, (0, hello(1, 2)))[0] == ""
    (late,) = virtually(come(to, hello(1, 2)))
    (refused,) = late.sent
    assert refused.message.startswith("the 2 hosts of this learner have come already")
    to.left(hello(1, 2))
    assert (len(to.guests), to.ended) == (1, [])


def test_what_differs_is_named_with_the_first_hosts_that_differ() -> None:
    assert differences({0: {"a": "1"}, 1: {"a": "1"}}) == ""
    assert differences({0: {"a": "1"}, 1: {"a": "1"}, 2: {"a": "2"}}) == "a is 1 on host 0 and 2 on host 2"
    assert differences({3: {"a": "1"}, 1: {}}) == "a is missing on host 1 and 1 on host 3"
    many = {str(number): "x" for number in range(7)}
    text = differences({0: many, 1: {}})
    assert text.endswith("4 is x on host 0 and missing on host 1, and 2 more")
    assert "and 0 more" not in differences({0: dict(list(many.items())[:5]), 1: {}})
    assert differences({0: {"a": "y" * 60}, 1: {"a": "z" * 61}}) == (
        f"a is {'y' * 60} on host 0 and {'z' * 57}... on host 1"
    )


def test_the_first_section_that_differs_is_told() -> None:
    facts = {0: {"code": {"commit": "a"}, "x": {"b": "1"}}, 1: {"code": {"commit": "a"}, "x": {"b": "2"}}}
    assert disagreement(facts) == "hosts disagree on x: b is 1 on host 0 and 2 on host 1; give all the same"
    assert disagreement({0: FACTS, 1: FACTS}) == ""
    assert "missing" in disagreement({0: FACTS, 1: {}})


def test_addresses_are_shown_as_they_are_read() -> None:
    for text in ("trainer-0.pool:1", "[fd00::7]:65535"):
        assert shown_address(parse_address(text)) == text
    for text in ("a:0", "a:65536", ":1", "a", "a:b", "[]:1"):
        with pytest.raises(HostError, match=r"expected ADDRESS:PORT of host 0"):
            parse_address(text)


def test_a_follower_gives_up_at_the_bound_and_says_what_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    async def refused(*_: Any) -> Any:
        tried.append(asyncio.get_running_loop().time())
        raise ConnectionRefusedError(111, "whatever the library says")

    monkeypatch.setattr(asyncio, "open_connection", refused)

    async def story() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(
            HostError, match=r"at h:1 within 1 s \(learner.hosts.connect_timeout_s\): Connection refused"
        ):
            await roll_call.come(("h", 1), 1.0)
        return asyncio.get_running_loop().time() - began

    assert virtually(story()) == pytest.approx(1.0)
    assert [round(at - tried[0], 3) for at in tried[:3]] == [0, 0.2, 0.4]


def test_a_follower_whose_host_never_answers_gives_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*_: Any) -> Any:
        await asyncio.sleep(1000)

    monkeypatch.setattr(asyncio, "open_connection", hangs)

    async def story() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(HostError, match="it did not answer"):
            await roll_call.come(("h", 1), 7.0)
        return asyncio.get_running_loop().time() - began

    assert virtually(story()) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Refused("no\x1b"), r"^no"),
        (hello(1), "is not host 0 of this learner"),
        (asyncio.IncompleteReadError(b"", 1), "host 0 ended while the hosts were joining"),
        (OSError(), "host 0 ended while the hosts were joining"),
        (TimeoutError(), r"not all 3 hosts joined within 5 s .*and host 0"),
    ],
)
def test_what_host_0_answers_is_told(answer: Any, said: str) -> None:
    class Answering(Line):
        async def receive(self) -> Any:
            assert self.sent == [hello(1)]
            if isinstance(answer, Exception):
                raise answer
            return answer

    with pytest.raises(HostError, match=said) as raised:
        virtually(roll_call.answered(Answering("h"), hello(1), 5.0))  # type: ignore[arg-type]
    assert "\x1b" not in str(raised.value)


def test_a_welcome_is_handed_on() -> None:
    welcome = Welcome({1: ("h", 1)}, b"token")

    class Answering(Line):
        async def receive(self) -> Any:
            return welcome

    assert virtually(roll_call.answered(Answering("h"), hello(1), 5.0)) is welcome  # type: ignore[arg-type]


def test_a_name_that_nobody_knows_is_told_in_the_resolver_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (socket.gaierror(-2, "Name or service not known"), OSError("Multiple exceptions")):

        async def unknown(*_: Any, error: OSError = error) -> Any:
            raise error

        monkeypatch.setattr(asyncio, "open_connection", unknown)
        with pytest.raises(HostError, match="Name or service not known|Multiple exceptions"):
            virtually(roll_call.come(("h", 1), 0.5))
