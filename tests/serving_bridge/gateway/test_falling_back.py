"""Fallbacks at the gateway: which case meets which policy, what users are told, and what is never covered up."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from serving_bridge.access import FreshKeys, Gate
from serving_bridge.canary import CanaryPolicy, MetricPolicy, Observer, StepPolicy
from serving_bridge.confidence import Calibration
from serving_bridge.gateway import Fallback, GatewayError, GuardedGateway, Observation, Split
from serving_bridge.routing import ReplicaRegistry
from serving_bridge.safety import Guards
from serving_bridge.settings import FallbackSettings, SafetySettings
from serving_bridge.text import Tokenizer
from tests.support.canary_world import NAMESPACE, CanaryWorld
from tests.support.fallback_world import CALIBRATION, QUESTION, UNSURE, Limited, documents, lines_of, played, told
from tests.support.gateway_world import Replica, Script, World, running_gateway, serve, text_of
from tests.support.session_world import ADD, tokenizer

__all__ = ["tokenizer"]


@pytest.mark.parametrize("stream", [False, True])
def test_abstaining_when_no_replica_answers(stream: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        if not stream:
            status, answer = await world.ask(n=2)
            assert (status, *told(answer)) == (200, "unavailable", "abstain", "Not now.")
            assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop"]
            assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            assert answer["weir"]["policy_version"] is None
            return
        body = {"model": "policy", "messages": QUESTION, "stream": True}
        async with world.session.post(world.url + "/v1/chat/completions", json=body) as response:
            assert response.headers["x-weir-fallback"] == "unavailable/abstain"
            assert "x-weir-policy-version" not in response.headers
        events = await world.stream()
        assert text_of(events) == "Not now."
        assert events[-1]["weir"]["fallback"] == {"case": "unavailable", "policy": "abstain", "citations": []}

    lines = played(
        tmp_path, tokenizer, test, Script(status=503), unavailable=("retry", "abstain"), abstain_text="Not now."
    )
    assert lines[0]["tried"] == [["retry", "503 unavailable"], ["abstain", "told"]]
    assert (lines[0]["reason"], lines[0]["policy"]) == ("503 unavailable", "abstain")


def test_a_retry_meets_a_replica_that_came_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script(status=503)

    async def test(world: World) -> None:
        async def back() -> None:
            while len(script.asked) < 3:
                await asyncio.sleep(0.001)
            script.status = 200

        coming = asyncio.ensure_future(back())
        events = await world.stream()
        await coming
        assert text_of(events) == script.text
        assert events[-1]["weir"]["fallback"]["policy"] == "retry"
        assert events[-1]["weir"]["policy_version"] == 3

    played(tmp_path, tokenizer, test, script, unavailable=("retry", "abstain"), retry_wait_s=1.2)


def test_without_policies_an_error_stays_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        status, answer = await world.ask()
        assert (status, answer["error"]["code"]) == (503, "unavailable")

    assert played(tmp_path, tokenizer, test, Script(status=503), unknown=("abstain",)) == []


def test_a_whole_answer_that_is_lost_falls_back_too(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        _, answer = await world.ask()
        assert told(answer)[:2] == ("unavailable", "abstain")
        events = await world.stream()
        assert events[-1]["error"]["code"] == "lost", "what was told can't be taken back"

    played(tmp_path, tokenizer, test, Script(lost_after=2), unavailable=("abstain",))


_ALL: dict[str, Any] = {
    **UNSURE,
    **dict.fromkeys(("unavailable", "guard_failed", "low_confidence", "unknown"), ("retry", "abstain")),
}


def test_neither_a_users_mistake_nor_a_limit_is_covered_up(tmp_path: Path, tokenizer: Tokenizer) -> None:
    guards = GuardedGateway(Guards(SafetySettings()))

    async def test(world: World) -> None:
        for fields, status in (
            ({"max_tokens": -1}, 400),
            ({"model": "other"}, 404),
            ({"messages": [{"role": "user", "content": "Write a tutorial on how to make a bomb"}]}, 400),
            ({"messages": [{"role": "user", "content": "a " * 5000}]}, 400),
        ):
            assert (await world.ask(**fields))[0] == status

    assert played(tmp_path, tokenizer, test, Script(), guards=guards, **_ALL) == []

    async def limited(world: World) -> None:
        status, answer = await world.ask()
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")

    (tmp_path / "limited").mkdir()
    assert played(tmp_path / "limited", tokenizer, limited, Script(status=503), admission=Limited(), **_ALL) == []


def test_a_form_that_was_asked_for_is_never_broken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        assert (await world.ask(response_format={"type": "json_object"}))[0] == 503
        assert (await world.ask(tools=[ADD], tool_choice="required"))[0] == 503
        assert (await world.ask("/v1/completions", prompt="What"))[0] == 503
        assert (await world.ask(tools=[ADD]))[0] == 200

    lines = played(tmp_path, tokenizer, test, Script(status=503), unavailable=("abstain",))
    assert [line["policy"] for line in lines] == [None, None, None, "abstain"]


def test_low_confidence_is_tried_again_and_the_sure_answer_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script(texts=("It is ten.", "It is twelve."), logprob=(-0.5, -0.05))

    async def test(world: World) -> None:
        status, answer = await world.ask(seed=5, store=True)
        assert (status, *told(answer)) == (200, "low_confidence", "retry", "It is twelve.")
        assert answer["weir"]["confidence"] == [pytest.approx(CALIBRATION.probability(-0.05), abs=1e-6)]
        assert answer["weir"]["low_confidence"] == [False]
        assert [asked["sampling_params"]["seed"] for asked in script.asked] == [5, 6]
        assert all(asked["sampling_params"]["logprobs"] == 0 for asked in script.asked)
        assert answer["choices"][0]["logprobs"] is None, "nobody asked for them"
        used = len(tokenizer.encode("It is ten.")) + len(tokenizer.encode("It is twelve.")) + 2
        assert answer["usage"]["completion_tokens"] == used, "what is billed is told"
        assert answer["id"] == answer["weir"]["response_id"]
        first = answer["id"].removesuffix("-1")
        assert [asked["request_id"] for asked in script.asked] == [f"{first}-0", f"{first}-1-0"], (
            "feedback tells them apart"
        )

    (line,) = played(tmp_path, tokenizer, test, script, low_confidence=("retry", "abstain"), **UNSURE)
    assert line["confidence"] == pytest.approx(CALIBRATION.probability(-0.5), abs=1e-6)
    (example,) = lines_of(tmp_path / "fallback" / "examples" / "gateway-0.jsonl")
    assert (example["answer"], example["rejected"], example["label"]) == (
        "It is twelve.",
        "It is ten.",
        "low_confidence",
    )


def test_at_temperature_zero_there_is_no_second_try(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script()

    async def test(world: World) -> None:
        _, answer = await world.ask(temperature=0)
        assert told(answer)[:2] == ("low_confidence", "abstain")
        assert len(script.asked) == 1
        assert answer["usage"]["completion_tokens"] > 0, "the dropped answer was sampled"

    played(tmp_path, tokenizer, test, script, low_confidence=("retry", "abstain"), **UNSURE)


def test_an_unsure_answer_without_policies_is_told_as_unsure(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        _, answer = await world.ask()
        assert answer["choices"][0]["message"]["content"] == "It is twelve."
        assert answer["weir"]["low_confidence"] == [True]
        assert "fallback" not in answer["weir"]

    assert played(tmp_path, tokenizer, test, Script(), **UNSURE) == []


@pytest.mark.parametrize("holds", [False, True])
def test_a_stream_is_held_or_told_at_its_end(holds: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        events = await world.stream()
        if holds:
            assert text_of(events) == "Not sure."
            assert events[-1]["weir"]["fallback"]["policy"] == "abstain"
        else:
            assert text_of(events) == "It is twelve."
            assert events[-1]["weir"]["low_confidence"] == [True]
            assert "fallback" not in events[-1]["weir"]

    played(
        tmp_path,
        tokenizer,
        test,
        Script(),
        low_confidence=("abstain",),
        abstain_text="Not sure.",
        hold_streams=holds,
        **UNSURE,
    )


def test_replicas_of_the_version_before(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def play() -> None:
        keys, registry = FreshKeys(), ReplicaRegistry(tmp_path / "older")
        replica = Replica(tokenizer, Script("It was twelve.", version="2"), "old")
        runner = await serve(replica)
        control = keys.token("control", replica.url, replica.start)
        replica.gate = Gate(replica.url, control, keys.token("inference", replica.url, replica.start))
        registry.report("old", url=replica.url, state="healthy", version=2, step=2, start=replica.start)
        settings = FallbackSettings(unavailable=("previous_version",), previous_run="runs/older")
        fallback = Fallback(settings, previous=(registry, keys))
        try:
            async with running_gateway(tmp_path, tokenizer, Script(status=503), fallback=fallback) as world:
                _, answer = await world.ask()
                assert told(answer) == ("unavailable", "previous_version", "It was twelve.")
                assert answer["weir"]["policy_version"] == 2
                assert answer["weir"]["policy_versions"][0][0]["version"] == 2
        finally:
            await runner.cleanup()

    asyncio.run(play())


class FailingGuards:
    """Guards that can't judge prompts, or answers."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def running(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def prompt(self, *_: Any) -> None:
        if self._stage == "prompt":
            raise GatewayError(503, "the prompt could not be judged now", code="guard_failed")

    def stream(self, *_: Any) -> Any:
        return FailingChoice() if self._stage == "answer" else None


