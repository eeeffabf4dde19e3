"""A model folder as a model: a vLLM server of its own, asked by token ids."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from learner_jax.contracts import check_weights, read_model_config
from rewards.environments import AgentEnvironment
from serving_bridge.evaluation import PromptEncoder
from serving_bridge.fleet import Replica
from serving_bridge.settings import ServingSettings
from serving_bridge.text import Tokenizer, load_tokenizer
from serving_bridge.vllm import ReplicaError, VllmClient
from tools.evaluation.asking import Answer, Dialog, Identity, Measurement, Request, cut_at
from tools.evaluation.errors import SuiteError
from tools.evaluation.problems import OpenSuite, SuiteProblem

#: tries of a request that the server fails or aborts, and the pause before the second
_TRIES, _FIRST_RETRY_S = 4, 0.5
_REQUEST_TIMEOUT_S = 3600.0
#: Names the weights that the server was started with, so that its answers carry a version.
_FOLDER_VERSION = 0


class FolderPrompts:
    """How problems become token ids for a model folder, checked before any server starts.

    Args:
      max_model_len: longest prompt and answer together, in tokens.

    Attributes:
      longest: tokens of the longest prompt so far and its answer together.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_model_len: int) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.longest = 2

    @classmethod
    def of(cls, model_dir: Path, *, max_model_len: int | None = None, family: str = "") -> FolderPrompts:
        """Those of a folder whose weights and tokenizer fit its model; as long as the model has positions by default.

        Raises:
          ModelConfigError, WeightFileError, TokenizerError: they do not, or one of them can't be read.
        """
        tokenizer, model = load_tokenizer(model_dir), read_model_config(model_dir, family=family)
        check_weights(model_dir, model)
        tokenizer.check_vocabulary(model)
        return cls(tokenizer, max_model_len=max_model_len or model.max_position_embeddings)

    def begin(self, suite: OpenSuite, problem: SuiteProblem) -> Dialog:
        settings, text = suite.settings, suite.prompt(problem)
        if suite.plays_episodes:
            return self._begin_episode(suite, problem)
        if settings.system and not settings.chat:
            raise SuiteError(f"suite {suite.name} has a system message, which needs chat = true")
        if suite.environment is not None and settings.sampling.stop:
            raise SuiteError(f"suite {suite.name}: a dialog goes on with what was sampled: take out sampling.stop")
        messages, own = suite.messages(problem), problem.problem.prompt
        if not isinstance(own, str | None):
            tokens = self.tokenizer.encode_chat(own, tools=problem.problem.tools)
        elif settings.chat:
            tokens = self.tokenizer.encode_chat([{"role": role, "content": said} for role, said in messages])
        else:
            tokens = self.tokenizer.encode_prompt(text, chat=False)
        self._check(suite, problem.id, len(tokens))
        return Dialog(messages, tuple(tokens))

    def _begin_episode(self, suite: OpenSuite, problem: SuiteProblem) -> Dialog:
        """Its prompt; an agent makes its own."""
        check_episodes(suite, max_model_len=self.max_model_len)
        if isinstance(suite.environment, AgentEnvironment):
            return Dialog(suite.messages(problem))
        tokens = episode_encoder(suite, self.tokenizer).tokens(problem.problem)
        self._check(suite, problem.id, len(tokens))
        return Dialog(suite.messages(problem), tuple(tokens))

    def go_on(self, suite: OpenSuite, dialog: Dialog, answer: Answer, observation: str) -> Dialog:
        said = self.tokenizer.encode_observation(observation, chat=suite.settings.chat, after=answer.tokens[-1])
        tokens = (*dialog.tokens, *answer.tokens, *said)
        self._check(suite, "of a dialog", len(tokens))
        return Dialog((*dialog.messages, ("assistant", answer.text), ("user", observation)), tokens)

    def _check(self, suite: OpenSuite, name: str, number: int) -> None:
        self.longest = max(self.longest, number + suite.settings.sampling.max_tokens)
        room = self.max_model_len - suite.settings.sampling.max_tokens
        if number > room:
            raise SuiteError(
                f"suite {suite.name}: the prompt {name} has {number} tokens, but {room} fit beside sampling.max_tokens "
                f"({suite.settings.sampling.max_tokens}) in the server's {self.max_model_len}; raise --max-model-len, "
                f"or serving.max_model_len of --config, or lower max_tokens"
            )


