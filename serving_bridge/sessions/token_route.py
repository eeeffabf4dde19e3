"""The route of clients that render and tokenize themselves: `/inference/v1/generate`, as vLLM serves it.

Their prompts are the ids that they showed before, and some more; what came back is in them as it was sampled. Sampling
is the run's, but for `n`, `max_tokens` and further `stop_token_ids`: an answer that is cut at a token has the same
distribution as one that ended there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from serving_bridge.sessions.errors import SessionError
from serving_bridge.sessions.tree import Answered
from serving_bridge.vllm import Completion

_MAX_STOPS = 256


class _Sampling(msgspec.Struct):
    n: int | None = None
    max_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    stop: Any = None
    structured_outputs: Any = None
    allowed_token_ids: Any = None
    logit_bias: Any = None
    bad_words: Any = None


class TokenRequest(msgspec.Struct):
    """A request as far as a session heeds it; other fields are left alone."""

    token_ids: list[int]
    sampling_params: _Sampling
    request_id: str | None = None
    stream: bool | None = None
    features: Any = None
    content_parts: Any = None


#: what would change the distribution that answers are drawn from, or how they look
_BENDS = ("stop", "structured_outputs", "allowed_token_ids", "logit_bias", "bad_words")


def read_token_request(body: bytes, *, max_choices: int, vocab_size: int) -> TokenRequest:
    """The request of a body.

    Raises:
      SessionError: it is none, or asks for what a session can't give.
    """
    try:
        asked = msgspec.json.decode(body, type=TokenRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SessionError(f"the body is no request to generate tokens: {error}") from None
    if not asked.token_ids:
        raise SessionError("expected at least one token id", param="token_ids")
    if not 0 <= min(asked.token_ids) <= max(asked.token_ids) < vocab_size:
        raise SessionError(f"expected ids from 0 and below {vocab_size}", param="token_ids")
    if asked.features or asked.content_parts:
        raise SessionError("the model reads text only", param="features" if asked.features else "content_parts")
    if asked.stream:
        raise SessionError("tokens come once the answer is whole; expected false", param="stream")
    _check_sampling(asked.sampling_params, max_choices)
    return asked


def _check_sampling(given: _Sampling, max_choices: int) -> None:
    def wrong(expected: str, name: str) -> SessionError:
        return SessionError(expected, param=f"sampling_params.{name}")

    if given.n is not None and not 1 <= given.n <= max_choices:
        raise wrong(f"expected 1 to {max_choices}", "n")
    if given.max_tokens is not None and given.max_tokens < 1:
        raise wrong("expected at least 1", "max_tokens")
    if len(given.stop_token_ids or ()) > _MAX_STOPS:
        raise wrong(f"expected at most {_MAX_STOPS}", "stop_token_ids")
    for name in _BENDS:
        if getattr(given, name):
            raise wrong("answers are drawn as the run says; expected none", name)


def tokens_told(answers: Sequence[Answered], request_id: str | None) -> dict[str, Any]:
    """The answer to a request, as vLLM words it."""
    return {
        "request_id": request_id or f"generate-{secrets.token_hex(8)}",
        "prompt_token_ids": None,
        "prompt_logprobs": None,
        "kv_transfer_params": None,
        "choices": [_choice(index, answered.answer) for index, answered in enumerate(answers)],
    }


def logprobs_told(answer: Completion) -> list[Mapping[str, Any]]:
    """Log-probs of an answer's tokens, nats; tokens are named by their ids, since their texts may not be unique."""
    pairs = zip(answer.tokens.tolist(), answer.logprobs.tolist(), strict=True)
    return [{"token": f"token_id:{t}", "logprob": p, "bytes": None, "top_logprobs": []} for t, p in pairs]


def _choice(index: int, answer: Completion) -> dict[str, Any]:
    position, spans = 0, []
    for version, tokens in groupby(answer.policy_version.tolist()):
        start, position = position, position + sum(1 for _ in tokens)
        spans.append({"version": str(version), "start": start, "end": position})
    return {
        "index": index,
        "token_ids": answer.tokens.tolist(),
        "logprobs": {"content": logprobs_told(answer)},
        "finish_reason": answer.finish_reason,
        "stop_reason": None,
        "weight_versions": spans,
        "routed_experts": None,
        "sampling_mask": None,
    }
