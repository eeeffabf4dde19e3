"""The order in which supervised examples are trained on: grain's, the same for the same seed, resumable at any step.

Each epoch is a permutation of its own. A batch may hold the end of one epoch and the begin of the next: no example is
left out, and all batches have one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from learner_jax.batches.sequences import BatchError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_PREFETCHED = 8


class RandomAccess(Protocol[T_co]):
    """What can be read by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> T_co: ...


class ExampleStream(Generic[T]):
    """Batches of examples without end.

    Args:
      batch_size: examples of a step.

    Raises:
      BatchError: there are no examples.
    """

    def __init__(self, examples: RandomAccess[T], *, batch_size: int, seed: int) -> None:
        import grain  # a run without supervised training need not load it

        if not len(examples):
            raise BatchError("there are no supervised examples: supervised.data has no rows")
        self._examples = examples
        ordered = grain.MapDataset.source(range(len(examples))).seed(seed).shuffle().repeat()
        self._batches = ordered.batch(batch_size, batch_fn=list)
        self._read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCHED)

    def since(self, step: int) -> Iterator[Sequence[T]]:
        """The examples of step `step`, from 0 on, and of all later ones.

        Their order is made ahead in a thread; they are read when they are asked for, as they are by then.
        """
        batches: Any = iter(self._batches.to_iter_dataset(self._read))
        batches.set_state({"next_index": step})
        for numbers in batches:
            yield [self._examples[number] for number in numbers]


class Pairs:
    """Two examples each, of a source in which the chosen and the rejected answer of each row follow one another."""

    def __init__(self, examples: RandomAccess[T]) -> None:
        self._examples: RandomAccess[Any] = examples

    def __len__(self) -> int:
        return len(self._examples) // 2

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self._examples[2 * number], self._examples[2 * number + 1]
