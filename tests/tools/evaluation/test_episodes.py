"""Evaluations of environments with tools, coroutines and agents: real environments, programs and kept answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from serving_bridge.text import Tokenizer
from serving_bridge.vllm.answers import Unreachable
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_world import FakeReplica, FakeSession, choice, reply
from tests.support.session_world import tokenizer as tokenizer
from tests.support.user_folder import working_in
from tools.evaluation.answers import AnswerLog
from tools.evaluation.asking import Identity
from tools.evaluation.endpoint import Endpoint, EndpointSettings
from tools.evaluation.errors import SuiteError
from tools.evaluation.examine import examine, prompts
from tools.evaluation.judged import Judged
from tools.evaluation.problems import OpenSuite, open_suite
from tools.evaluation.replica import FolderPrompts, ReplicaModel
from tools.evaluation.results import suite_result
from tools.evaluation.shown import turns_text
from tools.evaluation.suites import load_suite

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6 * 7"}}\n</tool_call>'
AGENT = """
import aiohttp

async def solve(base_url, row):
    messages = [{"role": "user", "content": row["question"]}]
    async with aiohttp.ClientSession() as http:
        for turn in range(3):
            body = {"model": "policy", "messages": messages}
            async with http.post(f"{base_url}/chat/completions", json=body) as response:
                answer = (await response.json())["choices"][0]["message"]
            if str(row["answer"]) in answer["content"]:
                return {"score": 1.0, "tries": turn + 1.0}
            messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "No."}]
    return 0.0

def silent(base_url, row):
    return 1.0
