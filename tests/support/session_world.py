"""What tests of sessions share: a small tokenizer in ChatML with tools, and a sampler that is scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from serving_bridge.sessions import ChatMessage, Session, SessionEndpoint, SessionLimits
from serving_bridge.text import Tokenizer, load_tokenizer
from serving_bridge.vllm import Completion
from tests.support.tool_templates import HERMES

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Sum.", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes and some merges; text of one character a token has other ids than the tokenizer gives."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["It is twelve. What is 5 + 7? And one more? user assistant question answer"] * 9, trainer
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": HERMES}))
    return load_tokenizer(folder)


def completion(tokens: Sequence[int], *, version: int = 3, finish_reason: str = "stop") -> Completion:
    """Tokens whose log-probs tell them apart."""
    ids = np.array(tokens, np.int32)
    return Completion(ids, (-ids % 97 / 100).astype(np.float32), np.full(len(ids), version, np.int32), finish_reason)


@dataclass
class Scripted:
    """Answers with texts, each split into single characters' tokens: never the ids that encoding the text gives.

    Attributes:
      contexts: that were asked for.
    """

    tokenizer: Tokenizer
    texts: Iterator[str]
    finish_reason: str = "stop"
    contexts: list[list[int]] = field(default_factory=list)

    async def sample(self, context: Sequence[int], max_tokens: int) -> Completion:
        self.contexts.append(list(context))
        text = next(self.texts)
        tokens = [
            index for character in text for index in self.tokenizer.encode_observation(character, chat=False, after=-1)
        ]
        if self.finish_reason == "stop":
            tokens.append(self.tokenizer.eos_ids[0])
        return completion(tokens[:max_tokens], finish_reason=self.finish_reason)


def session_of(tokenizer: Tokenizer, *texts: str, **limits: int) -> tuple[Session, Scripted]:
    scripted = Scripted(tokenizer, iter(texts))
    bounds = {"max_answers": 50, "max_tokens": 200, "max_context": 4000} | limits
    return Session(tokenizer, scripted.sample, SessionLimits(**bounds)), scripted


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def shown(message: ChatMessage) -> dict[str, Any]:
    """A message as a client sends it back."""
    told: dict[str, Any] = {"role": message.role, "content": message.content or None}
    if message.calls:
        told["tool_calls"] = [call.as_openai() for call in message.calls]
    return told


def served(session: Session, work: Callable[[openai.AsyncOpenAI, str], Awaitable[Any]]) -> Any:
    """What `work` gives, called with OpenAI's client and the base URL of a session."""

    async def run() -> Any:
        endpoint = SessionEndpoint(max_context=4000)
        await endpoint.start()
        try:
            async with (
                endpoint.opened(session) as url,
                openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
            ):
                return await work(client, url)
        finally:
            await endpoint.close()

    return asyncio.run(run())
