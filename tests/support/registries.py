"""Registries on both engines, with entries whose weights need no files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from learner_jax.contracts import GoldenPrompt
from serving_bridge.database import open_database
from serving_bridge.registry import REGISTRY, Candidate, Entry, Origin, RegistryIndex
from serving_bridge.registry.entry import ENTRY_SCHEMA
from serving_bridge.weights import VersionWriter, WeightStore
from tests.support.queue_engines import Clock

FILES = {"config.json": b'{"model_type": "qwen2"}', "tokenizer.json": b'{"version": "1.0"}'}
ORIGIN = Origin("run", "demo", 3, 12)


@dataclass
class IndexPlace:
    """Where an index is, and connections to it."""

    url: str
    clock: Clock = field(default_factory=Clock)
    opened: list[RegistryIndex] = field(default_factory=list)

    def open(self) -> RegistryIndex:
        database = open_database(self.url, schema=REGISTRY)
        index = RegistryIndex(database, clock=self.clock)
        self.opened.append(index)
        return index

    def close(self) -> None:
        for index in self.opened:
            index._db.close()


@pytest.fixture
def index_place(database_url: str) -> Iterator[IndexPlace]:
    """A place without an index yet, on each engine."""
    found = IndexPlace(database_url)
    yield found
    found.close()


def add_entry(
    index: RegistryIndex, namespace: str = "default", *, parent: int | None = None, content: str = "ab" * 32
) -> int:
    """Adds an entry whose weights are nowhere, and returns its number."""

    def make(number: int, previous: str, now_s: float) -> Entry:
        return Entry(
            schema=ENTRY_SCHEMA,
            namespace=namespace,
            number=number,
            previous=previous,
            parent=parent,
            origin=ORIGIN,
            content=content,
            shape="cd" * 32,
            tokenizer="",
            weight_version=number,
            num_parameters=10,
            dtype="bfloat16",
            files=[],
            data=[],
            versions={},
            consent="",
            note="",
            actor="ann",
            created_s=now_s,
        )

    return index.add(namespace, make).number


def passed_entry(index: RegistryIndex, namespace: str = "default", *, parent: int | None = None) -> int:
    """As `add_entry`, of an entry that an evaluation gate has passed."""
    number = add_entry(index, namespace, parent=parent)
    index.set_stage(namespace, number, "passed", actor="ann", reason="all suites", unproven=True)
    return number


def published(folder: Path, seed: int = 0, *, rows: int = 8, norm_dtype: Any = np.float32) -> tuple[WeightStore, int]:
    """A run's weight store with one more version."""
    rng = np.random.default_rng(seed)
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((rows, 4)).astype(ml_dtypes.bfloat16),
        "model.norm.weight": rng.standard_normal(4).astype(norm_dtype),
    }
    store = WeightStore(folder, "demo")
    golden = [GoldenPrompt(tokens=[1, 2, 3], logprobs=[-0.5, -1.5])]
    return store, VersionWriter(store).publish(tensors.items(), step=seed, golden=golden).version


def candidate(parent: int | None = None, note: str = "") -> Candidate:
    return Candidate(ORIGIN, parent=parent, note=note)
