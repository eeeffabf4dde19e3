"""Held-out problems are played as training plays them: same turns and budgets, sampled as the evaluation says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rewards.contracts import EpisodeState, Outcome, Problem, Reply, RewardRequest, RewardResult
from rewards.environments import AgentEnvironment, FeedbackEnvironment
from rewards.settings import TaskSettings
from serving_bridge.evaluation import Evaluation, PromptEncoder, evaluate
from serving_bridge.rollout.heldout_episodes import HeldOutEpisodes, plays_episodes
from serving_bridge.settings import VLLM_PRIORITY
from serving_bridge.settings.serving import EvaluationSettings, RolloutSettings
from serving_bridge.text.tokenizer import Tokenizer
from serving_bridge.vllm.answers import Unreachable
from serving_bridge.vllm.client import VllmClient
from tests.support.rollout_bench import Bench
from tests.support.rollout_bench import tokenizer as tokenizer
from tests.support.rollout_world import AdditionTask, FakeReplica, FakeSession, Inline, choice, replies, virtually
from tests.support.session_world import tokenizer as chat_tokenizer

__all__ = ["chat_tokenizer"]

TASK = AdditionTask()
FIRST = TASK.problem("heldout", 0)


def says(tokenizer: Tokenizer, text: str, version: int = 1) -> Callable[[Any], Any]:
    """A script that answers one prompt with the text and the end token."""
    tokens = [*tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer.eos_ids[0]]
    return lambda _: replies(choice(tokens, spans=[(str(version), 0, len(tokens))]))


def judged(
    tokenizer: Tokenizer,
    environment: Any,
    replica: FakeReplica,
    *,
    num_problems: int = 1,
    chat: bool = False,
    run: Callable[[Any], Any] = virtually,
    evaluation: dict[str, Any] | None = None,
    **rollout: Any,
) -> Evaluation:
    encoder = PromptEncoder(tokenizer, template="{question}", chat=chat, max_prompt_tokens=80)
    settings = EvaluationSettings(num_samples_shown=3, **(evaluation or {}))
    given = RolloutSettings(**({"max_prompt_tokens": 80, "max_tokens": 40} | rollout))
    play = HeldOutEpisodes(environment, encoder, settings, given, scoring=Inline())
    client = VllmClient("http://a", FakeSession({"a": replica}))
    found: Evaluation = run(evaluate(client, TASK, encoder, play, num_problems=num_problems, num_samples=3))
    return found


def test_a_dialog_is_judged_by_all_of_its_turns(tokenizer: Tokenizer) -> None:
    """Wrong, told so, right: it passes, and earns the discounted score of training."""
    environment = FeedbackEnvironment(TASK, turns=3, discount=0.5, feedback="=")
    replica = FakeReplica(script=[says(tokenizer, "0", 3), says(tokenizer, FIRST.answer, 4)])
    found = judged(tokenizer, environment, replica)
    assert (found.accuracy, found.mean_score, found.scores, found.versions) == (1.0, 0.5, (0.5,), (3, 4))
    (sample,) = found.samples
    assert (sample.prompt, sample.answer, sample.verdict) == (FIRST.question, f"0={FIRST.answer}", "pass")
    (first,), (second,) = (body["prompts"] for body in replica.bodies)
    own = tokenizer.backend.encode("0", add_special_tokens=False).ids
    assert second == [*first, *own, tokenizer.eos_ids[0], *tokenizer.encode_observation("=", chat=False, after=1)]


@pytest.mark.parametrize(
    ("settings", "temperature", "longest"), [({}, 0.0, 40), ({"temperature": 0.5, "max_tokens": 7}, 0.5, 7)]
)
def test_answers_are_sampled_as_the_evaluation_says(
    tokenizer: Tokenizer, settings: dict[str, Any], temperature: float, longest: int
) -> None:
    replica = FakeReplica(stop=1.0)
    environment = FeedbackEnvironment(TASK, turns=2, feedback="=")
    judged(tokenizer, environment, replica, num_problems=3, evaluation=settings, temperature=1.0)
    assert len(replica.bodies) == 6
    for body in replica.bodies:
        assert body["sampling_params"]["temperature"] == temperature
        assert body["sampling_params"]["max_tokens"] == longest
        assert body["priority"] == VLLM_PRIORITY["evaluation"]


def test_a_last_answer_that_was_cut_is_counted(tokenizer: Tokenizer) -> None:
    environment = FeedbackEnvironment(TASK, turns=2, feedback="=")
    found = judged(tokenizer, environment, FakeReplica(stop=0.0), num_problems=2)
    assert (found.num_cut, found.accuracy) == (2, 0.0)
    assert all(sample.is_cut for sample in found.samples)


@dataclass
class Odd:
    """Goes wrong in problem 1, hangs in 2, says more than there is room for in 3, and pays in two turns otherwise."""

    version: str = "odd@1"
    max_turns: int = 2
    tools: tuple[Any, ...] = ()

    async def reset(self, problem: Problem) -> EpisodeState:
        if problem.index == 1:
            raise ValueError("no world\x1b[31m")
        return EpisodeState(problem)

    async def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        if state.problem.index == 2:
            await asyncio.sleep(1e6)
        after = replace(state, turn=state.turn + 1)
        if after.turn == 2:
            return Outcome(0.75, {}, "pass", None, after)
        return Outcome(0.125, {}, "fail", "=" * (9000 if state.problem.index == 3 else 1), after)

    async def close(self, state: EpisodeState) -> None: ...


@pytest.mark.parametrize("limit", [{"reward_timeout_s": 5.0}, {"episode_timeout_s": 5.0}])
def test_an_environment_that_fails_counts_neither_as_right_nor_as_wrong(
    tokenizer: Tokenizer, limit: dict[str, float]
) -> None:
    found = judged(tokenizer, Odd(), FakeReplica(stop=1.0), num_problems=4, **limit)
    assert found.scores == (0.875, None, None, None)
    assert (found.accuracy, found.num_problems, found.num_wanted) == (1.0, 1, 4)
    assert found.failed_verdicts == {"error": 2, "timeout": 1}
    assert found.failed_verdict_example == "problem 1: error: ValueError: no world [31m"
    assert next(iter(limit)) in found.samples[2].reason


def test_a_replica_that_fails_for_good_ends_the_evaluation(tokenizer: Tokenizer) -> None:
    def lost(_: Any) -> Any:
        raise ConnectionResetError("on purpose")

    script = [says(tokenizer, "0"), *[lost] * 99]
    with pytest.raises(Unreachable):
        judged(tokenizer, Odd(), FakeReplica(script=script), num_problems=1)


def agent(program: str) -> AgentEnvironment:
    settings = TaskSettings.model_validate(
        {
            "provider": "rows",
            "environment": "agent",
            "chat": True,
            "turns": 8,
            "episode": {"agent": f"tests.support.agents:{program}", "agent_processes": 2, "wall_s": 30.0},
        }
    )
    return AgentEnvironment(Rows(), settings)


class Rows(AdditionTask):
    """Counts what it judges itself."""

    judged = 0

    def score(self, request: RewardRequest) -> RewardResult:
        self.judged += 1
        return super().score(request)


def test_an_agent_plays_and_says_what_it_earned(chat_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's two questions are asked, its score counts, and the task is not asked."""
    row = Problem(0, FIRST.question, FIRST.answer, {"question": FIRST.question})
    monkeypatch.setattr(AdditionTask, "problem", lambda self, split, index: row)
    environment = agent("two_turns")
    replica = FakeReplica(script=[says(chat_tokenizer, "Perhaps."), says(chat_tokenizer, "Yes.")])
    try:
        found = judged(chat_tokenizer, environment, replica, chat=True, run=asyncio.run)
    finally:
        environment.close()
    assert (found.mean_score, found.accuracy, found.num_problems) == (0.5, 0.0, 1)
    assert environment._task.judged == 0  # type: ignore[attr-defined]
    said = found.samples[0].answer
    assert [said.count(word) for word in (FIRST.question, "Perhaps.", "Sure?", "Yes.")] == [1, 1, 1, 1]
    assert said.index("Perhaps.") < said.index("Sure?") < said.index("Yes.")


def test_one_answer_that_the_task_judges_is_no_episode() -> None:
    assert not plays_episodes(FeedbackEnvironment(TASK))
    assert plays_episodes(FeedbackEnvironment(TASK, turns=2))
    assert plays_episodes(Odd())


@pytest.mark.parametrize("is_other", [False, True])
def test_a_worker_evaluates_amid_training_by_episodes(tmp_path: Path, tokenizer: Tokenizer, is_other: bool) -> None:
    """By training's environment, or by one of held-out episodes' own."""
    bench = Bench(tmp_path, tokenizer, FakeReplica(stop=1.0), turns=2)
    bench.worker.evaluation = EvaluationSettings(num_problems=2, every=1)
    if is_other:
        bench.worker.heldout_environment = Odd()
    bench.ready()
    bench.run(lambda: any(record["event"] == "heldout" for record in bench.records))
    (record, *_) = (record for record in bench.records if record["event"] == "heldout")
    assert record["mean_score"] == (0.875 if is_other else 0.0)
    assert all("=" in sample["answer"] for sample in record["samples"][:1]), "the observation is shown"
