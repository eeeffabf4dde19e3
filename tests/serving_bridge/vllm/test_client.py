"""What the client asks of a server's routes, and what it makes of their answers."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from learner_jax.contracts import MANIFEST_SCHEMA, GoldenPrompt, WeightManifest
from serving_bridge.access import FENCING_HEADER, ROUND_ROUTE
from serving_bridge.access.probes import batch_of
from serving_bridge.vllm.answers import Aborted, Completion, Failed, Malformed, joined
from serving_bridge.vllm.client import VllmClient
from serving_bridge.vllm_plugin import PackedAnswer, SwapAnswer
from tests.support.rollout_world import choice, replies, reply, virtually

STATUS = {"state": "staged", "staged": 3, "error": "", "damaged": False, "applied": 2, "intact": True}


class Server:
    """Keeps what it is asked for, with which fencing tokens, and answers with `answer`; counts rounds."""

    def __init__(self, answer: Any = None, status: int = 200) -> None:
        self.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.status = status
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: list[str | None] = []
        self.rounds = 0
        self.client = VllmClient("http://a/", self, token="c" * 64)

    @asynccontextmanager
    async def request(
        self, method: str, url: str, *, data: bytes | None, params: Any, headers: dict[str, str], **_: Any
    ) -> AsyncIterator[Any]:
        route = url.removeprefix("http://a")
        is_begin = route == ROUND_ROUTE
        if is_begin:
            self.rounds += 1
        else:
            self.asked.append((method, route, params or (json.loads(data) if data else None)))
            self.tokens.append(headers.get(FENCING_HEADER))

        async def read() -> bytes:
            return b'{"fencing_token": %d}' % self.rounds if is_begin else self.answer

        yield SimpleNamespace(status=200 if is_begin else self.status, read=read)

    def does(self, ask: Callable[[VllmClient], Coroutine[Any, Any, Any]]) -> Any:
        return virtually(ask(self.client))


ROUTES: list[tuple[str, Callable[[VllmClient], Coroutine[Any, Any, Any]], str, str, Any]] = [
    ("pause", lambda c: c.control().pause(), "POST", "/pause", {"mode": "keep", "clear_cache": "true"}),
    ("resume", lambda c: c.control().resume(), "POST", "/resume", None),
    ("begin", lambda c: c.control().start_update(), "POST", "/start_weight_update", None),
    ("name", lambda c: c.control().name_version(3), "POST", "/update_weight_version", {"new_version": "3"}),
    ("serve", lambda c: c.control().serve(3), "POST", "/weir_serve", {"version": 3}),
    ("abort", lambda c: c.control().abort_all(), "POST", "/abort_requests", {}),
]


@pytest.mark.parametrize(("ask", "method", "route", "body"), [r[1:] for r in ROUTES], ids=[r[0] for r in ROUTES])
def test_control_routes_are_asked_as_the_gate_lets_them_in(ask: Any, method: str, route: str, body: Any) -> None:
    server = Server()
    server.does(ask)
    assert server.asked == [(method, route, body)]
    assert server.tokens == ["1"]


def test_a_round_keeps_the_fencing_token_of_its_first_request_and_others_get_their_own() -> None:
    server = Server()

    async def two_rounds(client: VllmClient) -> None:
        first, second = client.control(), client.control()
        await first.pause()
        await second.resume()
        await first.resume()

    server.does(two_rounds)
    assert server.tokens == ["1", "2", "1"]


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"fencing_token": "1"}', b"\xff"])
def test_an_answer_that_is_no_fencing_token_is_malformed(payload: bytes) -> None:
    class Odd(Server):
        @asynccontextmanager
        async def request(self, method: str, url: str, **_: Any) -> AsyncIterator[Any]:
            async def read() -> bytes:
                return payload

            yield SimpleNamespace(status=200, read=read)

    with pytest.raises(Malformed, match="fencing token"):
        Odd().does(lambda client: client.control().pause())


def test_workers_are_asked_by_method_and_their_status_is_one() -> None:
    server = Server({"results": [STATUS, STATUS]})
    found = server.does(lambda client: client.control().stage(3, "hash", "round", 60.0))
    assert (found.state, found.staged, found.applied) == ("staged", 3, 2)
    server.does(lambda client: client.worker_status("round"))
    server.does(lambda client: client.control().release("round"))
    named = {"round_id": "round"}
    staged = {"version": 3, "content_sha256": "hash", "round_id": "round", "lease_s": 60.0}
    assert server.asked == [
        ("POST", "/collective_rpc", {"method": method, "kwargs": kwargs})
        for method, kwargs in (("weir_stage", staged), ("weir_status", named), ("weir_release", named))
    ]
    with pytest.raises(Malformed, match="sent no status"):
        Server({"results": []}).does(lambda client: client.worker_status())
    with pytest.raises(Malformed):
        Server({"results": [STATUS | {"state": "odd"}]}).does(lambda client: client.worker_status())


@pytest.mark.parametrize(
    ("name", "version"), [("7", 7), ("0", 0), ("9" * 9, 999_999_999), ("9" * 10, None), ("unproven", None), ("", None)]
)
def test_weights_have_the_version_that_their_name_says(name: str, version: int | None) -> None:
    assert Server({"weight_version": name}).does(lambda client: client.weight_version()) == version


def test_states_are_read_and_others_refused() -> None:
    for is_paused in (True, False):
        assert Server({"is_paused": is_paused}).does(lambda client: client.is_paused()) is is_paused
    with pytest.raises(Malformed):
        Server({"is_paused": "yes"}).does(lambda client: client.is_paused())
    assert Server().does(lambda client: client.is_healthy())
    assert not Server(status=503).does(lambda client: client.is_healthy())


MANIFEST = WeightManifest(
    schema=MANIFEST_SCHEMA,
    version=3,
    base_version=None,
    format="full",
    step=0,
    parent=2,
    run="r",
    num_changed=None,
    files=[],
    tensors=[],
    content_sha256="0" * 64,
    golden=[GoldenPrompt([1, 2], [-1.0]), GoldenPrompt([1, 2, 3], [-1.0, -2.0])],
)


def swapped(
    *answers: PackedAnswer, is_applied: bool = True, error: str = "", proof_s: float = 0.5, num_running: int = 7
) -> Any:
    server = Server(msgspec.msgpack.encode(SwapAnswer(is_applied, error, list(answers), proof_s, num_running)))
    found = server.does(lambda client: client.control().swap(MANIFEST, "round", applies=True))
    ((method, route, body),) = server.asked
    assert (method, route, body["applies"], body["round_id"]) == ("POST", "/weir_swap", True, "round")
    assert (body["version"], body["content_sha256"], body["golden"]) == (3, "0" * 64, [[1, 2], [1, 2, 3]])
    return found


def proof(*logprobs: float, reason: str = "length") -> PackedAnswer:
    return PackedAnswer([choice([9], reason)], np.array(logprobs, "<f4").tobytes())


def test_a_swap_is_asked_for_in_one_request_and_gives_the_proof_of_each_golden_prompt() -> None:
    found = swapped(proof(-1.0), proof(-1.0, -2.5))
    assert (found.is_applied, found.error, found.proof_s, found.num_running) == (True, "", 0.5, 7)
    assert [values.tolist() for values in found.logprobs] == [[-1.0], [-1.0, -2.5]]
    for is_applied in (True, False):
        found = swapped(is_applied=is_applied, error="no\x1b room")
        assert (found.is_applied, found.logprobs, found.num_running) == (is_applied, [], 7)
        assert "room" in found.error
        assert found.error.isprintable()


@pytest.mark.parametrize(
    ("answers", "options"),
    [
        ([proof(-1.0)], {}),
        ([proof(-1.0), proof(-1.0)], {}),
        ([proof(-1.0), proof(-1.0, -10_000.0)], {}),
        ([proof(-1.0), proof(-1.0, -2.0)], {"is_applied": False}),
        ([proof(-1.0), proof(-1.0, -2.0)], {"proof_s": math.nan}),
        ([proof(-1.0), proof(-1.0, -2.0)], {"proof_s": -1.0}),
        ([proof(-1.0), proof(-1.0, -2.0)], {"num_running": -1}),
    ],
)
def test_a_proof_that_is_none_is_malformed(answers: list[PackedAnswer], options: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        swapped(*answers, **options)


def test_a_proof_that_was_aborted_is_none_and_an_answer_that_is_no_swaps_is_malformed() -> None:
    with pytest.raises(Aborted):
        swapped(proof(-1.0), proof(-1.0, -2.0, reason="abort"))
    with pytest.raises(Malformed, match="can't be read"):
        Server(b"\xc1").does(lambda client: client.control().swap(MANIFEST, "round", applies=True))


def test_an_update_left_open_is_ended_by_one_that_fails() -> None:
    server = Server(status=500)
    server.does(lambda client: client.control().end_stuck_update())
    assert server.asked == [("POST", "/update_weights", {"update_info": {}})]
    with pytest.raises(Malformed, match="accepted an empty weight update"):
        Server().does(lambda client: client.control().end_stuck_update())


@pytest.mark.parametrize(("running", "waiting", "number"), [("3.0", "4.0", 7), ("0", "0", 0), ("-1", "0", None)])
def test_requests_are_those_that_run_and_wait(running: str, waiting: str, number: int | None) -> None:
    page = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n".encode()
    if number is None:
        with pytest.raises(Malformed, match="requests run or wait"):
            Server(page).does(lambda client: client.num_requests())
    else:
        assert Server(page).does(lambda client: client.num_requests()) == number


def probed(*logprobs: float, finish_reason: str = "length") -> Server:
    answer = PackedAnswer([choice([9], finish_reason)], np.array(logprobs, "<f4").tobytes())
    return Server(msgspec.msgpack.encode(answer))


def test_log_probs_of_a_prompt_are_those_of_its_own_tokens_from_the_second_on() -> None:
    server = probed(-0.5, -0.25)
    found = server.does(lambda client: client.prompt_logprobs([5, 6, 7], timeout_s=1, priority=-1))
    assert (found.tolist(), str(found.dtype)) == ([-0.5, -0.25], "float32")
    ((_, route, body),) = server.asked
    assert (route, body["token_ids"], body["priority"]) == ("/inference/v1/generate", [5, 6, 7], -1)
    assert (body["sampling_params"]["max_tokens"], body["sampling_params"]["prompt_logprobs"]) == (1, 0)
    assert batch_of(f"generate-tokens-{body['request_id']}", "c" * 64)[1] == 1  # type: ignore[index]
    server.does(lambda client: client.prompt_logprobs([5, 6, 7], timeout_s=1, request_id="mine"))
    assert (server.asked[1][2]["request_id"], "priority" in server.asked[1][2]) == ("mine", False)


@pytest.mark.parametrize(
    ("server", "error", "said"),
    [
        (probed(-0.5), Malformed, "sent 1 log-probs for 3 tokens of a prompt"),
        (probed(-0.5, -0.25, -1), Malformed, "sent 3 log-probs for 3 tokens of a prompt"),
        (Server(reply(choice([9], "length"))[1]), Malformed, "sent 0 log-probs"),
        (probed(-0.5, -9999.0), Malformed, "no log-prob for prompt token 7"),
        (probed(-math.inf, -0.25), Malformed, "no log-prob for prompt token 6"),
        (probed(-0.5, -0.25, finish_reason="abort"), Aborted, "aborted a probe"),
    ],
)
def test_log_probs_that_are_not_those_of_the_prompt_are_refused(
    server: Server, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        server.does(lambda client: client.prompt_logprobs([5, 6, 7], timeout_s=1))


def test_a_server_is_warmed_up_by_sampling() -> None:
    server = probed()
    server.does(lambda client: client.warm_up([5, 6], n=3, max_tokens=9, timeout_s=1.0))
    ((method, route, body),) = server.asked
    assert (method, route, body["token_ids"]) == ("POST", "/inference/v1/generate", [5, 6])
    assert (body["sampling_params"]["n"], body["sampling_params"]["max_tokens"]) == (3, 9)


def generate(server: Server, **options: Any) -> list[Completion]:
    asked = {"n": 2, "max_tokens": 3, "stop_token_ids": [1], "timeout_s": 1.0} | options
    return server.does(lambda client: client.generate([5, 6], **asked))  # type: ignore[no-any-return]


def test_answers_come_in_the_order_of_their_numbers_with_versions_of_each_token() -> None:
    spans = [("1", 0, 2), ("2", 2, 3)]
    server = Server(reply(choice([9, 10, 1], index=1, spans=spans), choice([8, 1], index=0))[1])
    first, second = generate(server, seed=4, temperature=0.5, priority=2)
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([8, 1], [9, 10, 1])
    assert (second.policy_version.tolist(), len(second)) == ([1, 1, 2], 3)
    (body,) = (body for _, _, body in server.asked)
    sampling = body["sampling_params"]
    assert (sampling["n"], sampling["max_tokens"], sampling["temperature"], sampling["seed"]) == (2, 3, 0.5, 4)
    assert (sampling["stop_token_ids"], sampling["ignore_eos"], body["priority"]) == ([1], True, 2)
    assert (body["packed"], "request_id" in body) == (True, False)
    generate(server, greedy=True)
    assert server.asked[1][2]["sampling_params"]["temperature"] == 0.0
    assert "seed" not in server.asked[1][2]["sampling_params"]


def test_one_request_asks_for_one_answer_to_each_of_several_prompts() -> None:
    server = Server(replies(choice([9, 10, 1]), choice([8, 1]))[1])
    asked = {"max_tokens": 3, "stop_token_ids": [1], "timeout_s": 1.0}
    first, second = server.does(lambda client: client.generate_each([[5, 6], [7]], temperature=0.5, **asked))
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([9, 10, 1], [8, 1])
    ((_, route, body),) = server.asked
    assert (route, body["prompts"], body["packed"]) == ("/inference/v1/generate", [[5, 6], [7]], True)
    assert (body["sampling_params"]["n"], body["sampling_params"]["temperature"]) == (1, 0.5)
    with pytest.raises(Malformed, match="answered 2 of 1 prompts"):
        server.does(lambda client: client.generate_each([[5, 6]], **asked))
    with pytest.raises(Aborted, match="after 1 tokens"):
        Server(replies(choice([8, 1]), choice([9], "abort"))[1]).does(
            lambda client: client.generate_each([[5, 6], [7]], **asked)
        )


def test_answers_numbered_twice_are_refused() -> None:
    with pytest.raises(Malformed, match=r"numbered its answers \[1, 1\]"):
        generate(Server(reply(*[choice([8, 1], index=1)] * 2)[1]))


def test_pieces_of_an_answer_are_joined_in_order() -> None:
    server = Server(reply(choice([9, 10, 8], "length", index=0), choice([7, 1], index=1))[1])
    first, last = generate(server)
    whole = joined([first, last])
    assert (whole.tokens.tolist(), whole.finish_reason) == ([9, 10, 8, 7, 1], "stop")
    assert (len(whole.logprobs), len(whole.policy_version)) == (5, 5)
    assert joined([first]) is first


def test_a_server_that_fails_says_so() -> None:
    with pytest.raises(Failed):
        generate(Server(status=500))
