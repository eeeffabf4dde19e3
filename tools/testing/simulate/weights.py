"""Numbers in place of a model: what a learner publishes and an engine computes with, through the real weight store."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learner_jax.contracts import TensorEntry
from serving_bridge.weights import StoreError, Tensor, WeightStore, manifests_to_load, read_path
from tools.testing.fake_vllm import Applied, Sampled, check_newer

GOLDEN = ((3, 5, 7), (2, 4, 6, 8))
VOCAB_SIZE = 64
#: so many that two changed ones are worth an update
_NUM_ELEMENTS = 256


@dataclass(frozen=True)
class Parameters:
    """What a learner trained.

    Attributes:
      identity: of these very parameters, positive; 0 for what a server starts with, negative for torn ones.
      history: (step, group ids) of all training behind them.
    """

    identity: int
    history: tuple[tuple[int, tuple[str, ...]], ...] = ()


def logprob_of(identity: int, tokens: Sequence[int], position: int) -> float:
    """A number in place of log p(tokens[position] | tokens before) under the weights of this identity; negative."""
    mixed = (
        identity * 2654435761 + tokens[position] * 40503 + tokens[position - 1] * 9176 + position * 31
    ) & 0xFFFFFFFF
    return -1.0 - ((mixed >> 8) % 4096) / 1024.0


def tensors_of(identity: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of the weights of this identity."""
    array = np.arange(_NUM_ELEMENTS, dtype=np.float32)
    array[0], array[7] = identity, -identity
    yield "weight", array


def golden_logprobs(parameters: Parameters, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """float64[prompt, token]: log-probs of each token, 0 for the first and beyond the end."""
    values = np.zeros((len(prompts), max(map(len, prompts))))
    for row, prompt in enumerate(prompts):
        for position in range(1, len(prompt)):
            values[row, position] = logprob_of(parameters.identity, prompt, position)
    return values


class ArithmeticWeights:
    """The weights of an engine; implements `fake_vllm.weights.Weights`.

    Attributes:
      identity: as of `Parameters`.
      flips: loads that shall go wrong without a sign, counted down.
    """

    vocab_size = VOCAB_SIZE

    def __init__(self) -> None:
        self.identity = 0
        self.flips = 0

    def read(
        self, root: str | Path, version: int, content_sha256: str, applied: Applied | None, sealed: str = ""
    ) -> int:
        store = WeightStore(root, run="")
        manifest = store.best_manifest(version)
        if manifest.content_sha256 != content_sha256:
            raise StoreError(f"version {version} is {manifest.content_sha256}, expected {content_sha256}")
        check_newer(version, applied)
        path = manifests_to_load(store, manifest, applied.version if applied is not None else None, sealed)
        (changed,) = read_path(store, path, self._base if path[0].format == "sparse" else None)
        return int(changed.tensor.words.view(np.float32)[0])

    def _base(self, entry: TensorEntry) -> Tensor:
        ((_, array),) = tensors_of(self.identity)
        return Tensor.of(array)

    def load(self, staged: int) -> None:
        self.identity = staged
        if self.flips > 0:
            self.flips -= 1
            self.tear()

    def tear(self) -> None:
        self.identity = -1 - abs(self.identity)

    def sample(self, rows: Sequence[Sequence[int]], temperature: float, draws: Sequence[random.Random]) -> Sampled:
        tokens = [draw.randrange(2, VOCAB_SIZE) for draw in draws]
        whole = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        return Sampled(tokens, [logprob_of(self.identity, row, len(row) - 1) for row in whole])

    def prompt_logprobs(self, tokens: Sequence[int]) -> list[float]:
        return [logprob_of(self.identity, tokens, position) for position in range(1, len(tokens))]
