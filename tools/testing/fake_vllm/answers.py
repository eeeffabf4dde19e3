"""A generation while the fake engine works on it, and what vLLM's answer to it looks like."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from serving_bridge.vllm_plugin import PackedAnswer, PackedChoice, SwapAnswer

#: (HTTP status, payload)
Answer = tuple[int, bytes]


@dataclass(eq=False)
class Generation:
    """One /inference/v1/generate of `num_rows` answers.

    Attributes:
      arrived_in_pause: pauses that the engine had seen when it came.
      rows, logprobs, versions: of the tokens sampled so far, row by row; a version is the name that weights had then.
      finished: finish reason by row, None while it is open.
    """

    request_id: str
    prompt: list[int]
    num_rows: int
    max_tokens: int
    temperature: float
    stop_ids: frozenset[int]
    draws: list[random.Random]
    arrived_in_pause: int
    rows: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    versions: list[list[str]] = field(default_factory=list)
    finished: list[str | None] = field(default_factory=list)
    aborted: bool = False

    def __post_init__(self) -> None:
        for _ in range(self.num_rows):
            self.rows.append([])
            self.logprobs.append([])
            self.versions.append([])
            self.finished.append(None)

    @property
    def open_rows(self) -> list[int]:
        return [index for index, reason in enumerate(self.finished) if reason is None]

    def add(self, row: int, token: int, logprob: float, version: str) -> None:
        """One sampled token, which may end its row."""
        self.rows[row].append(token)
        self.logprobs[row].append(logprob)
        self.versions[row].append(version)
        if token in self.stop_ids:
            self.finished[row] = "stop"
        elif len(self.rows[row]) >= self.max_tokens:
            self.finished[row] = "length"

    def end(self) -> None:
        """Rows that are still open were aborted."""
        self.finished = [reason or "abort" for reason in self.finished]


def json_answer(content: dict[str, Any]) -> Answer:
    return 200, msgspec.json.encode(content)


def answer(request: Generation, prompt_logprobs: list[float] | None) -> bytes:
    """What the plugin sends to who asks for packed answers, as Weir always does."""
    choices = [
        PackedChoice(
            index=index,
            finish_reason=request.finished[index],
            tokens=np.array(tokens, "<i4").tobytes(),
            logprobs=_floats(request.logprobs[index]),
            spans=spans(request.versions[index]),
        )
        for index, tokens in enumerate(request.rows)
    ]
    of_prompt = None if prompt_logprobs is None else _floats(prompt_logprobs)
    return msgspec.msgpack.encode(PackedAnswer(choices, of_prompt))


def together(answers: Sequence[bytes]) -> bytes:
    """What the plugin sends to who asked with several prompts at once."""
    return msgspec.msgpack.encode([msgspec.Raw(answer) for answer in answers])


def swap_answer(is_applied: bool, error: str, proof: bytes, num_running: int) -> bytes:
    """What the plugin sends to who asked for a swap; the proof as `together` has it, empty if there is none."""
    answers = msgspec.msgpack.decode(proof, type=list[PackedAnswer]) if proof and not error else []
    return msgspec.msgpack.encode(SwapAnswer(is_applied, error, answers, num_running=num_running))


def _floats(values: Sequence[float]) -> bytes:
    with np.errstate(over="ignore"):
        return np.array(values, "<f4").tobytes()


def metrics(running: int, waiting: int, max_running: int, totals: Counter[str]) -> str:
    """What vLLM's /metrics says, as far as anybody reads it.

    Args:
      running, waiting: answers.
      totals: counters by name: "tokens", "prompt_tokens", "preemptions", and answers by finish reason.
    """
    labels = '{engine="0",model_name="policy"}'
    lines = [
        f"vllm:num_requests_running{labels} {float(running)}",
        f"vllm:num_requests_waiting{labels} {float(waiting)}",
        f"vllm:kv_cache_usage_perc{labels} {running / max_running}",
        f"vllm:num_preemptions_total{labels} {float(totals['preemptions'])}",
        f"vllm:generation_tokens_total{labels} {float(totals['tokens'])}",
        f"vllm:prompt_tokens_total{labels} {float(totals['prompt_tokens'])}",
    ]
    for reason in ("stop", "length", "abort"):
        labels = f'{{engine="0",finished_reason="{reason}",model_name="policy"}}'
        lines.append(f"vllm:request_success_total{labels} {float(totals[reason])}")
    return "\n".join(lines) + "\n"


def spans(names: list[str]) -> list[tuple[str, int, int]]:
    """Version name by token -> spans that tile the tokens."""
    found: list[tuple[str, int, int]] = []
    for position, name in enumerate(names):
        first = found.pop()[1] if found and found[-1][0] == name else position
        found.append((name, first, position + 1))
    return found
