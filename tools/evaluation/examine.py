"""Asks a model all problems of a suite, each as often as the suite says, and has every answer judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import cast

from rewards.contracts import Environment, EpisodeState, Outcome, Reply, RewardRequest, RewardResult, failed
from tools.evaluation.answers import AnswerLog
from tools.evaluation.asking import Answer, Dialog, Measurement, Model, Request
from tools.evaluation.episodes import Episodes
from tools.evaluation.judged import Judged, short
from tools.evaluation.problems import OpenSuite, SuiteProblem
from tools.evaluation.reading import Reader, Reading
from tools.evaluation.replica import ReplicaModel

#: Beyond the verifier's own deadline: one that does not keep it.
_VERDICT_S = 3900.0
_SCORING_THREADS = 16


async def examine(
    model: Model,
    suite: OpenSuite,
    log: AnswerLog,
    *,
    concurrency: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Judged]:
    """All samples, in the order of the problems, then of the samples' numbers.

    Answers that the log has are not asked again. Whatever error an answer meets ends the whole; what came is kept.

    Args:
      concurrency: samples in work at a time.
      progress: called after each.
    """
    wanted = iter([(at, sample) for at in range(len(suite.problems)) for sample in range(suite.settings.samples)])
    found: dict[tuple[int, int], Judged] = {}

    with ThreadPoolExecutor(min(concurrency, _SCORING_THREADS), thread_name_prefix="weir-score") as threads:
        play = _player(model, suite, log, threads)

        async def work() -> None:
            for at, sample in wanted:
                found[at, sample] = await play(suite.problems[at], sample)
                progress()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise _first(several) from None
    return [found[place] for place in sorted(found)]


def _player(
    model: Model, suite: OpenSuite, log: AnswerLog, threads: ThreadPoolExecutor
) -> Callable[[SuiteProblem, int], Awaitable[Judged]]:
    """Who plays one sample of a problem."""
    if suite.plays_episodes:
        assert isinstance(model, ReplicaModel)  # others refused to begin
        return Episodes(model, suite, log, threads).play
    return partial(_one, model, suite, log, _Judge(suite, threads))


def prompts(model: Model, suite: OpenSuite) -> Iterator[Dialog]:
    """The first prompt of every problem: what can't be asked is known before anything is."""
    return (model.begin(suite, problem) for problem in suite.problems)


async def _one(
    model: Model, suite: OpenSuite, log: AnswerLog, judge: _Judge, problem: SuiteProblem, sample: int
) -> Judged:
    dialog = model.begin(suite, problem)
    environment = cast("Environment | None", suite.environment)  # a dialog of text
    state = environment.reset(problem.problem) if environment is not None else None
    total, counts, turn, measured = 0.0, list[int | None](), 0, list[Measurement | None]()
    while True:
        request = Request(dialog, suite.settings.sampling, sample, None).seeded()
        key = request.key(model.identity)
        answer = log.find(key)
        if answer is None:
            answer = await model.answer(request)
            about = {"suite": suite.name, "problem": problem.id, "sample": sample, "turn": turn}
            log.add(key, answer, **about, prompt=dialog.messages[-1][1])
        counts.append(answer.num_tokens)
        measured.append(answer.measured)
        outcome, reading = await judge(problem, state, answer)
        turn += 1
        total += outcome.reward or 0.0
        if not isinstance(outcome.observation, str) or suite.environment is None:
            break
        dialog, state = model.go_on(suite, dialog, answer, outcome.observation), outcome.state
    known = [count for count in counts if count is not None]
    if reading.problem:
        outcome, total = _outcome(failed(reading.problem, "timeout"), problem), 0.0
    return Judged(
        problem=problem.id,
        sample=sample,
        messages=(*dialog.messages, ("assistant", answer.text)),
        answer=answer.text,
        finish_reason=answer.finish_reason,
        num_tokens=sum(known) if len(known) == len(counts) else None,
        score=None if outcome.reward is None else total,
        verdict=outcome.verdict,
        reasons=short(outcome.reasons),
        refused=answer.finish_reason == "content_filter" or reading.refused,
        well_formed=reading.well_formed,
        vote=reading.vote,
        turns=turn,
        measured=reduce(lambda one, other: one and other and one.and_then(other), measured),
    )


class _Judge:
    """Scores answers in threads; a verifier that raises or hangs gives a failed verdict."""

    def __init__(self, suite: OpenSuite, threads: ThreadPoolExecutor) -> None:
        self._suite, self._threads = suite, threads
        self._reader = Reader(suite.settings)

    async def __call__(
        self, problem: SuiteProblem, state: EpisodeState | None, answer: Answer
    ) -> tuple[Outcome, Reading]:
        """The verdict, and what the suite's patterns say; both in a thread, since either may take its time."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._judged, problem, state, answer)
        try:
            async with asyncio.timeout(_VERDICT_S):
                return await work
        except TimeoutError:
            result = failed(f"no verdict after {_VERDICT_S:g} s", "timeout")
            return _outcome(result, problem), Reading(False, None, "")

    def _judged(self, problem: SuiteProblem, state: EpisodeState | None, answer: Answer) -> tuple[Outcome, Reading]:
        return self._score(problem, state, answer), self._reader.read(answer.text)

    def _score(self, problem: SuiteProblem, state: EpisodeState | None, answer: Answer) -> Outcome:
        finished = "length" if answer.finish_reason == "length" else "stop"
        try:
            if state is not None:
                environment = cast("Environment", self._suite.environment)
                return environment.step(state, Reply(answer.text, finished, is_last=False))
            return _outcome(self._suite.task.score(RewardRequest(problem.problem, answer.text, finished)), problem)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (isolation: one answer must not end the evaluation)
            return _outcome(failed(f"{type(error).__name__}: {error}"), problem)


def _outcome(result: RewardResult, problem: SuiteProblem) -> Outcome:
    state = EpisodeState(problem.problem, 1)
    return Outcome(result.score, result.parts, result.verdict, None, state, result.reasons)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