def check_episodes(suite: OpenSuite, *, max_model_len: int) -> None:
    """Raises `SuiteError` where a suite's episodes can't be played in a context of so many tokens."""
    sampling = suite.settings.sampling
    if sampling.stop:
        raise SuiteError(f"suite {suite.name}: an episode goes on with what was sampled: take out sampling.stop")
    if sampling.max_tokens + suite.settings.max_observation_tokens > max_model_len:
        raise SuiteError(
            f"suite {suite.name}: sampling.max_tokens ({sampling.max_tokens}) and max_observation_tokens "
            f"({suite.settings.max_observation_tokens}) are more than the server's context ({max_model_len}): lower "
            f"them, or raise --max-model-len"
        )


def episode_encoder(suite: OpenSuite, tokenizer: Tokenizer) -> PromptEncoder:
    """How a suite's episodes become token ids, with the tools that its environment shows."""
    return PromptEncoder(
        tokenizer,
        template=suite.settings.prompt_template,
        chat=suite.settings.chat,
        max_prompt_tokens=suite.settings.max_observation_tokens,
        tools=getattr(suite.environment, "tools", ()),
    )


class ReplicaModel:
    """A replica that starts with the first question; implements `tools.evaluation.asking.Model`.

    Answers that are kept need none: what is only scored anew, starts no server.

    Args:
      start: starts the server and returns its client; called at most once.
      clock: seconds; only differences count.
    """

    def __init__(
        self,
        identity: Identity,
        prompts: FolderPrompts,
        start: Callable[[], Awaitable[VllmClient]],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._identity, self._prompts, self._start, self._clock = identity, prompts, start, clock
        self._starting = asyncio.Lock()
        self._client: VllmClient | None = None

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def prompts(self) -> FolderPrompts:
        """How its prompts become token ids."""
        return self._prompts

    def begin(self, suite: OpenSuite, problem: SuiteProblem) -> Dialog:
        return self._prompts.begin(suite, problem)

    def go_on(self, suite: OpenSuite, dialog: Dialog, answer: Answer, observation: str) -> Dialog:
        return self._prompts.go_on(suite, dialog, answer, observation)

    async def answer(self, request: Request) -> Answer:
        """One answer; requests that fail in a way that may pass are tried again.

        Raises:
          ReplicaError: the server failed for good.
        """
        sampling, tokenizer = request.sampling, self._prompts.tokenizer
        async with self._starting:
            client = self._client = self._client or await self._start()
        for attempt in range(1, _TRIES + 1):
            begun_s = self._clock()
            try:
                (completion,) = await client.generate(
                    request.dialog.tokens,
                    n=1,
                    max_tokens=sampling.max_tokens,
                    stop_token_ids=tokenizer.eos_ids,
                    timeout_s=_REQUEST_TIMEOUT_S,
                    temperature=sampling.temperature or 1.0,
                    greedy=sampling.temperature == 0,
                    top_p=sampling.top_p,
                    seed=request.seed,
                )
                break
            except ReplicaError as error:
                if not error.retryable or attempt == _TRIES:
                    raise
                await asyncio.sleep(_FIRST_RETRY_S * 2 ** (attempt - 1))
        seconds, tokens = self._clock() - begun_s, tuple(completion.tokens.tolist())
        # Stop texts are cut here: vLLM looks for them in text, and this route has none.
        text, was_stopped = cut_at(tokenizer.decode(tokens), sampling.stop)
        total, least = float(completion.logprobs.sum()), float(completion.logprobs.min(initial=0.0))
        measured = Measurement(seconds, total, least)
        return Answer(text, "stop" if was_stopped else completion.finish_reason, len(tokens), tokens, measured)


@asynccontextmanager
async def served(
    model_dir: Path, settings: ServingSettings, *, log_path: Path, family: str = ""
) -> AsyncIterator[VllmClient]:
    """The client of a vLLM server on the folder, which ends with the block.

    Raises:
      ReplicaStartError: it does not start.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        replica = Replica("evaluation", model_dir, settings, session, log_path=log_path, model_family=family)
        await replica.start()
        try:
            await replica.client.control().name_version(_FOLDER_VERSION)
            yield replica.client
        finally:
            await replica.stop()
