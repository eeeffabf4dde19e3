"""Episodes that a program of the user's plays: it speaks to the policy over OpenAI's API, and says what it earned."""

from __future__ import annotations

from dataclasses import replace

from rewards.contracts import (
    EpisodeState,
    Outcome,
    Problem,
    Reply,
    RewardRequest,
    RewardResult,
    Task,
    failed,
    scored,
)
from rewards.sandbox import AGENT, VerifierError, printable, to_json, user_pool
from rewards.settings import TaskSettings


class AgentEnvironment:
    """Plays the function `task.episode.agent`, which is called as `(base_url, row)`, sync or async.

    It returns a number, or named numbers, as a reward does. With None the last answer is judged by the task. It is
    trusted code: its process has files, network and the worker's environment. The policy's words that it handles are
    not trusted; run them in a sandbox.

    Implements `rewards.contracts.Environment` too: an evaluation that plays no agents judges one answer by the task.

    Raises:
      TaskError, DoorError: the program can't be used.
    """

    def __init__(self, task: Task, settings: TaskSettings) -> None:
        self._task, self._name = task, settings.episode.agent
        self.version = f"{task.version}+{AGENT.version(self._name)}:{settings.turns}"
        self.max_turns = settings.turns
        self.processes = settings.episode.agent_processes
        self._pool = user_pool(
            "rewards.sandbox.agent_function",
            self._name,
            confined=False,
            deadline_s=settings.episode.wall_s,
            num_workers=self.processes,
        )

    def run(self, problem: Problem, base_url: str) -> RewardResult | None:
        """Plays one episode to its end; blocks up to `task.episode.wall_s`. None: the program left the judging to us.

        Whatever the program does, it returns: errors, time-outs and dead processes are failed verdicts.
        """
        request = {"base_url": base_url, "row": to_json(problem.metadata)}
        try:
            verified = self._pool.call(request, key=base_url)
            if not verified.state:
                return None
            parts = {printable(name): value for name, value in verified.parts.items()}
            return scored(verified.judged_score, parts)
        except VerifierError as error:
            return failed(f"task.episode.agent {self._name!r}: {error}", error.failure)

    def judge(self, problem: Problem, answer: str, finish_reason: str) -> RewardResult:
        """The task's word on an answer."""
        return self._task.score(RewardRequest(problem, answer, finish_reason))

    def reset(self, problem: Problem) -> EpisodeState:
        """The state before the one answer."""
        return EpisodeState(problem)

    def step(self, state: EpisodeState, reply: Reply) -> Outcome:
        """The task's word on one answer, without the program."""
        result = self.judge(state.problem, reply.text, reply.finish_reason)
        after = replace(state, turn=state.turn + 1)
        return Outcome(result.score, result.parts, result.verdict, None, after, result.reasons)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


def agent(task: Task, settings: TaskSettings) -> AgentEnvironment:
    """The environment `agent`."""
    return AgentEnvironment(task, settings)
