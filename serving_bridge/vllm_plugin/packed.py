"""Answers as they go over the wire: arrays as bytes in msgpack, in place of a JSON object for each token."""

from __future__ import annotations

import msgspec

#: as which Content-Type packed answers are sent
PACKED_TYPE = b"application/msgpack"


class PackedChoice(msgspec.Struct, array_like=True, gc=False):
    """One answer of T tokens.

    Attributes:
      tokens: int32[T], little-endian.
      logprobs: float32[T], little-endian; nats, after temperature, as the sampler used them.
      spans: (name of the weights, first token, token after the last); they tile the tokens.
    """

    index: int
    finish_reason: str | None
    tokens: bytes
    logprobs: bytes
    spans: list[tuple[str, int, int]]


class PackedAnswer(msgspec.Struct, array_like=True):
    """All answers to one request.

    Attributes:
      prompt_logprobs: float32[P-1], little-endian, nats: entry t is log p(prompt[t+1] | prompt[:t+1]). None where
        nobody asked for them.
    """

    choices: list[PackedChoice]
    prompt_logprobs: bytes | None = None


class SwapAnswer(msgspec.Struct, array_like=True):
    """How far a swap came; the engine is paused.

    Attributes:
      is_applied: the weights are those of the version that was asked for, and have no version's name. If not, an update
        failed: the workers' status says what their weights are.
      error: what failed; "" where nothing did.
      proof: an answer for each golden prompt, with the prompt's own log-probs; empty where something failed.
      proof_s: what the proof took.
      num_running: requests in flight when the pause began.
    """

    is_applied: bool = False
    error: str = ""
    proof: list[PackedAnswer] = []
    proof_s: float = 0.0
    num_running: int = 0
