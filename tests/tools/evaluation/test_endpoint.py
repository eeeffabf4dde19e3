"""An endpoint as a model: what it is sent, which failures pass by themselves, and one clear error for the others."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.support.openai_endpoint import Endpoint as Server
from tests.support.openai_endpoint import Reply, chat_answer, openai_endpoint
from tests.support.rollout_world import virtually
from tools.evaluation.asking import Answer, Dialog, Request
from tools.evaluation.endpoint import Endpoint, EndpointSettings, RefusedError, base_url
from tools.evaluation.errors import EndpointError
from tools.evaluation.pacing import Pacer
from tools.evaluation.suites import Sampling

KEY = "sk-very-secret-0123"


@pytest.fixture
def server() -> Iterator[Server]:
    with openai_endpoint() as found:
        yield found


def request(text: str = "1+2", sample: int = 0, **sampling: Any) -> Request:
    return Request(Dialog((("system", "Add."), ("user", text))), Sampling(**sampling), sample, None).seeded()


def ask(server: Server, *requests: Request, **settings: Any) -> list[Answer]:
    async def asked() -> list[Answer]:
        async with aiohttp.ClientSession() as session:
            given = {"url": server.url, "model": "m", "first_pause_s": 0.01} | settings
            endpoint = Endpoint(EndpointSettings(**given), session)
            return [await endpoint.answer(one) for one in requests or (request(),)]

    return asyncio.run(asked())


def error(status: int, message: str = "on purpose", **headers: str) -> Reply:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": {"message": message}}


def test_a_chat_is_asked_as_openais_api_has_it(server: Server) -> None:
    (answer,) = ask(server, request(temperature=0.7, top_p=0.9, max_tokens=5, stop=("!",)), key=KEY)
    ((path, headers, body),) = server.requests
    seed = body.pop("seed")
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+2"}],
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["!"],
    }
    assert 0 <= seed < 2**31
    assert answer == Answer(str(3 + seed % 2), "stop", 3)


def test_completions_and_the_newer_limit_are_asked_for_by_name(server: Server) -> None:
    (answer,) = ask(server, api="completions", limit_field="max_completion_tokens")
    ((path, headers, body),) = server.requests
    assert (path, body) == (
        "/v1/completions",
        {"model": "m", "prompt": "1+2", "max_completion_tokens": 512, "temperature": 0.0},
    )
    assert "Authorization" not in headers
    assert answer == Answer("3", "stop", 2)


def test_each_sample_has_a_seed_of_its_own_and_greedy_ones_have_none(server: Server) -> None:
    samples = [request(sample=i, temperature=1.0) for i in (0, 1, 0)]
    ask(server, *samples, request("3+4", temperature=1.0), request(), request(temperature=1.0, seed=-1))
    seeds = [body.get("seed") for _, _, body in server.requests]
    assert seeds[0] == seeds[2]
    assert len({*seeds[:2], seeds[3]}) == 3
    assert seeds[4:] == [None, None]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    server.script = [error(status), error(status), None]
    assert ask(server) == [Answer("3", "stop", 3)]
    assert len(server.requests) == 3


def test_tries_end_and_say_what_came_last(server: Server) -> None:
    server.script = [error(503, f"overloaded {i} \x1b[31m") for i in range(9)]
    with pytest.raises(EndpointError, match=r"failed 3 times in a row, at last: status 503: overloaded 2 \\x1b\[31m"):
        ask(server, tries=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_pause_that_is_asked_for_is_kept(server: Server, form: str) -> None:
    value = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.script = [error(429, Retry_After=value)]
    began = time.monotonic()
    ask(server)
    assert time.monotonic() - began >= 0.9


def test_too_long_a_pause_is_left_to_the_user(server: Server) -> None:
    server.script = [error(429, Retry_After="86400")]
    with pytest.raises(EndpointError, match="asks for a pause of 86400 s"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["", "soon", "-5", "nan", "inf"])
def test_a_pause_that_makes_no_sense_is_none(server: Server, value: str) -> None:
    server.script = [error(429, Retry_After=value)]
    assert ask(server)[0].text == "3"


def test_a_silent_endpoint_and_a_dead_one_are_given_up(server: Server) -> None:
    def sleeps(_: Any) -> str:
        time.sleep(0.5)
        return "late"

    server.answer = sleeps
    with pytest.raises(EndpointError, match=r"failed 2 times in a row, at last: no answer within 0\.1 s"):
        ask(server, timeout_s=0.1, tries=2)
    with pytest.raises(EndpointError, match="failed 2 times in a row, at last: ClientConnectorError"):
        ask(server, url="http://127.0.0.1:9/v1", tries=2)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            error(401, f"Incorrect key {KEY}"),
            r"refuses access \(status 401: Incorrect key \[the key\]\): the key in \$K is",
        ),
        (error(403), r"refuses access \(status 403: on purpose\)"),
        (error(404), r"check --endpoint and --endpoint-model m"),
        (error(400, "no such parameter: seed"), r"no such parameter: seed\): the request is not what it takes"),
        (error(302, Location="http://elsewhere/"), "it points elsewhere, where no key is sent"),
        ((418, {}, b"teapot"), r"status 418: teapot"),
        (
            (200, {}, b"<html>hello</html>"),
            r"does not answer as OpenAI's API does .*<html>hello</html>; check --endpoint",
        ),
        ((200, {}, b"\xff\xfe"), "does not answer as OpenAI's API does"),
        ((200, {}, []), "does not answer as OpenAI's API does"),
        ((200, {}, {"choices": []}), "does not answer as OpenAI's API does"),
        ((200, {}, {"choices": [{"text": "x"}]}), "does not answer as OpenAI's API does"),
        ((200, {}, b"[" * 100_000), "does not answer as OpenAI's API does"),
        (chat_answer(5), "does not answer as OpenAI's API does"),
        (chat_answer([{"type": "text"}]), "does not answer as OpenAI's API does"),
    ],
)
def test_what_will_not_pass_is_one_clear_error_at_once(server: Server, reply: Reply, expected: str) -> None:
    server.script = [reply]
    with pytest.raises(RefusedError, match=expected) as told:
        ask(server, key=KEY, key_name="K")
    assert len(server.requests) == 1
    assert KEY not in str(told.value)
    assert len(str(told.value)) < 700


def test_without_a_key_the_error_says_how_to_give_one(server: Server) -> None:
    server.script = [error(401)]
    with pytest.raises(RefusedError, match="no key was sent: name the environment variable .* with --api-key-env"):
        ask(server)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None, "refusal": "I can't."}, Answer("I can't.", "stop", None)),
        ({"content": None}, Answer("", "stop", None)),
        ({"content": "x\ud800"}, Answer("x?", "stop", None)),
    ],
)
def test_odd_but_lawful_answers_are_text(server: Server, message: dict[str, Any], expected: Answer) -> None:
    server.script = [(200, {}, {"choices": [{"message": message, "finish_reason": None}], "usage": None})]
    assert ask(server) == [expected]


@pytest.mark.parametrize(
    ("finish", "expected"), [("length", "length"), ("content_filter", "content_filter"), ("tool_calls", "stop")]
)
def test_why_an_answer_ended_is_kept(server: Server, finish: str, expected: str) -> None:
    server.script = [chat_answer("x", finish=finish, tokens="many")]
    assert ask(server) == [Answer("x", expected, None)]


@pytest.mark.parametrize(
    "url", ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions", "http://h/v1/completions"]
)
def test_an_address_may_end_with_its_route(url: str) -> None:
    assert base_url(url) == "http://h/v1"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h/v1",
        "ftp://h/v1",
        "http://",
        "http://h:99999/v1",
        "http://h/v1\x1b[31m",
        "http://u:p@h/v1",
        "http://h/?key=1",
    ],
)
def test_an_address_that_can_not_be_asked_or_stored_is_refused(url: str) -> None:
    with pytest.raises(RefusedError, match="--endpoint") as told:
        base_url(url)
    assert "u:p" not in str(told.value)


def test_requests_are_spaced_to_the_limit_of_a_minute() -> None:
    async def times() -> list[float]:
        loop, pacer, found = asyncio.get_running_loop(), Pacer(120), list[float]()

        async def one() -> None:
            await pacer.turn()
            found.append(loop.time())

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(one())
        return found

    found = virtually(times())
    assert [after - before for before, after in itertools.pairwise(found)] == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("per_minute", [0, 60])
def test_a_pause_holds_everybody_back(per_minute: float) -> None:
    async def waited() -> float:
        loop, pacer = asyncio.get_running_loop(), Pacer(per_minute)
        began = loop.time()
        pacer.pause(30)
        await pacer.turn()
        return loop.time() - began

    assert virtually(waited()) == pytest.approx(30)
