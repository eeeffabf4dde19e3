"""What runs beside training: publishing, the reference's log-probs while groups arrive, and the profiler's trace."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learner_jax.batches import Sequences, sequences
from learner_jax.hosts.hosts import Hosts
from learner_jax.loop.profiling import Profiler
from learner_jax.loop.publishing import Publishing, PublishingError
from learner_jax.loop.reference_ahead import ReferenceAhead
from learner_jax.models import init_parameters
from tests.support.tiny_model import TINY
from tests.support.trajectories import make_group


class Store:
    """Publishes when `gate` opens; fails with `error` if given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.gate = threading.Event()
        self.published: list[tuple[int, int, list[str]]] = []
        self.error = error
        self._next = 0

    def claim(self) -> int:
        self._next += 1
        return self._next

    def publish(self, tensors: Any, *, step: int, golden: Any, version: int | None = None) -> Any:
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        assert version is not None
        self.published.append((version, step, [name for name, _ in tensors]))
        return SimpleNamespace(format="full", num_bytes=0, num_changed=None)


ENGINE: Any = SimpleNamespace(
    hosts=Hosts(),
    platform="cpu",
    model_config=TINY,
    settings=SimpleNamespace(publish_dtype="float32"),
    publication=SimpleNamespace(
        weights=lambda params: jax.tree.map(jnp.copy, params),
        golden_logprobs=lambda weights, prompts: jnp.zeros((1, 3)),
    ),
)


def make_publishing(store: Store, *, keep: int = 1, max_wait_s: float = 20.0) -> tuple[Publishing, list[str]]:
    log: list[str] = []
    publishing = Publishing(
        ENGINE,
        store,
        [[1, 2, 3]],
        keep=keep,
        max_wait_s=max_wait_s,
        log=lambda event, **fields: log.append(event),
    )
    return publishing, log


@pytest.fixture(scope="module")
def params() -> Any:
    return init_parameters(TINY, jax.random.key(0))


def test_training_goes_on_while_a_version_is_stored(params: Any) -> None:
    store = Store()
    publishing, log = make_publishing(store)
    assert publishing.start(params, step=0) == 1  # returns although nothing is stored yet
    assert store.published == []
    store.gate.set()
    publishing.wait()
    assert [(version, step) for version, step, _ in store.published] == [(1, 0)]
    assert "model.embed_tokens.weight" in store.published[0][2]
    assert log == ["published"]
    publishing.close()


def test_versions_are_stored_one_after_another_and_old_weights_let_go(params: Any) -> None:
    store = Store()
    store.gate.set()
    publishing, _ = make_publishing(store, keep=1)
    for step in range(4):
        publishing.start(params, step=step)
    publishing.wait()
    assert [version for version, _, _ in store.published] == [1, 2, 3, 4]
    assert sorted(publishing.weights) == [3, 4]
    publishing.close()


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_version(params: Any) -> None:
    store = Store(OSError("disk full"))
    store.gate.set()
    publishing, log = make_publishing(store)
    publishing.start(params, step=0)
    with pytest.raises(OSError, match="disk full"):
        publishing.start(params, step=1)
    assert log == []
    publishing.close()


def test_a_version_that_is_never_stored_ends_the_wait(params: Any) -> None:
    store = Store()
    publishing, _ = make_publishing(store, max_wait_s=0.1)
    publishing.start(params, step=0)
    with pytest.raises(PublishingError, match=r"for version 1 to be stored from .* \(learner\.max_wait_s = 0"):
        publishing.start(params, step=1)
    store.gate.set()
    publishing.close()


def test_reference_log_probs_are_computed_before_the_batch_is_whole() -> None:
    computed: list[int] = []

    def logprobs(rows: Sequences) -> np.ndarray:
        computed.append(len(rows.tokens))
        return -0.1 * rows.tokens

    groups = [make_group(f"run/{i}", seed=i, size=2, prompt_tokens=3, answer_tokens=2) for i in range(7)]
    whole = np.concatenate([[t.tokens for t in group] for group in groups])

    def collected(*arrivals: int) -> np.ndarray:
        """The result when groups come in parts of these sizes."""
        ahead = ReferenceAhead(logprobs, sequence_length=5, microbatch_tokens=34)  # three groups of ten tokens
        left = list(groups)
        for count in arrivals:
            ahead.add(left[:count])
            left = left[count:]
        assert sum(computed) == 12  # two full microbatches of three groups, before the batch is asked for
        rows, reference = ahead.result()
        expected = sequences(groups, sequence_length=5)  # as `rl_batch` lays them out
        for name in ("tokens", "sampled"):
            np.testing.assert_array_equal(getattr(rows, name), getattr(expected, name))
        for name in ("tokens", "groups", "shared"):
            np.testing.assert_array_equal(getattr(rows.lengths, name), getattr(expected.lengths, name))
        return np.asarray(reference(rows))

    first = collected(7)
    assert computed == [6, 6, 2]
    computed.clear()
    second = collected(1, 0, 3, 2, 1)
    assert computed == [6, 6, 2]  # the same groups together, however they came
    np.testing.assert_allclose(first, -0.1 * whole)
    np.testing.assert_array_equal(first, second)


def test_profiler_traces_the_steps_after_the_first_two(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, num_steps=2)
    for step in range(6):
        profiler.before_step()
        with jax.profiler.TraceAnnotation(f"step_{step}"):
            jnp.ones(8).sum().block_until_ready()
        profiler.after_step()
    profiler.close()
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    names = {str(event.get("name")) for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {name for name in names if name.startswith("step_")} == {"step_2", "step_3"}


def test_profiler_of_no_steps_writes_nothing(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, num_steps=0)
    for _ in range(4):
        profiler.before_step()
        profiler.after_step()
    profiler.close()
    assert not list(tmp_path.iterdir())
