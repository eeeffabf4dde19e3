"""Where each element of a checkpoint's tensors lives in the running model: found out by watching the model load.

vLLM's own loaders fuse tensors (q, k and v; gate and up), cut them for tensor parallelism and pad vocabularies. All of
that is copies from a view of a checkpoint tensor into a view of a parameter. Recorded once, these copies say how to
write single elements, and how to read a tensor back.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learner_jax.contracts import TensorEntry
from learner_jax.runtime import WeirError
from serving_bridge.weights import Tensor, words_dtype

_SIGNED: dict[int, np.dtype] = {2: np.dtype("<i2"), 4: np.dtype("<i4")}


@dataclass(frozen=True)
class _View:
    """A strided view, in elements from the start of its tensor or storage."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        return torch.as_strided(flat, self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class _Route:
    """One recorded copy: part of a checkpoint tensor to part of a parameter's storage."""

    storage: int
    source: _View
    target: _View

    def translate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of the flat `indices` of the tensor this copy takes, where they go in the storage)."""
        rest = indices - self.source.offset
        taken = rest >= 0
        where = np.full(indices.size, self.target.offset, np.int64)
        order = sorted(range(len(self.source.shape)), key=lambda axis: -self.source.strides[axis])
        for axis in order:
            if self.source.shape[axis] == 1:
                continue
            position, rest = np.divmod(rest, self.source.strides[axis])
            taken &= position < self.source.shape[axis]
            where += position * self.target.strides[axis]
        taken &= rest == 0
        return np.flatnonzero(taken), where[taken]


@dataclass(frozen=True)
class Patch:
    """New values for single elements of one storage, on the model's device."""

    storage: int
    indices: torch.Tensor
    new: torch.Tensor
    old: torch.Tensor


