"""What a vLLM replica's answer must be before any of it can become a sample, and the errors for what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from learner_jax.contracts import MIN_LOGPROB, MISSING_LOGPROB
from learner_jax.runtime import WeirError
from serving_bridge.vllm_plugin import PackedAnswer, PackedChoice

_TOKENS = np.dtype("<i4")
_LOGPROBS = np.dtype("<f4")
#: above 0 by no more than the rounding of a float32 softmax; as `Trajectory.validate` takes it
_MAX_LOGPROB = 1e-4
#: of a policy version: it fits an int32
_MAX_DIGITS = 9


class ReplicaError(WeirError, RuntimeError):
    """A replica did not do what it was asked."""

    #: whether the same request may succeed later or on another replica
    retryable = False


class Aborted(ReplicaError):
    """The replica gave up on the answer (it drains, or was told to abort)."""

    retryable = True


class Unreachable(ReplicaError):
    """No answer or a broken connection."""

    retryable = True


class Failed(Unreachable):
    """The replica answered, with a failure of its own (5xx)."""


class Full(Failed):
    """Too many requests wait at a replica that is well, by the engine's own bounds."""


class Unversioned(ReplicaError):
    """The replica answers with weights that no policy version names: it is stale."""

    retryable = True


class Rejected(ReplicaError):
    """The request itself is wrong; trying again gives the same."""


class Superseded(Rejected):
    """The request came from a weight round that another has followed on this replica."""


class Malformed(ReplicaError):
    """The answer breaks vLLM's own contract; such a server can't be trained from."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer of T tokens, the end-of-sequence token included.

    Attributes:
      tokens: int32[T].
      logprobs: float32[T], nats, after temperature, as the sampler used them.
      policy_version: int32[T], version of the weights that sampled each token.
      finish_reason: "stop" or "length"; "abort" only where unfinished answers were asked for.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    policy_version: np.ndarray
    finish_reason: str

    def __len__(self) -> int:
        return len(self.tokens)


def joined(parts: Sequence[Completion]) -> Completion:
    """One answer from the pieces that it was sampled in; it ended as the last one did."""
    if len(parts) == 1:
        return parts[0]
    return Completion(
        tokens=np.concatenate([part.tokens for part in parts]),
        logprobs=np.concatenate([part.logprobs for part in parts]),
        policy_version=np.concatenate([part.policy_version for part in parts]),
        finish_reason=parts[-1].finish_reason,
    )


@dataclass(frozen=True)
class Asked:
    """What of the request its answers are held against.

    Attributes:
      vocab_size: ids are below it; None where it is not known.
      unfinished: whether answers that were aborted are taken, as far as they came.
    """

    n: int
    max_tokens: int
    stop_token_ids: frozenset[int]
    vocab_size: int | None = None
    unfinished: bool = False


def completions(answer: PackedAnswer, asked: Asked, where: str) -> list[Completion]:
    """The answer's completions by index, every one checked.

    Raises:
      Aborted, Unversioned, Rejected, Malformed: one of them is no sound answer to what was asked.
    """
    choices = sorted(answer.choices, key=attrgetter("index"))
    if len(choices) != asked.n:
        raise Malformed(f"{where} sent {len(choices)} answers, expected {asked.n}")
    if [choice.index for choice in choices] != list(range(asked.n)):
        raise Malformed(f"{where} numbered its answers {[choice.index for choice in choices]}, expected 0 and up")
    return [_completion(choice, asked, f"{where}, answer {choice.index}") for choice in choices]


def prompt_logprobs(answer: PackedAnswer, token_ids: Sequence[int], where: str) -> np.ndarray:
    """float32[T-1], nats: entry t is log p(tokens[t+1] | tokens[:t+1]).

    Raises:
      Aborted, Malformed: they did not come, or not for these tokens.
    """
    if any(choice.finish_reason == "abort" for choice in answer.choices):
        raise Aborted(f"{where} aborted a probe")
    values = _array(answer.prompt_logprobs or b"", _LOGPROBS, where)
    if len(values) != len(token_ids) - 1:
        raise Malformed(f"{where} sent {len(values)} log-probs for {len(token_ids)} tokens of a prompt")
    if (values <= MISSING_LOGPROB).any():
        token = token_ids[1 + int(np.argmax(values <= MISSING_LOGPROB))]
        raise Malformed(f"{where} sent no log-prob for prompt token {token}")
    return values


def _completion(choice: PackedChoice, asked: Asked, where: str) -> Completion:
    tokens = _array(choice.tokens, _TOKENS, where)
    logprobs = _array(choice.logprobs, _LOGPROBS, where)
    reason = choice.finish_reason
    if reason == "abort" and not asked.unfinished:
        raise Aborted(f"{where} was aborted after {len(tokens)} tokens")
    if reason not in ("stop", "length", "abort"):
        raise Malformed(f"{where} has finish reason {reason!r}, expected stop, length or abort")
    if reason == "length" and len(tokens) < asked.max_tokens:
        raise Rejected(f"{where} was cut at {len(tokens)} of {asked.max_tokens} tokens: raise serving.max_model_len")
    if len(tokens) > asked.max_tokens:
        raise Malformed(f"{where} has {len(tokens)} tokens, expected at most {asked.max_tokens}")
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= (asked.vocab_size or 2**31)):
        strange = tokens.min() if tokens.min() < 0 else tokens.max()
        raise Malformed(f"{where} has token id {strange}, expected ids from 0 and below {asked.vocab_size or 2**31}")
    if len(logprobs) != len(tokens):
        raise Malformed(f"{where}: log-probs of {len(logprobs)} tokens don't belong to its {len(tokens)} tokens")
    if reason == "stop" and (not len(tokens) or int(tokens[-1]) not in asked.stop_token_ids):
        last = tokens[-1:].tolist() or "no token"
        raise Malformed(f"{where} stopped at {last}, expected one of {sorted(asked.stop_token_ids)}")
    if not ((logprobs >= MIN_LOGPROB) & (logprobs <= _MAX_LOGPROB)).all():
        raise Malformed(
            f"{where}: log-probs from {logprobs.min()} to {logprobs.max()}, expected them below 0 and above "
            f"{MIN_LOGPROB:g}; {MISSING_LOGPROB:g} is vLLM's mark for a missing one"
        )
    return Completion(
        tokens=tokens,
        logprobs=logprobs,
        policy_version=_expand(choice.spans, len(tokens), where),
        finish_reason=reason,
    )


def version_named(name: str) -> int | None:
    """The policy version that a server's name for its weights says; None if it says none."""
    return int(name) if name.isascii() and name.isdecimal() and len(name) <= _MAX_DIGITS else None


def _array(content: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    """A writable copy of an array that came as bytes."""
    if len(content) % dtype.itemsize:
        raise Malformed(f"{where} has an array of {len(content)} bytes, expected {dtype.itemsize} for each token")
    return np.frombuffer(content, dtype).copy()


def _expand(spans: Sequence[tuple[str, int, int]], length: int, where: str) -> np.ndarray:
    """Version spans -> int32[T]; they must tile the tokens without gap or overlap."""
    versions = np.empty(length, _TOKENS)
    position = 0
    for name, start, end in spans:
        version = version_named(name)
        if version is None:
            raise Unversioned(f"{where} has weight version {name!r}, expected a policy version; update it first")
        if start != position or not start <= end <= length:
            raise Malformed(f"{where}: version span {start}-{end} does not follow token {position}")
        versions[start:end] = version
        position = end
    if position != length:
        raise Malformed(f"{where}: version spans cover {position} of {length} tokens")
    return versions