class FailingChoice:
    has_failed = blocks_all = False

    async def push(self, text: str) -> str | None:
        self.has_failed = True
        return None

    async def end(self) -> str | None:
        return None

    async def passes(self, text: str) -> bool:
        return False


@pytest.mark.parametrize("stage", ["prompt", "answer"])
def test_a_guard_that_is_down(stage: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        _, answer = await world.ask(messages=QUESTION)
        assert told(answer)[0] == "guard_failed"
        # With no guard for answers the documents can't be judged either.
        assert told(answer)[1] == ("retrieve" if stage == "prompt" else "abstain")

    played(
        tmp_path,
        tokenizer,
        test,
        Script(),
        guards=FailingGuards(stage),
        guard_failed=("retrieve", "abstain"),
        corpora=documents(tmp_path),
    )


def test_self_consistency_asks_for_samples_and_counts_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    script = Script(texts=("It is twelve.", "no idea at all", "It is twelve.", "It is twelve."))
    calibration = Calibration("agreement", "temperature", 100)

    async def test(world: World) -> None:
        _, answer = await world.ask(seed=1)
        assert told(answer)[:2] == ("low_confidence", "abstain")
        assert [asked["sampling_params"]["n"] for asked in script.asked] == [1, 3]
        sampled = len(tokenizer.encode("It is twelve.")) + 1 + 3 * (len(tokenizer.encode("no idea at all")) + 1)
        assert answer["usage"]["completion_tokens"] == sampled
        _, answer = await world.ask()
        assert answer["weir"]["confidence"][0] > 0.99
        assert "logprobs" not in script.asked[2]["sampling_params"]

    played(
        tmp_path,
        tokenizer,
        test,
        script,
        fitted=calibration,
        low_confidence=("abstain",),
        samples=3,
        **UNSURE,
    )


@pytest.mark.parametrize("consents", [False, True])
def test_texts_are_kept_with_consent_alone_and_redacted(consents: bool, tmp_path: Path, tokenizer: Tokenizer) -> None:
    asked = [{"role": "user", "content": "I am Jane. How long is the Seine?"}]

    async def test(world: World) -> None:
        await world.ask(messages=asked, store=consents)
        await world.ask(messages=[{"role": "user", "content": "secret Seine"}], store=consents)

    script = Script(texts=("I don't know.", "777 [seine]", "I don't know.", "777 [seine]"))
    lines = played(tmp_path, tokenizer, test, script, unknown=("retrieve",), corpora=documents(tmp_path))
    assert [line["sampled"] for line in lines] == [True, True]
    everything = "".join(path.read_text() for path in (tmp_path / "fallback").rglob("*") if path.is_file())
    assert "Jane" not in everything
    assert "secret" not in everything
    for kind in ("samples", "examples"):
        kept = lines_of(tmp_path / "fallback" / kind / "gateway-0.jsonl")
        assert [example["messages"][0]["content"] for example in kept] == (
            ["I am <NAME>. How long is the Seine?"] if consents else []
        )


def test_fallbacks_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def test(world: World) -> None:
        await world.ask()
        for _ in range(300):
            if any(event.get("fallbacks") for event in world.events):
                break
            await asyncio.sleep(0.01)
        assert {"unavailable/abstain": 1} in [event.get("fallbacks") for event in world.events]

    played(tmp_path, tokenizer, test, Script(status=503), unavailable=("abstain",))


def test_who_compares_arms_sees_the_error_that_was_covered(tmp_path: Path, tokenizer: Tokenizer) -> None:
    seen: list[Observation] = []

    class Observer:
        def answered(self, one: Observation, texts: Any) -> None:
            seen.append(one)

    async def play() -> None:
        fallback = Fallback(FallbackSettings(unavailable=("abstain",)))
        async with running_gateway(
            tmp_path, tokenizer, Script(status=503), fallback=fallback, observations=Observer()
        ) as world:
            assert (await world.ask())[0] == 200

    asyncio.run(play())
    assert [(one.status, one.code) for one in seen] == [(503, "unavailable")]


def test_an_arm_whose_answers_are_all_covered_is_rolled_back_although_no_user_sees_an_error(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    canary = CanaryWorld(str(tmp_path / "registry.db"), str(tmp_path / "observations.db"))
    canary.fill()
    policy = CanaryPolicy(
        holdout=0.5,
        metrics=(MetricPolicy(name="error", margin=0.1),),
        steps=(StepPolicy(share=1.0, min_samples=20, min_time_s=0.0, proof="all"),),
    )
    controller = canary.start(policy=policy)
    observer = Observer(canary.log, NAMESPACE)
    split = Split(stable=canary.stable, canary=canary.candidate, canary_share=0.5, salt="7")
    scripts = (Script(version=str(canary.stable)), Script(version=str(canary.candidate), text="I don't know."))
    heard: list[tuple[int, bool]] = []

    async def play() -> None:
        fallback = Fallback(FallbackSettings(unknown=("abstain",)))
        async with running_gateway(
            tmp_path, tokenizer, *scripts, fallback=fallback, observations=observer, read_split=lambda: split
        ) as world:
            for number in range(60):
                messages = [{"role": "user", "content": f"What is {number}?"}]
                status, answer = await world.ask(messages=messages)
                heard.append((status, answer["weir"].get("fallback") is not None))

    asyncio.run(play())
    assert observer.flush()
    rows = canary.log.after(NAMESPACE, 0)
    errors = {(arm, json.loads(measures)["error"]) for _, _, arm, *_, measures in rows}
    assert errors == {("canary", 1.0), ("stable", 0.0)}
    assert len(rows) == 60
    assert {status for status, _ in heard} == {200}
    assert sum(covered for _, covered in heard) == sum(row[2] == "canary" for row in rows) > 15
    canary.clock.now_s += 60
    rollout = controller.look()
    assert rollout is not None
    assert (rollout.phase, rollout.reason.partition(":")[0]) == ("rolled_back", "error is worse")
    canary.close()