class LiveWeights:
    """The parameters of a running model in the coordinates of its checkpoint; owns no memory.

    Attributes:
      routed: whether single elements can be written: every copy into a parameter came from a checkpoint tensor of the
        same dtype. False until a load was recorded.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._routes: dict[str, list[_Route]] = {}
        self._flat: dict[int, torch.Tensor] = {}
        self._whole: frozenset[str] = frozenset()
        self.routed = False

    def load(self, tensors: Mapping[str, torch.Tensor]) -> set[str]:
        """Loads a whole checkpoint by the model's own loaders and records where everything went.

        Returns:
          The parameters that vLLM says were loaded.
        """
        self.routed = False
        self._flat = {_storage_of(parameter): _flat(parameter) for parameter in self._model.parameters()}
        with torch.no_grad(), _Recorder(tensors, self._flat) as recorder:
            loaded = self._model.load_weights(iter(tensors.items()))
        self._routes = dict(recorder.routes)
        self._whole = frozenset(
            name for name, tensor in tensors.items() if _covers(self._routes.get(name, []), tensor.numel())
        )
        reached = {route.storage for routes in self._routes.values() for route in routes}
        self.routed = not recorder.strange and reached == self._flat.keys()
        return set(loaded or ())

    def load_some(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Loads whole tensors by the model's own loaders, for models whose elements can't be written singly."""
        with torch.no_grad():
            self._model.load_weights(iter(tensors.items()))

    def holds(self, name: str) -> bool:
        """Whether this worker holds every element of a checkpoint tensor, so that it can be read back."""
        return self.routed and name in self._whole

    def read(self, entry: TensorEntry) -> Tensor:
        """Reads a checkpoint tensor back from the model's parameters."""
        (first, *_) = routes = self._routes[entry.name]
        out = torch.empty(math.prod(entry.shape), dtype=self._flat[first.storage].dtype)
        with torch.no_grad():
            for route in routes:
                route.source.of(out).copy_(route.target.of(self._flat[route.storage]))
        width = out.element_size()
        words = out.view({2: torch.int16, 4: torch.int32}[width]).numpy().view(words_dtype(entry.dtype))
        return Tensor(words, tuple(entry.shape), str(out.dtype).removeprefix("torch."))

    def patches(self, changes: Iterable[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> list[Patch]:
        """Turns changes of checkpoint tensors into patches of the storages, one for each, on the model's device.

        Args:
          changes: (name, int64[K] flat indices, new words[K], old words[K]); a tensor that no parameter was loaded
            from is left out, as a load leaves it out.
        """
        parts: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
        for name, indices, new, old in changes:
            for route in self._routes.get(name, ()):  # none for a tensor of another pipeline stage
                taken, where = route.translate(indices)
                if taken.size:
                    parts[route.storage].append((where, new[taken], old[taken]))
        patches = []
        for storage, pieces in parts.items():
            flat = self._flat[storage]
            where, new, old = (np.concatenate(column) for column in zip(*pieces, strict=True))
            patches.append(
                Patch(
                    storage,
                    torch.from_numpy(where).to(flat.device),
                    values_of(new, flat.dtype).to(flat.device),
                    values_of(old, flat.dtype).to(flat.device),
                )
            )
        return patches

    def write(self, patches: Sequence[Patch]) -> None:
        """Writes all patches, or none: what was written is undone if one can't be.

        Raises:
          RuntimeError: a patch could not be written; `__cause__` says why, and the weights are what they were.
          TornError: nor could the others be undone.
        """
        done = 0
        try:
            with torch.no_grad():
                for patch in patches:
                    done += 1
                    self._flat[patch.storage].index_copy_(0, patch.indices, patch.new)
        except Exception as error:
            try:
                with torch.no_grad():
                    for patch in patches[:done]:
                        self._flat[patch.storage].index_copy_(0, patch.indices, patch.old)
            except Exception as second:
                raise TornError(f"an update broke off ({error}) and could not be undone: {second}") from second
            raise RuntimeError(f"the update could not be written and was undone: {error}") from error


class TornError(WeirError, RuntimeError):
    """The weights are of no version."""


class _Recorder(TorchDispatchMode):
    """Notes every copy from a checkpoint tensor into a parameter, and whether there was any other kind.

    Attributes:
      strange: a parameter was written from something else than a checkpoint tensor, or in another dtype.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], flat: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        ordered = sorted((tensor.data_ptr(), name) for name, tensor in tensors.items() if tensor.numel())
        self._starts = [start for start, _ in ordered]
        self._names = [name for _, name in ordered]
        self._tensors = tensors
        self._storages = flat.keys()
        self.routes: dict[str, list[_Route]] = defaultdict(list)
        self.strange = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._note(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, target: torch.Tensor, source: torch.Tensor) -> None:
        storage = _storage_of(target)
        if storage not in self._storages:
            return
        name = self._name_of(source)
        if name is None or source.dtype != target.dtype or source.shape != target.shape:
            self.strange = True
            return
        offset = (source.data_ptr() - self._tensors[name].data_ptr()) // source.element_size()
        self.routes[name].append(
            _Route(
                storage,
                _View(offset, tuple(source.shape), source.stride()),
                _View(target.storage_offset(), tuple(target.shape), target.stride()),
            )
        )

    def _name_of(self, source: torch.Tensor) -> str | None:
        """The checkpoint tensor that a view is of."""
        position = bisect.bisect_right(self._starts, source.data_ptr()) - 1
        if position < 0:
            return None
        name = self._names[position]
        tensor = self._tensors[name]
        inside = source.data_ptr() < tensor.data_ptr() + tensor.numel() * tensor.element_size()
        return name if inside and source.device == tensor.device else None


def tensor_of(tensor: Tensor) -> torch.Tensor:
    """A torch tensor over the same memory."""
    return values_of(tensor.words, getattr(torch, tensor.dtype)).view(tensor.shape)


def values_of(words: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """A flat torch tensor over the memory of raw words."""
    return torch.from_numpy(words.view(_SIGNED[words.dtype.itemsize])).view(dtype)


def _covers(routes: Sequence[_Route], size: int) -> bool:
    """Whether copies take every element of a tensor of `size`; a tied one may be copied to two places."""
    return sum(view.size for view in {route.source for route in routes}) == size


def _storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor's storage as one flat tensor."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.as_strided(tensor.detach(), (size,), (1,), 0)
