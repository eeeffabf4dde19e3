"""The worker's half of the fake engine: leases, staging and applying versions, and sampling from what is applied.

Two kinds of weights stand behind one protocol: a NumPy model with versions from a real weight store, for processes;
and numbers that merely stand for weights, for simulations, where a seed has a tenth of a second.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load_file

from learner_jax.contracts import ContractError, ModelConfig, WeightManifest, hf_shapes, read_model_config
from learner_jax.runtime import WeirError
from serving_bridge.access import Lease
from serving_bridge.vllm_plugin import ANY_ORDER
from serving_bridge.weights import ShelfOptions, StoreError, Tensor, WeightStore, manifests_to_load, read_path
from tools.testing.fake_vllm.qwen3 import Qwen3, log_softmax


class StageError(WeirError, ValueError):
    """A version must not be loaded; says what was expected and what came."""


class BrokenLoadError(WeirError, RuntimeError):
    """A load broke off halfway; the weights are of no version until a later one succeeds."""


@dataclass(frozen=True)
class Applied:
    """The version that the weights are of."""

    version: int
    content_sha256: str


@dataclass(frozen=True)
class Sampled:
    """The next token of each of some rows, and its log-prob in nats as it was sampled."""

    tokens: list[int]
    logprobs: list[float]


class Weights(Protocol):
    """What an engine holds: read versions, take one of them over, compute with it."""

    vocab_size: int

    def read(
        self, root: str | Path, version: int, content_sha256: str, applied: Applied | None, sealed: str = ""
    ) -> Any:
        """Reads and checks a version, in a form that `load` takes; raises what is wrong with it."""

    def load(self, staged: Any) -> None:
        """Computes with a version that was read, from now on."""

    def tear(self) -> None:
        """Leaves the weights as a load that broke off halfway would."""

    def sample(self, rows: Sequence[Sequence[int]], temperature: float, draws: Sequence[random.Random]) -> Sampled:
        """One more token for rows of one length; the likeliest where `temperature` is 0."""

    def prompt_logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Entry t is log p(tokens[t+1] | tokens[:t+1]) at temperature 1, nats."""


class ModelWeights:
    """A NumPy model whose weights come from a model folder, then from a real weight store; implements `Weights`."""

    def __init__(self, model_dir: Path, *, family: str = "") -> None:
        self._config: ModelConfig = read_model_config(model_dir, family=family)
        self._model = Qwen3(self._config, load_file(model_dir / "model.safetensors"))
        self.vocab_size = self._config.vocab_size

    def read(
        self, root: str | Path, version: int, content_sha256: str, applied: Applied | None, sealed: str = ""
    ) -> dict[str, np.ndarray]:
        store = WeightStore(root, run="", options=ShelfOptions.of_environment(os.environ))
        manifest = store.best_manifest(version)
        self._check(manifest, content_sha256, applied)
        path = manifests_to_load(store, manifest, applied.version if applied is not None else None, sealed)
        held = self._model.weights if path[0].format == "sparse" else None
        base = None if held is None else lambda entry: Tensor.of(held[entry.name])
        return {
            changed.entry.name: changed.tensor.words.view(np.float32).reshape(changed.tensor.shape)
            for changed in read_path(store, path, base)
        }

    def _check(self, manifest: WeightManifest, content_sha256: str, applied: Applied | None) -> None:
        version, shapes = manifest.version, hf_shapes(self._config)
        if manifest.content_sha256 != content_sha256:
            raise StageError(f"version {version} is {manifest.content_sha256}, expected {content_sha256}")
        check_newer(version, applied)
        if {entry.name: tuple(entry.shape) for entry in manifest.tensors} != shapes:
            raise StageError(f"version {version} has not the model's {len(shapes)} tensors")
        if any(entry.dtype != "float32" for entry in manifest.tensors):
            raise StageError(f"version {version} is not float32; set learner.publish_dtype to what serving.dtype is")

    def load(self, staged: dict[str, np.ndarray]) -> None:
        self._model = Qwen3(self._config, staged)

    def tear(self) -> None:
        weights = dict(self._model.weights)
        torn = [name for index, name in enumerate(sorted(weights)) if index % 2]
        self._model = Qwen3(self._config, weights | {name: np.flip(weights[name]).copy() for name in torn})

    def sample(self, rows: Sequence[Sequence[int]], temperature: float, draws: Sequence[random.Random]) -> Sampled:
        logits = self._model.logits(np.array(rows), first=len(rows[0]) - 1)[:, 0]
        logprobs = log_softmax(logits / (temperature or 1.0))
        if temperature == 0.0:
            tokens = logits.argmax(-1)
        else:
            uniform = np.array([draw.random() for draw in draws])[:, None]
            reached = np.cumsum(np.exp(logprobs), axis=-1)
            tokens = (reached < uniform * reached[:, -1:]).sum(-1)
        return Sampled(tokens.tolist(), logprobs[np.arange(len(rows)), tokens].tolist())

    def prompt_logprobs(self, tokens: Sequence[int]) -> list[float]:
        logprobs = log_softmax(self._model.logits(np.array([tokens]))[0, :-1])
        return logprobs[np.arange(len(tokens) - 1), np.array(tokens[1:])].tolist()


