"""Publishes policy versions in the smaller form: what changed since the version before, or everything as an anchor.

Updates form a chain: each applies to the version published just before. So the newest version is all that has to stay
in memory here, and a replica that holds any version since the last anchor catches up by the updates it lacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import xxhash

from learner_jax.contracts import GoldenPrompt, TensorChange, TensorEntry, WeightManifest
from serving_bridge.settings import StoreSettings
from serving_bridge.weights.checks import check_finite, checked_tensors
from serving_bridge.weights.delta import Encoder, changes, num_changes
from serving_bridge.weights.files import Tensor, entry_of, words_of
from serving_bridge.weights.store import WeightStore
from serving_bridge.weights.writer import VersionHeader, VersionWriter

Log = Callable[..., None]

#: An update has to save at least this share of a full version, which needs no base.
_MOST_OF_FULL = 0.9
_POLL_S = 0.5


@dataclass(frozen=True)
class _Held:
    """The newest version, whole."""

    manifest: WeightManifest
    updates: int  # since the last anchor
    tensors: dict[str, Tensor]
    entries: dict[str, TensorEntry]

    @property
    def version(self) -> int:
        return self.manifest.version


class Publisher:
    """Owns the newest version's weights in host memory; implements `contracts.WeightPublisher`.

    A full version is published first, then every `settings.anchor_every` versions, where more than
    `settings.max_changed` of the elements changed, and where the model's tensors are not of one width. One process
    publishes; its first version is therefore always full.

    Also stores the newest version whole, once more, when the fleet asks for it (`WeightStore.want_anchor`).
    """

    def __init__(self, store: WeightStore, settings: StoreSettings, *, log: Log) -> None:
        self._store, self._settings, self._log = store, settings, log
        self._writer = VersionWriter(store)
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._was_dense = False  # the last version that had a base was not worth being an update
        self._closed = threading.Event()
        self._mender = threading.Thread(target=self._mend, name="anchors on request", daemon=True)
        self._mender.start()

    def claim(self) -> int:
        return self._writer.claim()

    def base(self) -> int | None:
        with self._lock:
            held = self._held
        if held is None or held.updates + 1 >= self._settings.anchor_every:
            return None
        return held.version

    def publish(
        self,
        tensors: Iterable[tuple[str, np.ndarray]],
        *,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """See `contracts.WeightPublisher.publish`; raises as `VersionWriter.publish`."""
        header = VersionHeader(step, golden, version)
        base = self._held if self.base() is not None else None
        whole = checked_tensors(tensors)
        update = None
        # Encoding costs ten times what counting does; steps that change much mostly follow each other.
        if base is not None and not (self._was_dense and _is_dense(base, whole, self._settings.max_changed)):
            update = _Update(base, self._settings.max_changed)
        entries = {}
        for name, tensor in whole.items():
            digest = "" if update is None else update.add_whole(name, tensor)
            if not digest:
                update = None
            entries[name] = entry_of(name, tensor, digest)
        self._was_dense = base is not None and update is None
        if update is not None and update.fits(whole):
            return self._store_update(update, whole, entries, header)
        manifest = self._writer.publish_full(whole, list(entries.values()), header)
        self._hold(_Held(manifest, 0, whole, entries))
        return manifest

    def publish_changes(
        self,
        changes: Iterable[TensorChange],
        *,
        base: int,
        step: int,
        golden: Sequence[GoldenPrompt],
        version: int | None = None,
    ) -> WeightManifest:
        """See `contracts.WeightPublisher.publish_changes`.

        Raises:
          ValueError: `base` is not the version held, or a change is of a tensor or position that does not exist.
        """
        held = self._held
        if held is None or held.version != base:
            raise ValueError(f"changes against version {base}, but version {held and held.version} is the newest")
        given = {change.name: change for change in changes}
        if unknown := given.keys() - held.tensors.keys():
            raise ValueError(f"changes of tensors that version {base} does not have: {sorted(unknown)[:4]}")
        update = _Update(held, max_changed=1.0)
        whole, entries = dict(held.tensors), dict(held.entries)
        for name, old in held.tensors.items():
            change = given.get(name)
            if change is None or not change.indices.size:
                update.add(name, np.zeros(0, np.int64), old.words[:0])
                continue
            if change.values.dtype.name != old.dtype:
                raise ValueError(f"{name}: changes of dtype {change.values.dtype}, expected {old.dtype}")
            bits = words_of(change.values)
            update.add(name, change.indices, bits)
            words = old.words.copy()
            words[change.indices] = bits
            check_finite(name, bits, old.dtype)
            whole[name] = Tensor(words, old.shape, old.dtype)
            entries[name] = entry_of(name, whole[name])
        return self._store_update(update, whole, entries, VersionHeader(step, golden, version))

    def newest(self) -> Mapping[str, Tensor]:
        """The weights of the version published last, empty before the first."""
        with self._lock:
            return self._held.tensors if self._held is not None else {}

    def close(self) -> None:
        """Stops answering requests for anchors."""
        self._closed.set()
        self._mender.join(timeout=2 * _POLL_S)

    def _store_update(
        self, update: _Update, whole: dict[str, Tensor], entries: dict[str, TensorEntry], header: VersionHeader
    ) -> WeightManifest:
        base = update.base
        manifest = self._writer.publish_update(
            update.streams(),
            list(entries.values()),
            header,
            base_version=base.version,
            num_changed=update.num_changed,
        )
        self._hold(_Held(manifest, base.updates + 1, whole, entries))
        return manifest

    def _hold(self, held: _Held) -> None:
        with self._lock:
            self._held = held

    def _mend(self) -> None:
        while not self._closed.wait(max(_POLL_S, self._store.poll_s)):
            with suppress(OSError):  # looked at again; what publishes meets the same disk, and says so
                self._mend_once()

    def _mend_once(self) -> None:
        """Stores the newest version whole where its own form was found damaged by someone who must load it."""
        for version in self._store.wanted_anchors():
            with self._lock:
                held = self._held
            if held is None or version > held.version:
                continue
            reason = self._store.take_wanted(version)
            if reason is None or version < held.version:
                continue  # a newer version is there, which can be asked for in turn
            try:
                self._writer.add_anchor(held.manifest, held.tensors)
            except (OSError, RuntimeError) as error:
                self._log("anchor_failed", version=version, reason=reason, error=str(error))
            else:
                self._log("anchor_added", version=version, reason=reason)


def _is_dense(base: _Held, whole: Mapping[str, Tensor], max_changed: float) -> bool:
    """Whether more than a share of the elements changed; stops counting when that is sure."""
    most = max_changed * sum(tensor.words.size for tensor in base.tensors.values())
    changed = 0
    for name, tensor in whole.items():
        old = base.tensors.get(name)
        if old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
            return True  # another model, which is published whole too
        changed += num_changes(old.words, tensor.words)
        if changed > most:
            return True
    return False


class _Update:
    """The streams of an update against a held version, tensor by tensor in its order."""

    def __init__(self, base: _Held, max_changed: float) -> None:
        self.base = base
        self.num_changed = 0
        self._names = iter(base.tensors)
        itemsizes = {tensor.words.dtype.itemsize for tensor in base.tensors.values()}
        self._encoder = Encoder(min(itemsizes)) if len(itemsizes) == 1 else None
        self._most = max_changed * sum(tensor.words.size for tensor in base.tensors.values())
        self._streams: dict[str, np.ndarray] | None = None

    def add_whole(self, name: str, tensor: Tensor) -> str:
        """Compares the next tensor with the base's, and returns its `xxh3_128`.

        It is empty if this can't be, or is not worth being, an update.
        """
        old = self.base.tensors.get(name)
        if (
            self._encoder is None
            or old is None
            or next(self._names, None) != name
            or (old.shape, old.dtype) != (tensor.shape, tensor.dtype)
        ):
            return ""
        hasher = xxhash.xxh3_128()
        indices, before, after = changes(old.words, tensor.words, hasher)
        if self.num_changed + indices.size > self._most:
            return ""
        self._encode(old, indices, before, after)
        return hasher.hexdigest()

    def add(self, name: str, indices: np.ndarray, bits: np.ndarray) -> None:
        """The next tensor, given by its changes."""
        assert next(self._names) == name
        old = self.base.tensors[name]
        if indices.size and (indices[0] < 0 or indices[-1] >= old.words.size or bits.size != indices.size):
            raise ValueError(
                f"{name}: {bits.size} values for {indices.size} positions up to {indices[-1]}, expected as many "
                f"below {old.words.size}"
            )
        self._encode(old, indices, old.words.take(indices), bits)

    def streams(self) -> dict[str, np.ndarray]:
        assert self._encoder is not None
        if self._streams is None:
            self._streams = self._encoder.finish()
        return self._streams

    def fits(self, whole: dict[str, Tensor]) -> bool:
        """Whether it covers the whole model and is worth more than a full version."""
        full = sum(tensor.words.nbytes for tensor in whole.values())
        covers = next(self._names, None) is None
        return covers and sum(stream.nbytes for stream in self.streams().values()) <= _MOST_OF_FULL * full

    def _encode(self, old: Tensor, indices: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        assert self._encoder is not None
        self.num_changed += indices.size
        self._encoder.add(old.words.size, indices, before, after)
