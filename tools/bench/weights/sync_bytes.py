"""What an update of the weights takes on the wire, and what encoding it costs, beside a full copy and xor with zstd."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import xxhash
import zstandard

from learner_jax.contracts import ModelConfig, hf_shapes
from serving_bridge.weights import (
    Encoder,
    Tensor,
    WeightStore,
    changes,
    decode,
    moved,
    read_version,
    words_dtype,
    xxh3_128,
)
from tools.bench import BenchmarkError
from tools.bench.timing import Spread, ratio, spread

#: learning rate -> most that an update may take, as a divisor of a full one
AIMS: Mapping[float, float] = {1e-6: 100, 3e-6: 50, 1e-5: 20, 1e-4: 5}
#: GB/s of CPU time at about 1% changed
ENCODE_AIM = 2.5
MOST_OF_FULL = 1.01
SIDES = ("weir", "xor+zstd", "copy")
_BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Row:
    """One kind of step, over a whole model.

    Attributes:
      smaller: full bytes over those of the update, by side.
      encode_gb_s: full bytes over CPU seconds, by side; that of Weir includes the hash of the result.
      decode_gb_s: the same for turning the update back into the tensors, hash included.
    """

    step: str
    num_bytes: int
    changed: float
    smaller: dict[str, float]
    encode_gb_s: dict[str, Spread]
    decode_gb_s: Spread
    cpu_ratio: Spread


class Tally:
    """Adds up one kind of step, tensor by tensor and round by round."""

    def __init__(self, step: str, rounds: int) -> None:
        self.step, self.rounds = step, rounds
        self.num_bytes = self.changed = self.size = 0
        self.encoded = dict.fromkeys(SIDES, 0)
        self.encode_s = {side: np.zeros(rounds) for side in SIDES}
        self.decode_s = np.zeros(rounds)

    def add(self, old: np.ndarray, new: np.ndarray) -> None:
        """Measures one tensor, and checks that the update gives it back."""
        self.num_bytes += new.nbytes
        self.size += new.size
        work: dict[str, Callable[[], Any]] = {
            "weir": lambda: encode(old, new),
            "xor+zstd": lambda: zstandard.ZstdCompressor(level=1).compress(np.bitwise_xor(old, new).data),
            "copy": lambda: new.copy(),
        }
        num_changed = changes(old, new)[0].size
        for i in range(self.rounds):
            first = i % len(SIDES)
            for side in SIDES[first:] + SIDES[:first]:
                seconds, result = _timed(work[side])
                self.encode_s[side][i] += seconds
                if i:
                    continue
                if side == "weir":
                    streams = result
                    self.encoded[side] += sum(stream.nbytes for stream in streams.values())
                else:
                    self.encoded[side] += len(result) if side == "xor+zstd" else result.nbytes
            seconds, back = _timed(lambda: decoded(streams, old, num_changed))  # noqa: B023 - called at once
            self.decode_s[i] += seconds
            if not np.array_equal(back, new):
                raise BenchmarkError(f"{self.step}: an update did not give its tensor back")
        self.changed += num_changed

    def row(self) -> Row:
        full = self.num_bytes
        return Row(
            self.step,
            full,
            self.changed / self.size,
            {side: full / size for side, size in self.encoded.items()},
            {side: spread((full / seconds / 1e9).tolist()) for side, seconds in self.encode_s.items()},
            spread((full / self.decode_s / 1e9).tolist()),
            ratio(self.encode_s["weir"].tolist(), self.encode_s["xor+zstd"].tolist()),
        )


def encode(old: np.ndarray, new: np.ndarray) -> dict[str, np.ndarray]:
    """What the publisher does with a tensor: compare, encode, hash."""
    encoder, hasher = Encoder(new.dtype.itemsize), xxhash.xxh3_128()
    encoder.add(old.size, *changes(old, new, hasher))
    hasher.digest()
    return encoder.finish()


def decoded(streams: Mapping[str, np.ndarray], old: np.ndarray, num_changed: int) -> np.ndarray:
    """What a replica does with it while staging."""
    ((indices, distances),) = decode(streams, [old.size], old.dtype.itemsize, num_changed)
    new = old.copy()
    new[indices] = moved(new.take(indices), distances)
    xxh3_128(new)
    return new


def synthetic(
    config: ModelConfig, rates: Sequence[float], *, rounds: int, seed: int, done: Callable[[str], None]
) -> list[Row]:
    """One AdamW step at each learning rate on a model of this shape: fp32 masters, published in bfloat16."""
    tallies = {rate: Tally(f"AdamW, lr {rate:g}", rounds) for rate in rates}
    steps = adamw_directions(seed)
    for index, (name, shape) in enumerate(hf_shapes(config).items()):
        rng = np.random.default_rng([seed, index])
        size = int(np.prod(shape))
        master = rng.standard_normal(size, np.float32)
        master *= 0.02
        if len(shape) == 1:
            master += 1
        old = _bf16_words(master)
        direction = np.resize(np.roll(steps, int(rng.integers(steps.size))), size)
        for rate, tally in tallies.items():
            tally.add(old, _bf16_words(master - np.float32(rate) * direction))
        done(name)
    return [tally.row() for tally in tallies.values()]


def adamw_directions(seed: int, *, size: int = 1 << 20, steps: int = 60) -> np.ndarray:
    """float32[size], updates of AdamW over the learning rate after some steps, of gradients with a little signal.

    Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; beta1 = 0.9, beta2 = 0.999, no weight decay. A gradient is
    noise of standard deviation 1 around a mean that is constant for each element and of standard deviation 0.1.
    """
    rng = np.random.default_rng([seed, 1 << 30])
    signal = 0.1 * rng.standard_normal(size, np.float32)
    first, second = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for _ in range(steps):
        gradient = signal + rng.standard_normal(size, np.float32)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
    corrected = first / (1 - 0.9**steps), second / (1 - 0.999**steps)
    direction: np.ndarray = (corrected[0] / (np.sqrt(corrected[1]) + 1e-8)).astype(np.float32)
    return direction


def of_run(store: WeightStore, *, rounds: int) -> list[Row]:
    """The steps between the versions that a run's store holds, as bfloat16 and, if it is another, in its own dtype."""
    versions = store.versions()
    if len(versions) < 2:
        raise BenchmarkError(f"{store.root} holds versions {versions}; expected two at least, of a finished run")
    dtypes = {entry.dtype for entry in store.best_manifest(versions[-1]).tensors}
    kinds = ["bfloat16", *sorted(dtypes - {"bfloat16"})]
    tallies = {kind: Tally(f"run, {len(versions) - 1} steps, {kind}", rounds) for kind in kinds}
    before = read_version(store, versions[0])
    for version in versions[1:]:
        after = read_version(store, version)
        for kind, tally in tallies.items():
            for old, new in _pairs(before, after, kind):
                tally.add(old, new)
        before = after
    return [tally.row() for tally in tallies.values()]


def _pairs(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], kind: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, tensor in after.items():
        if kind == "bfloat16" and tensor.dtype == "float32":
            yield tuple(_bf16_words(t.words.view(np.float32)) for t in (before[name], tensor))  # type: ignore[misc]
        else:
            yield before[name].words, tensor.words


def _bf16_words(values: np.ndarray) -> np.ndarray:
    return values.astype(_BF16).view(words_dtype("bfloat16"))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result