"""
Open = Callable[..., OpenSuite]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    suites: list[OpenSuite] = []
    (tmp_path / "my_agent.py").write_text(AGENT)
    (tmp_path / "train.jsonl").write_text('{"question": "What is 1 + 1?", "answer": 2}\n')
    (tmp_path / "held.jsonl").write_text('{"question": "What is 6 * 7?", "answer": 42}\n')

    def open_it(task: dict[str, Any], **settings: Any) -> OpenSuite:
        rows = {"provider": "rows", "data": str(tmp_path / "train.jsonl"), "heldout_data": str(tmp_path / "held.jsonl")}
        tree = {"name": "s", "source": "task", "chat": True, "task": {**rows, "reward": "math", **task}, **settings}
        tree.setdefault("sampling", {"max_tokens": 120})
        (tmp_path / "s.toml").write_text(tomli_w.dumps(tree))
        suites.append(open_suite(load_suite(str(tmp_path / "s.toml"))))
        return suites[-1]

    with working_in(tmp_path):
        yield open_it
    for suite in suites:
        suite.close()


def said(tokenizer: Tokenizer, *texts: str) -> FakeReplica:
    """A server that answers with these texts in turn, and then with nothing."""
    tokens = [[*tokenizer.backend.encode(text, add_special_tokens=False).ids, 2] for text in texts]
    return FakeReplica(script=[lambda _, ids=ids: reply(choice(ids)) for ids in tokens])


def examined(
    suite: OpenSuite, tokenizer: Tokenizer, replica: FakeReplica, folder: Path, *, context: int = 2000
) -> Sequence[Judged]:
    async def start() -> VllmClient:
        return VllmClient("http://a", FakeSession({"a": replica}))

    model = ReplicaModel(Identity("folder", "m", "h"), FolderPrompts(tokenizer, max_model_len=context), start)
    log = AnswerLog(folder / "answers.jsonl")
    try:
        list(prompts(model, suite))
        return asyncio.run(examine(model, suite, log, concurrency=2))
    finally:
        log.close()


TOOLS = {"environment": "tools", "turns": 4, "episode": {"tools": ["calculator"]}}


def test_tools_are_called_and_what_they_say_is_told(opened: Open, tokenizer: Tokenizer, tmp_path: Path) -> None:
    suite, replica = opened(TOOLS), said(tokenizer, CALL, "It is 42.")
    (one,) = examined(suite, tokenizer, replica, tmp_path)
    assert (one.score, one.verdict, one.turns, one.answer) == (1.0, "pass", 2, "It is 42.")
    assert [role for role, _ in one.messages] == ["user", "assistant", "user", "assistant"]
    assert "calculator" in one.messages[0][1]
    assert "42" in one.messages[2][1]
    first, second = (body["token_ids"] for body in replica.bodies)
    answered = tokenizer.backend.encode(CALL, add_special_tokens=False).ids
    assert second[: len(first) + len(answered)] == [*first, *answered]  # as it was sampled
    fields = suite_result(suite, [one]).fields
    assert fields["by_turns"] == [{"turns": 2, "samples": 1, "mean_score": 1.0, "passed": 1.0}]
    assert turns_text(fields) == "by turns: 1 of 2 turns: 100.0% passed, mean score 1.000"
    assert fields["metrics"]["turns"]["value"] == 2.0
    assert fields["metrics"]["pass@1"]["value"] == 1.0


def test_an_episode_is_played_again_from_kept_answers(opened: Open, tokenizer: Tokenizer, tmp_path: Path) -> None:
    suite = opened(TOOLS)
    before = examined(suite, tokenizer, said(tokenizer, CALL, "It is 42."), tmp_path)
    silent = said(tokenizer)
    assert examined(suite, tokenizer, silent, tmp_path) == before
    assert not silent.bodies
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(line["suite"], line["problem"], line["sample"], line["turn"]) for line in lines] == [
        ("s", "0", 0, 0),
        ("s", "0", 0, 1),
    ]


def test_an_agent_plays_its_episode(opened: Open, tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = {"environment": "agent", "turns": 3, "episode": {"agent": "my_agent:solve"}}
    sampling = {"max_tokens": 120, "temperature": 1.0}
    suite = opened(task, samples=2, ks=[1, 2], sampling=sampling)
    replica = said(tokenizer, "41", "It is 42.", "It is 42.")
    one, two = examined(suite, tokenizer, replica, tmp_path)
    assert sorted([(one.score, one.turns), (two.score, two.turns)]) == [(1.0, 1), (1.0, 2)]
    assert {one.verdict, two.verdict} == {"pass"}
    assert suite_result(suite, [one, two]).fields["metrics"]["pass@2"]["value"] == 1.0
    assert len(replica.bodies) == 3
    seeds = [body["sampling_params"]["seed"] for body in replica.bodies]
    assert len(set(seeds)) == 3


def test_an_agent_that_asks_nothing_has_no_score(opened: Open, tokenizer: Tokenizer, tmp_path: Path) -> None:
    suite = opened({"environment": "agent", "turns": 3, "episode": {"agent": "my_agent:silent"}})
    (one,) = examined(suite, tokenizer, said(tokenizer), tmp_path)
    assert (one.score, one.verdict, one.turns) == (None, "error", 0)
    assert "got no answer from the policy" in one.reasons[0]


def test_a_server_that_is_gone_ends_the_evaluation(opened: Open, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def lost(_: Any) -> Any:
        raise ConnectionResetError("on purpose")

    suite = opened({"environment": "agent", "turns": 3, "episode": {"agent": "my_agent:solve"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.evaluation.replica._FIRST_RETRY_S", 0.001)
        with pytest.raises(Unreachable):
            examined(suite, tokenizer, FakeReplica(script=[lost] * 9), tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sampling": {"max_tokens": 120, "stop": ["x"]}}, r"take out sampling\.stop"),
        ({"max_observation_tokens": 1900}, r"are more than the server's context \(2000\): lower them, or raise"),
    ],
    ids=["stop", "context"],
)
def test_what_can_not_be_played_is_told_before_a_server_starts(
    opened: Open, tokenizer: Tokenizer, tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SuiteError, match=expected):
        examined(opened(TOOLS, **settings), tokenizer, said(tokenizer), tmp_path)


def test_an_endpoint_plays_no_episodes(opened: Open) -> None:
    endpoint = Endpoint(EndpointSettings(url="http://127.0.0.1:1/v1", model="m"), None)  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match="evaluate a model folder, a checkpoint or a weight store"):
        list(prompts(endpoint, opened(TOOLS)))