def check_newer(version: int, applied: Applied | None) -> None:
    """Versions only go up, unless the server follows aliases."""
    if os.environ.get(ANY_ORDER) == "1":
        return
    if applied is not None and version <= applied.version:
        raise StageError(f"version {version} is not newer than version {applied.version}, which this worker holds")


class Worker:
    """One worker of an engine: who may change its weights, what it has staged, what it holds.

    Args:
      root: of the weight store that versions are read from.
      clock: monotonic seconds, of the lease.
      start_reading: runs a reading beside whatever else goes on; a thread where readings block, a task in simulations.

    Attributes:
      applied: what was loaded last; None until the first, and once a load broke off halfway.
      breaks: loads that shall break off halfway, counted down.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        root: str | Path,
        clock: Callable[[], float],
        start_reading: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.weights = weights
        self.lease, self._root = Lease(clock), root
        self.applied: Applied | None = None
        self.intact = True
        self.breaks = 0
        self._start_reading = _in_thread if start_reading is None else start_reading
        self._state, self._error, self._damaged = "idle", "", False
        self._staged: tuple[Applied, Any] | None = None

    def weir_stage(
        self, version: int, content_sha256: str, round_id: str, lease_s: float, sealed: str = ""
    ) -> dict[str, Any]:
        """As the plugin's method of this name."""
        self.lease.take(round_id, lease_s)
        if self._state == "reading":
            self.lease.release(round_id)
            raise StageError("a version is still being read; expected one round at a time")
        wanted = Applied(version, content_sha256)
        held = self.applied if self.intact else None
        self._staged, self._error, self._damaged = None, "", False
        if held == wanted:
            self._state = "applied"
            return self.weir_status(round_id)
        self._state = "reading"
        self._start_reading(lambda: self._read(self._root, wanted, held, sealed))
        return self.weir_status(round_id)

    def _read(self, root: str | Path, wanted: Applied, held: Applied | None, sealed: str) -> None:
        try:
            staged = self.weights.read(root, wanted.version, wanted.content_sha256, held, sealed)
        except Exception as caught:  # noqa: BLE001 - nobody waits for this; the status hands it on
            self._error = f"{type(caught).__name__}: {caught}"
            self._damaged, self._state = isinstance(caught, StoreError | ContractError | OSError), "failed"
        else:
            self._staged, self._state = (wanted, staged), "staged"

    def weir_status(self, round_id: str) -> dict[str, Any]:
        """As the plugin's method of this name."""
        self.lease.renew(round_id)
        return {
            "state": self._state,
            "staged": self._staged[0].version if self._staged is not None else None,
            "error": self._error,
            "damaged": self._damaged,
            "applied": self.applied.version if self.applied is not None else None,
            "intact": self.intact,
        }

    def weir_release(self, round_id: str) -> dict[str, Any]:
        """As the plugin's method of this name."""
        self.lease.release(round_id)
        return self.weir_status(round_id)

    def update(self, version: int, content_sha256: str, round_id: str) -> None:
        """Applies the staged version; one that is applied already is left as it is.

        Raises:
          LeaseError, StageError: it is another round's turn, or that version is not staged; nothing was touched.
          BrokenLoadError: it broke off.
        """
        self.lease.check(round_id)
        wanted = Applied(version, content_sha256)
        if self.intact and self.applied == wanted:
            return
        if self._staged is None or self._staged[0] != wanted:
            raise StageError(f"version {version} is not staged, got {self._staged and self._staged[0]}")
        self.applied = None
        if self.breaks > 0:
            self.breaks -= 1
            self.intact = False
            self.weights.tear()
            raise BrokenLoadError(f"the load of version {version} broke off on purpose")
        self.weights.load(self._staged[1])
        self.applied, self.intact = wanted, True
        self._staged, self._state = None, "idle"


def _in_thread(reading: Callable[[], None]) -> None:
    threading.Thread(target=reading, name="staging", daemon=True).start()
